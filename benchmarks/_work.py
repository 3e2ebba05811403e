"""The work that every side of a bench gets: a config's real stage and its real batches, in order.

Texts are read from the config's data addresses and prepared as in a run. With `tokens`, each pair
is that many random ids and the weights are random: no tokenizer and no file of weights is needed.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import itertools
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks import _random_data
from disranker_jax.commands.common import Parser, load_config, positive, prepare_absl
from disranker_jax.commands.plan import stages as plans
from disranker_jax.data import batches, preparing
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import Group
from disranker_jax.data.scored_groups import ScoredGroups
from disranker_jax.devices import runtime, sharding
from disranker_jax.errors import UserError
from disranker_jax.models import load, tree
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import chosen, cpt, distill, prepare, score, sft
from disranker_jax.training import train
from disranker_jax.training.feed import OfflineFeed

TRAINING = tuple(systems.training_stages(systems.DEFAULT))
SCORING = ('score', 'evaluate')  # the teacher on candidates, the student on test queries
WINDOW_S = 2.0  # of a turn on an accelerator; a short one is mostly its start and its end
PART = 1 << 28  # random parameters that are created at a time
SAMPLE = 64  # queries that estimate the tokens per query of a scoring turn


def parser(name: str, doc: str, stages: tuple[str, ...]) -> Parser:
  """The arguments that all benches of a stage share."""
  out = Parser(f'bench {name}', doc, f'--config configs/quickstart.py --stage {stages[-1]}')
  out.add_config()
  add = out.add_argument_group('work').add_argument
  add('--stage', default=stages[0], choices=stages, help='the stage to measure')
  add('--rounds', type=positive, default=5, help='turns of each side, whose median is shown')
  add('--tokens', type=int, default=0, help='random ids, this many per pair; 0: the real texts')
  add('--workdir', type=Path, metavar='DIR', help='keeps the prepared data for the next bench')
  add('--json', action='store_true', help='also print the answer as one last line of JSON')
  return out


def parse(parser: Parser, argv: list[str]) -> argparse.Namespace:
  """The arguments, with `config` as the ConfigDict and `config_file` as its file."""
  args = parser.parse_args(argv)
  runtime.prepare()
  prepare_absl()
  args.config_file, args.config = args.config, load_config(args.config, args.overrides)
  return args


@contextlib.contextmanager
def prepared(args: argparse.Namespace) -> Iterator['Work']:
  """The work, with its data prepared in --workdir or in a temporary folder."""
  with contextlib.ExitStack() as stack:
    folder = args.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    work = open_work(args, folder)
    work.prepare()
    yield work


def open_work(args: argparse.Namespace, folder: Path) -> 'Work':
  config, folder = copy.deepcopy(args.config), folder.absolute()
  if args.tokens:  # texts are not read
    config.data.update(_random_data.addresses(folder / 'random'), teachers=(), holdout=0.0)
    config.data.negatives.count = 0
  return Work(config, args.stage, folder, args.tokens)


@dataclasses.dataclass(frozen=True)
class Work:
  """One stage of a config on prepared data."""

  config: object
  stage: str
  folder: Path
  tokens: int = 0

  @property
  def settings(self):
    """The settings of the model that the stage trains or runs."""
    stage = systems.find(self.config, self.stage)
    return self.config[stage.role or systems.of(self.config).table.role]  # evaluate: the student

  @property
  def scorer(self) -> str:
    """How the stage's model scores; '' if it only predicts tokens."""
    return '' if self.stage == 'cpt' else self.settings.get('scorer', 'score_head')

  def kinds(self) -> list[str]:
    """The kinds of records that the stage reads."""
    kinds = list(systems.find(self.config, self.stage).reads_records(self.config))
    return kinds if self.stage == 'distill' else kinds[:1]

  def run(self, mesh=None) -> Run:
    return Run(self.config, self.folder, mesh)

  def prepare(self) -> None:
    """Prepares the data without initialising JAX: the device must stay free for the sides."""
    for kind in self.kinds():
      preparing.prepare(prepare.job_of(self.run(), kind))

  def open_side(self) -> TextModel:
    head = load.HEADS[self.scorer] if self.scorer else 'lm'
    if not self.tokens:
      return load.open_model(self.settings, head)
    folder = self.model_folder()
    network = load.open_network(folder, self.settings, head)
    return RandomSide(self.settings, folder, network, None, self.tokens)

  def model_folder(self) -> Path:
    """A folder with the model's config.json, and its weights unless tokens are random."""
    if not self.tokens:
      from disranker_jax.models import weights

      return weights.find(self.settings.model)
    scratch = self.folder / 'model'
    scratch.mkdir(parents=True, exist_ok=True)
    return plans.config_folder(self.settings.model, scratch)

  def job(self, side: TextModel, mesh=None) -> tuple[train.Job, OfflineFeed]:
    """What the stage trains on; distillation learns random scores, which cost the same."""
    run = self.run(mesh)
    if self.stage == 'cpt':
      return cpt.job(run, side)
    if self.stage == 'distill':
      return distill.job(run, side, random_scores(run))
    return sft.job(run, side, self.stage)

  def groups(self) -> 'Groups':
    """The queries that a scoring stage scores."""
    source = prepare.records(self.run(), self.kinds()[0])
    return Groups(source, self.config.score if self.stage == 'score' else None)


