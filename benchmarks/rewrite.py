"""Seconds of a GRPO step by part, beside transformers with TRL's loss on the same work, in turn.

The prompts and the collection are random, no rewrite ends early, all parameters are trained, and
the reward is the gain of a search by BM25, which is the same code for both sides.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import _compare, _figures, _side, _worker
from disranker_jax.commands.common import Parser, positive
from disranker_jax.config import settings
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.devices import processor, runtime
from disranker_jax.models import weights
from disranker_jax.report import tables
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.rewards import Ranking, Reward

PARTS = ('prefill', 'decode', 'reward', 'reference', 'update')
WORDS = 45  # of a page, about as many as a page of Python's documentation has
RESERVED = 3  # ids of special tokens, which no prompt has


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench rewrite', __doc__, '--model smollm2-135m')
  add = parser.add_argument_group('rewrite').add_argument
  add('--model', default='smollm2-135m', help='a decoder: a folder or a name')
  add('--prompts', type=positive, default=8, help='queries of a step')
  add('--samples', type=positive, default=8, help='rewrites of each query')
  add('--prompt-len', type=positive, default=24, help='tokens of a prompt')
  add('--new', type=positive, default=16, help='tokens of a rewrite')
  add('--documents', type=positive, default=7000, help=f'pages of {WORDS} words that are searched')
  add('--beta', type=float, default=0.02, help='weight of the divergence; 0: no reference')
  add('--precision', default='auto', help='ours: auto, float32, bfloat16_dots or bfloat16')
  add('--steps', type=positive, default=1, help='steps of a turn')
  add('--rounds', type=positive, default=3, help='turns of each side, whose median is shown')
  add('--apart', action='store_true', help=(
    'start a process per turn and side, for memory that cannot hold all sides'))  # fmt: skip
  _compare.add_peers(add, _compare.TORCH)
  add('--json', action='store_true', help='also print the answer as one last line of JSON')
  return parser.parse_args(argv)


def section(args: argparse.Namespace):
  """The section `rewrite` of a config for the work."""
  from disranker_jax.rewriting.stages import rewrite

  return settings.build(
    rewrite.SETTINGS, prompts=args.prompts, samples=args.samples, max_new=args.new, beta=args.beta,
    reward='bm25', learning_rate=1e-6, max_grad_norm=1.0, trainable='.*',
  )  # fmt: skip


class Prompts:
  """A prompt is ids, which are also the words of its query; so are the words of a rewrite."""

  def __call__(self, query: str) -> list[int]:
    return [int(word[1:]) for word in query.split()]

  def texts(self, rows, think: bool = False) -> list[str]:
    return [' '.join(f'w{i}' for i in row) for row in rows]


@dataclasses.dataclass
class Work:
  """What both sides do: queries, each with one right page, and the reward of their rewrites."""

  args: argparse.Namespace
  vocabulary: int

  def __post_init__(self):
    rng = np.random.default_rng(0)
    share = np.cumsum(1 / np.arange(1, self.vocabulary - RESERVED + 1))

    def ids(*shape: int) -> np.ndarray:
      """Drawn by Zipf's law."""
      return RESERVED + np.searchsorted(share, rng.uniform(0, share[-1], shape))

    texts = Prompts().texts(ids(self.args.documents, WORDS).tolist())
    self.documents = [Document(f'd{i}', '', text) for i, text in enumerate(texts)]
    count = self.args.prompts * 64
    queries = Prompts().texts(ids(count, self.args.prompt_len).tolist())
    right = rng.integers(0, len(self.documents), count)
    self.queries = [
      Query(f'q{i}', text, (self.documents[page],))
      for i, (text, page) in enumerate(zip(queries, right.tolist(), strict=True))
    ]

  def reward(self) -> Reward:
    ranking = Ranking(BM25(self.documents), self.documents, 'append', 2)
    return Reward({'bm25': (1.0, ranking)})


class Clock:
  """Seconds of calls, by part."""

  def __init__(self):
    self.seconds = dict.fromkeys(PARTS, 0.0)

  def timed(self, part: str, call: Callable) -> Callable:
    def wrapped(*arguments):
      begin = time.perf_counter()
      found = call(*arguments)
      self.seconds[part] += time.perf_counter() - begin
      return found

    return wrapped


class Side(_side.Side):
  """A side's turns. `step(clock)` is a whole step, `first_tokens()` writes one token a sample."""

  def first(self) -> None:
    self.step(Clock())
    self.first_tokens()

  def warm(self) -> dict:
    self.step(Clock())
    return {}

  def turn(self) -> dict:
    clock, steps = Clock(), self.args.steps
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      self.step(clock)
    row = {'seconds': time.perf_counter() - begin, 'cpu_s': time.process_time() - cpu}
    # Not in the time of a step: what a step writes shows no border between prefill and decoding.
    begin = time.perf_counter()
    for _ in range(steps):
      self.first_tokens()
    prefill = time.perf_counter() - begin
    parts = clock.seconds | {'prefill': prefill, 'decode': clock.seconds['decode'] - prefill}
    tokens = self.args.prompts * self.args.samples * self.args.new * steps
    return row | {
      'tokens': tokens, 'places': tokens, 'steps': steps,
      'parts': {name: seconds / steps for name, seconds in parts.items()},
    }  # fmt: skip


