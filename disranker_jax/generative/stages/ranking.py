"""What the stages align and ltrgr share: a retriever learns to rank the pages that it found."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.config.settings import Key, Section, at_least, between
from disranker_jax.data.batches import EncodedGroup, Shape, first_fit, units_of
from disranker_jax.data.holdout import normalized
from disranker_jax.data.pool import bundled
from disranker_jax.data.records import UNJUDGED, Click
from disranker_jax.data.streams import Training
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.generative.examples import (
  Drawn,
  Encoder,
  Example,
  ExamplePage,
  Material,
  document,
  mean_best,
)
from disranker_jax.generative.ngrams import VALUES, PageLoss
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.records import VIEWS
from disranker_jax.generative.stages import refresh, retrieve
from disranker_jax.models.load import TextModel, open_model
from disranker_jax.pipeline.stage import Use, Writing
from disranker_jax.progress import amount, part_of, say
from disranker_jax.stages import held_out, prepare, roles, room
from disranker_jax.stages.held_out import LOSS, TAU
from disranker_jax.training import train
from disranker_jax.training.feed import OfflineFeed
from disranker_jax.training.validation import Forward

ROLE = 'retriever'
# Where the parameters come from, and what else is read.
READS = ('prepare', 'index', 'memorise', 'retrieve', 'score')
# For the estimate of a stage's time: tokens of an n-gram, and of prompts and texts to write.
NGRAM, OTHERS = 7, 100
SHORTEST = 4  # tokens of an n-gram's document that it does not share, where all are short


@dataclasses.dataclass(frozen=True)
class Method:
  """How a stage learns from examples; `c` is its section of the config.

  stage     its name
  pages     c -> pages of a query in a step, at most
  rank      c -> the loss on page scores, see PageLoss
  draw      (c, written, example, rng, size) -> Drawn; see Material for `written`. size: None, or
            page -> its size; then the largest pages are taken where others are drawn at random
  usable    (c, example) -> whether the example has anything to rank
  left_out  why an example is not usable, for messages
  names     of what is measured on held-out queries
  without   what to do without the stage, for messages; '' if that is no remedy
  """

  stage: str
  pages: Callable
  rank: Callable
  draw: Callable
  usable: Callable
  left_out: str
  names: tuple[str, ...]
  without: str = ''

  def settings(self, config):
    return config[self.stage]

  def task(self, config, network, scale: float = 1.0) -> train.Task:
    """The loss and the batch shape; `scale` is known when the examples are."""
    c, model = self.settings(config), config[ROLE]
    # Whatever `share_prefixes` says: it must not decide what is in a batch.
    shares = dataclasses.replace(network, share_prefixes=True).shares(model.row_len)
    if shares:  # a TPU's fast kernel has no gradient for texts that share their first tokens
      network = dataclasses.replace(network, attention='xla')
    pages = self.pages(c)
    shape = Shape(
      c.batch_rows, model.row_len, pages * c.ngrams + len(VIEWS), predicted=model.row_len,
      shares=shares, values=VALUES, shortest=SHORTEST if shares else Shape.shortest,
    )  # fmt: skip
    exponent, generation = config.retrieve.exponent, c.generation
    return train.Task(PageLoss(network, self.rank(c), pages, scale, exponent, generation), shape)

  def check_room(self, config, models: Mapping[str, TextModel]) -> None:
    """Warns before anything trains if a query may not fit into a batch with all its n-grams.

    It is no error, since the n-grams that will be found may be fewer and shorter.
    """
    c, model = self.settings(config), models[ROLE]
    if c.batch_rows % c.data_shards:
      return  # which is an error of the step itself
    block = self.block(config, model)
    if (rows := rows_for(self.largest(config, model), block)) > block.rows:
      say(
        f'warning: {room.described(self.stage, c, block)}, and the n-grams of a query with the '
        f'texts of its page can take {amount(rows, "row")}; {self.advice(c, rows)}. If those that '
        f'retrieve finds do not fit, {self.stage} ends before its first step'
      )

  def refuse_large(
    self, run, model: TextModel, material: Material, examples: Sequence[Example]
  ) -> None:
    """Raises: UserError before the first step if a query does not fit with its largest pages.

    Args:
      examples: those that are learned; held-out ones are not packed by query.
    """
    c, block = self.settings(run.config), self.block(run.config, model)
    if rows_for(self.largest(run.config, model), block) <= block.rows:
      return
    encode, large, rows = self.encoder(run.config, material), [], 0
    for example in examples:
      needed = rows_for(encode(self.largest_draw(c, material, example)), block)
      rows = max(rows, needed)
      large += [example.query] * (needed > block.rows)
    if large:
      raise UserError(
        f'{room.unfit(self.stage, c, block, large, len(examples))} with the n-grams of '
        f'{"its" if len(large) == 1 else "their"} largest pages; {self.advice(c, rows)}'
      )

  def largest_draw(self, c, material: Material, example: Example) -> Drawn:
    """What a step may draw of a query, with the pages that have the most tokens."""

    def tokens(page: ExamplePage) -> int:
      return sum(len(match.ngram.tokens) for match in page.matches[: c.ngrams])

    return self.draw(c, material.written, example, rng_of(example.query), tokens)

  def block(self, config, model: TextModel) -> Shape:
    """What a query must fit into."""
    return self.task(config, model.network).shape.block(self.settings(config).data_shards)

  def advice(self, c, rows: int) -> str:
    fewer = ' or '.join(f'{name}={c[name]}' for name in ('documents', 'ngrams') if name in c)
    return f'set config.{self.stage}.batch_rows={rows * c.data_shards}, or lower its {fewer}'

  def largest(self, config, model: TextModel) -> EncodedGroup:
    """The most that a step takes of a query: nothing is shared but the prompts of the views."""
    c, asked = self.settings(config), Prompts(model)
    lengths = {view: asked.length(view) for view in model.settings.views}
    most = max(lengths, key=lengths.get)
    pages = min(self.pages(c), config.retrieve.depth)
    ngrams = pages * min(c.ngrams, config.retrieve.matches)
    views = [*lengths, *[most] * ngrams]
    prompts = {view: [i] * asked.longest for i, view in enumerate(lengths)}
    docs = [document(prompts[v], [len(views) + n] * lengths[v]) for n, v in enumerate(views)]
    values = np.zeros(len(docs), np.float32)
    return EncodedGroup(docs, values, values, 'the largest one')

  def uses(self, config) -> tuple[Use, ...]:
    """The retriever, about how many tokens of it the stage learns, and what it searches."""
    c, settings = self.settings(config), config[ROLE]

    step = c.batch_rows * settings.row_len * c.gradient_accumulation_steps

    def tokens(run) -> tuple[float, str]:
      queries = len(retrieve.queries(run))
      total = c.epochs * queries * (self.pages(c) * c.ngrams * NGRAM + OTHERS)
      total = min(total, c.max_steps * step) if c.max_steps else total
      return total, f'{amount(queries, "query", "queries")}, {c.epochs:g} times'

    def writes(run, model: TextModel) -> tuple[Writing, str]:
      times = int((tokens(run)[0] / step - 1) // c.refresh) if c.refresh else 0
      if times < 1:
        return [], ''
      each = retrieve.writing(config, model, len(retrieve.queries(run)))
      return [(beams, times * count) for beams, count in each], f'searched {amount(times, "time")}'

    opened = functools.partial(open_model, settings, 'lm')
    return (Use(ROLE, ROLE, opened, c.batch_rows, tokens=tokens, writes=writes),)

  def drawing(self, config, material: Material) -> Callable[[Example, np.random.Generator], Drawn]:
    return functools.partial(self.draw, self.settings(config), material.written)

  def encoder(self, config, material: Material) -> Encoder:
    return Encoder(material, config.retrieve, self.settings(config).ngrams)

  def job(
    self, run, model: TextModel, material: Material, examples: Sequence[Example], scale: float
  ) -> tuple[train.Job, OfflineFeed]:
    """The stage on some examples. What is learned of each is drawn again in every epoch."""
    task = self.task(run.config, model.network, scale)
    encode, draw = self.encoder(run.config, material), self.drawing(run.config, material)
    todo, feed = roles.job(run, self.stage, task, examples, encode, draw, unit='pages')
    if every := self.settings(run.config).refresh:

      def data_of(examples: Sequence[Example]) -> Training:
        return roles.training_data(run, self.stage, task, examples, encode, draw)

      usable = functools.partial(self.usable, self.settings(run.config))
      finder = refresh.Finder(run, self.stage, model, material, examples, usable)
      feed = refresh.RefreshedFeed(feed, run.mesh, every, data_of, finder.find, finder.stored)
    return todo, feed

  def measure(
    self, run, model: TextModel, material: Material, examples: Sequence[Example], scale: float
  ) -> 'PageMeasure | None':
    """The held-out loss; None without any example."""
    if not examples:
      return None
    task = self.task(run.config, model.network, scale)
    encode, draw = self.encoder(run.config, material), self.drawing(run.config, material)
    groups = [encode(draw(example, rng_of(example.query))) for example in examples]
    return PageMeasure(run, task, groups, self.names)

  def execute(self, run) -> dict:
    """Trains the retriever from the parameters of memorise; results for the manifest."""
    model = open_model(run.config[ROLE], 'lm')
    found = open_material(run, model)
    usable = self.select(run.config, found.examples)
    split = held_out.split(run, self.stage, usable, query=as_click, fix=more_held_out(run))
    self.refuse_large(run, model, found, split.learned)
    scale = mean_best(split.learned, self.settings(run.config).ngrams)
    todo, feed = self.job(run, model, found, split.learned, scale)
    measured = self.measure(run, model, found, split.measured, scale)
    checked = held_out.validation(self.stage, todo, measured)
    variables = roles.trained(run, ROLE, model, ('memorise',), trains=self.stage)
    train.fit(todo, feed, variables, run.mesh, checked)
    counts = {'rows': len(split.learned), 'left_out': len(found.examples) - len(usable)}
    return counts | {'scale': scale} | held_out.results(todo, checked)

  def select(self, config, examples: Sequence[Example]) -> held_out.Subset:
    """The examples that have something to rank; says how many others there are.

    Raises: UserError if there is none.
    """
    c = self.settings(config)
    kept = [i for i, example in enumerate(examples) if self.usable(c, example)]
    out = len(examples) - len(kept)
    if not kept:
      raise UserError(
        f'{self.stage}: nothing to learn from: {self.left_out} in any of the '
        f'{amount(len(examples), "query", "queries")}; look at the results of the stages retrieve '
        f'and score, and at the labels of config.data.judgements{self.without}'
      )
    if out:
      said = part_of(out, len(examples), 'query', 'queries', 'is', 'are')
      say(f'{self.stage}: {said} left out: {self.left_out}')
    return held_out.Subset(examples, np.array(kept, np.int32))


def rows_for(group: EncodedGroup, block: Shape) -> int:
  """Rows that the documents of a query take in an empty block."""
  lengths = [len(unit) for unit, _ in units_of(group, block)]
  least = -(-sum(lengths) // block.row_len)
  longest = max(block.row_len, *lengths)  # one longer than a row is an error of its own
  return next(n for n in itertools.count(least) if first_fit(lengths, [longest] * n) is not None)


def open_material(run, model: TextModel) -> Material:
  """What the stages before this one have written."""
  from disranker_jax.generative import retrieved

  return retrieved.material(run, model)


def check_records(stage: str, run) -> None:
  """Raises: UserError before the first stage if this one decides by a validation that it lacks."""
  searched = functools.partial(retrieve.queries, run)
  held_out.check_records(run, stage, 'judgements', records=searched, fix=more_held_out(run))


def more_held_out(run) -> str:
  """What gives more held-out queries, for messages."""
  most = run.config.retrieve.queries
  if not most or most >= len(prepare.records(run, 'judgements')):
    return held_out.RAISE
  return f'{held_out.RAISE}, or config.retrieve.queries={most} (0: all)'


def as_click(example: Example) -> Click:
  """An example as the held-out queries are chosen by."""
  return Click(example.query, '', '')


def rng_of(query: str) -> np.random.Generator:
  """The draws of a held-out query, the same at every validation."""
  return np.random.default_rng(int(held_out.salted(normalized(query)) * 2**32))


class PageMeasure:
  """The held-out loss, and how well the order of pages agrees with the targets; a Measure."""

  labelled, made_of = 0, ''

  def __init__(self, run, task: train.Task, groups: list[EncodedGroup], names: tuple[str, ...]):
    shape = dataclasses.replace(task.shape, docs=1, values=())
    self._forward = Forward(task.loss.logprobs, documents(groups, shape), shape, run.mesh)
    self._batch, self._loss, self._finish = stacked(groups), task.loss, jax.jit(self._values)
    self.names, self.batches, self.queries = names, self._forward.batches, len(groups)

  def __call__(self, variables: dict) -> dict[str, float]:
    sums_GN, counts_GN = np.zeros((2, *self._batch['mask_GN'].shape), np.float32)
    for rows, (sums, counts) in self._forward(variables):
      for row, place in rows:
        sums_GN[place], counts_GN[place] = sums[row, 0], counts[row, 0]
    loss, scores_GD, targets_GD, mask_GD = jax.device_get(self._finish(sums_GN, counts_GN))
    values = {LOSS: float(loss)}
    if TAU in self.names:
      ours, theirs = (
        {g: dict(enumerate(row[real].tolist())) for g, (row, real) in enumerate(rows)}
        for rows in (zip(x, mask_GD, strict=True) for x in (scores_GD, targets_GD))
      )
      values[TAU] = metrics.mean_tau(ours, theirs)
    return values

  def _values(self, sums_GN, counts_GN):
    batch = {key: jnp.asarray(value) for key, value in self._batch.items()}
    total, queries, _ = self._loss.of_logprobs(sums_GN, counts_GN, batch)
    return total / queries, self._loss.scores(sums_GN, batch), *self._loss.targets(batch)


def documents(groups: list[EncodedGroup], shape: Shape):
  """(bundle, places of its documents as (query, document)) of all queries."""
  for g, group in enumerate(groups):
    for bundle, numbers in bundled(group.docs, shape, group.name):
      yield bundle, [(g, n) for n in numbers]


def stacked(groups: list[EncodedGroup]) -> dict[str, np.ndarray]:
  """What a batch of all queries knows of its documents, without their tokens."""
  shape = len(groups), max(len(group.docs) for group in groups)
  names = ('labels', 'teacher', *VALUES)
  batch = {f'{name}_GN': np.zeros(shape, np.float32) for name in names}
  batch |= {'mask_GN': np.zeros(shape, bool), 'labels_GN': np.full(shape, UNJUDGED, np.float32)}
  for g, group in enumerate(groups):
    n = len(group.docs)
    batch['mask_GN'][g, :n] = True
    rows = {'labels': group.labels, 'teacher': group.teacher, **group.values}
    for name, values in rows.items():
      batch[f'{name}_GN'][g, :n] = values
  return batch


SETTINGS: Section = {
  'ngrams': Key(8, between(1, 1000), 'N-grams of a page that make its score in training, at most.'),
  'generation': Key(
    1.0, at_least(0), "Weight of the next-token loss on the relevant page's title, text and query."
  ),
  'refresh': Key(
    0, at_least(0),
    'Search for the training queries again every so many steps, with the retriever as it is then; '
    '0: never. Pages that the teacher has not scored are not ordered by it.',
  ),
}  # fmt: skip