class Groups:
  """An endless cycle of queries with their documents: all, or those that `c` selects."""

  def __init__(self, source, c=None):
    self._source, self._config, self._next = source, c, 0

  def __getitem__(self, i: int) -> Group:
    group = self._source[i % len(self._source)]
    return chosen.chosen(group, self._config) if self._config else group

  def queries(self, prompt, places: int) -> int:
    """The number of queries whose tokens nearly fill `places` positions."""
    sample = [self[i] for i in range(SAMPLE)]
    tokens = sum(len(d) for g in sample for d in prompt.encode(g.query, g.docs))
    return max(1, int(0.97 * places * SAMPLE / tokens))

  def take(self, queries: int) -> list[Group]:
    """The next queries."""
    start, self._next = self._next, self._next + queries
    return [self[i] for i in range(start, self._next)]


def random_scores(run) -> ScoredGroups:
  """The records that distillation reads, with normal deviates for scores."""

  def part(number: int, kind: str):
    groups = score.open_chosen(run, kind)

    def read(i: int):
      group, rng = groups[i], np.random.default_rng([number, i])
      return group, rng.standard_normal(len(group.docs)).astype(np.float32)

    return len(groups), read

  return ScoredGroups([part(*k) for k in enumerate(score.reads(run.config))], {})


@dataclasses.dataclass(frozen=True)
class RandomPrompt:
  """Encodes any pair as `tokens` random ids, a quarter of them the query's."""

  tokens: int
  vocab: int
  decoder: bool
  predict: str

  def encode(self, query: str, docs) -> list[Encoded]:
    rng = np.random.default_rng(zlib.crc32(query.encode()))
    query_len, n = self.tokens // 4, self.tokens
    types = np.zeros(n, np.int32)
    if not self.decoder:
      types[query_len:] = 1
      return [Encoded(self._ids(rng), types, 0) for _ in docs]
    span = (n - 1 - query_len, n - 1) if self.predict == 'query' else (query_len, n)
    return [Encoded(self._ids(rng), types, n - 1, span) for _ in docs]

  def encode_many(self, groups) -> list[list[Encoded]]:
    return [self.encode(query, docs) for query, docs in groups]

  def _ids(self, rng) -> np.ndarray:
    return rng.integers(0, self.vocab, self.tokens, np.int32)


@dataclasses.dataclass(frozen=True)
class RandomSide(TextModel):
  """A network with random weights and no tokenizer."""

  tokens: int = 0

  def prompt(self, predict: str | None = None) -> RandomPrompt:
    if self.tokens < 8 or self.tokens > self.settings.row_len:
      raise UserError(f'--tokens={self.tokens}: must be from 8 to row_len={self.settings.row_len}')
    if predict is None:
      predict = 'query' if 'query_likelihood' in self.settings.get('scorer', '') else 'document'
    network = self.network
    return RandomPrompt(self.tokens, network.config.vocab, network.family.causal, predict)

  def pretrained(self, seed: int, mesh, trainable: str | None = None) -> dict:
    """Random variables, created sharded and in the types of load.types, a few at a time."""
    key, flat = jax.random.key(seed), {}
    for create in self.creators(mesh, trainable):
      flat |= create(key)
    return tree.unflatten(flat)

  def creators(self, mesh, trainable: str | None = None) -> Iterator[jax.stages.Wrapped]:
    """Functions of a key that each create some of the variables: {path: array}.

    Networks create parameters in fp32; with all of them at once, that copy is larger than a step.
    """
    init = jax.jit(self.network.init)  # traced once for all of them
    shapes = tree.flatten(self.network.shapes())
    where = tree.flatten(sharding.shardings(self.network.shapes(), mesh))
    type_of = load.types(self.settings.param_dtype, trainable)

    def cast(path, x):
      base = path.removeprefix('params/')
      return x if base == path else x.astype(type_of(base))

    def create(paths, key):
      made = tree.flatten(init(key))
      return {path: cast(path, made[path]) for path in paths}

    # The largest first, when there is nothing else yet.
    sizes = sorted(((path, x.size) for path, x in shapes.items()), key=lambda row: -row[1])
    for paths in parts(dict(sizes), PART):
      yield jax.jit(functools.partial(create, paths), out_shardings={p: where[p] for p in paths})