class Ours(Side):
  """The stage's own sampler, feed of rollouts and compiled step."""

  def open(self) -> None:
    import jax

    from disranker_jax.devices import sharding
    from disranker_jax.models import hf, load, network
    from disranker_jax.rewriting import packed
    from disranker_jax.rewriting.policy import PolicyLoss
    from disranker_jax.rewriting.rollouts import Rollouts
    from disranker_jax.rewriting.sampling import Sampler
    from disranker_jax.training import optimizer, train

    args, c = self.args, section(self.args)
    net = network.from_hf(self.folder, head='lm', precision=load.precision(args.precision))
    self._mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
    variables = sharding.put(hf.load(self.folder, net, jax.random.key(0)), self._mesh)
    if packed.has_reference(c):
      variables |= optimizer.start(variables, c.trainable)
    most = args.prompt_len + args.samples * args.new
    shape = packed.shape_of(c, net, args.prompt_len, most, self._mesh)
    work = Work(args, net.config.vocab)

    def sampler(new: int) -> Sampler:
      """No token ends a rewrite, as on the other side."""
      return Sampler(net, self._mesh, {-1}, c.prompts, args.prompt_len, new, c.samples)

    self._first, self.clock = sampler(1), Clock()
    watched = Watched(self, 'decode', sampler(c.max_new)), Watched(self, 'reward', work.reward())
    self._feed = Rollouts(
      c, work.queries, Prompts(), watched[1], watched[0], shape, self._mesh, seed=0
    )
    program = train.Program(
      PolicyLoss(net, c, shape.facts), c, 1000, variables, self._feed.shapes(), self._feed.blocks,
      self._mesh,
    )  # fmt: skip
    self._trained, self._frozen = (
      sharding.put(x, self._mesh) for x in optimizer.split(variables, c.trainable)
    )
    self._state, self._compiled = program.start(self._trained), program.lower().compile()
    self._flags = sharding.flags(self._mesh, stop=False, failed=False)
    prompt = Prompts()
    self._prompts = [prompt(query.text) for query in work.queries[: c.prompts]]

  def step(self, clock: Clock) -> None:
    import jax

    self.clock, inside = clock, ('decode', 'reward')
    before, begin = sum(map(clock.seconds.get, inside)), time.perf_counter()
    batches, _ = jax.block_until_ready(self._feed.next(self._variables()))
    spent = time.perf_counter() - begin
    clock.seconds['reference'] += spent - (sum(map(clock.seconds.get, inside)) - before)
    clock.timed('update', self._update)(batches)

  def _update(self, batches) -> None:
    import jax

    self._trained, self._state, metrics = self._compiled(
      self._trained, self._state, self._frozen, batches, self._flags
    )
    jax.block_until_ready(self._trained)
    assert float(metrics['length']) == self.args.new, metrics['length']

  def first_tokens(self) -> None:
    from disranker_jax.training import optimizer

    self._first(optimizer.own(self._variables()), self._prompts, range(len(self._prompts)), 0)

  def _variables(self) -> dict:
    from disranker_jax.models import tree

    return tree.unflatten(self._trained | self._frozen)


@dataclasses.dataclass
class Watched:
  """A sampler or a reward as the feed calls it, whose time is a part of the present step."""

  side: Ours
  part: str
  call: Callable

  @property
  def network(self):
    return self.call.network

  def __call__(self, *given):
    return self.side.clock.timed(self.part, self.call)(*given)


def open_side(name: str, argv: list[str], folder: Path) -> Side:
  args = parse_args(argv)
  if name == 'ours':
    return Ours(args)
  from benchmarks import _grpo_torch

  return _grpo_torch.Torch(args, bf16=name == 'torch_bf16')


def parts_of(rows: list[dict]) -> dict[str, float]:
  """The median seconds of each part."""
  return {name: statistics.median(row['parts'][name] for row in rows) for name in PARTS}


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  weights.find(args.model)  # here, because it may print progress
  sides = ['ours', *_compare.peers(args, _compare.TORCH)]
  turns, facts = _worker.in_turn('rewrite', sides, argv, Path('.'), args.rounds, args.apart)
  answer = {'bench': 'rewrite'} | _figures.answer(turns, facts)
  decoded = args.prompts * args.samples * (args.new - 1)
  rows = []
  for name, side in answer['sides'].items():
    parts = parts_of(turns[name])
    side |= {'parts_s': parts, 'decoded_per_s': decoded / max(parts['decode'], 1e-9)}
    ratios = [side.get(key) for key in ('first_is_faster', 'first_is_cheaper')]
    rows.append([
      name, *(f'{parts[part]:.2f}' for part in PARTS), f'{side["step_s"]:.2f}',
      f'{side["decoded_per_s"]:,.0f}', f'{side["first_s"]:.1f}',
      f'{side["memory_bytes"] / 1e9:.2f}',
      *('{median:.2f} ({low:.2f} to {high:.2f})'.format(**r) if r else '' for r in ratios),
    ])  # fmt: skip
  print(
    f'GRPO with {args.model}: {args.prompts} prompts of {args.prompt_len} tokens, {args.samples} '
    f'samples each of {args.new} tokens, {args.documents:,} pages, all parameters are trained; '
    f'{processor.described()}; medians of {args.rounds} turns, in seconds'
  )
  heads = ['side', *PARTS, 'step', 'decoded tokens/s', 'first step s', 'memory GB']
  print(tables.markdown([*heads, 'ours is faster', 'in CPU time'], rows))
  print(
    'prefill has the first token of each sample; reference has the packing of the batch; a step '
    'is the sum of the parts.'
  )
  for name in sides:
    if 'failed' in facts[name]:
      print(f'{name} failed: {facts[name]["failed"]}')
  if args.json:
    print(json.dumps(_figures.short(answer)))