def parts(sizes: dict[str, int], most: int) -> Iterator[list[str]]:
  """Lists of names, in order, whose sizes add up to at most `most`, or of one name."""
  some, total = [], 0
  for name, size in sizes.items():
    if some and total + size > most:
      yield some
      some, total = [], 0
    some.append(name)
    total += size
  if some:
    yield some


class Window:
  """Whether a turn goes on: until its steps are done, on an accelerator for WINDOW_S at least."""

  def __init__(self, steps: int, accelerator: bool):
    self._steps, self._end = steps, time.perf_counter() + WINDOW_S * accelerator

  def __call__(self, done: int) -> bool:
    return done < self._steps or time.perf_counter() < self._end


@dataclasses.dataclass(frozen=True, slots=True)
class Sequence:
  """A query with one document, extracted from a packed batch."""

  ids: np.ndarray
  types: np.ndarray
  anchor: int  # the scored position
  at: np.ndarray  # positions that predict a token
  targets: np.ndarray  # the tokens
  group: int
  label: float
  teacher: float


def steps(feed: OfflineFeed) -> Iterator[list[Sequence]]:
  """What each step of a training stage computes on, without end."""
  streams = [feed.data.stream(block) for block in range(feed.blocks)]
  while True:
    drawn = [batches.join([stream.next()[0] for stream in streams]) for _ in range(feed.accumulate)]
    yield list(itertools.chain.from_iterable(map(sequences, drawn, itertools.count())))


def sequences(batch: dict[str, np.ndarray], number: int = 0) -> list[Sequence]:
  """The sequences of a batch; `number` keeps groups of different batches distinct."""
  blocks, slots = batch['index_AX'].shape
  groups, docs = batch['mask_GN'].shape
  rows = len(batch['tokens_BT']) // blocks
  split = lambda key: batch[key].reshape(blocks, slots)  # noqa: E731
  mask_AX, labels_AX, teacher_AX = map(split, ('mask_GN', 'labels_GN', 'teacher_GN'))
  find = functools.partial(_span, batch, rows)
  out = []
  for a, x in np.argwhere(mask_AX).tolist():
    row, span, start = find(a, int(batch['index_AX'][a, x]))
    at, targets = _predicted(batch, a, x, start)
    out.append(
      Sequence(
        batch['tokens_BT'][row, span], batch['types_BT'][row, span],
        int(batch['index_AX'][a, x]) - start, at, targets,
        number * groups + (a * slots + x) // docs, float(labels_AX[a, x]), float(teacher_AX[a, x]),
      )
    )  # fmt: skip
  return out


def _span(batch, rows: int, block: int, flat: int) -> tuple[int, slice, int]:
  """(row, slice of its positions, index of the first in the block) of the segment at `flat`."""
  length = batch['tokens_BT'].shape[1]
  row, column = divmod(flat, length)
  segments_T = batch['segments_BT'][block * rows + row]
  inside = np.flatnonzero(segments_T == segments_T[column])
  span = slice(int(inside[0]), int(inside[-1]) + 1)
  return block * rows + row, span, row * length + span.start


def _predicted(batch, block: int, slot: int, start: int) -> tuple[np.ndarray, np.ndarray]:
  if 'owner_AP' not in batch:
    return np.zeros((2, 0), np.int64)
  mine = batch['owner_AP'][block] == slot
  return batch['index_AP'][block][mine] - start, batch['targets_AP'][block][mine]
