"""The stage that teaches the retriever to write pages: query -> title, n-gram, pseudo-query."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from disranker_jax.config.settings import Key, Section, at_least
from disranker_jax.data import batches
from disranker_jax.data.batches import EncodedGroup
from disranker_jax.data.records import Click
from disranker_jax.errors import UserError
from disranker_jax.generative import prompts
from disranker_jax.generative.lessons import Drawn, Lesson, Lessons, Teaching
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.stages import index
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import say
from disranker_jax.stages import held_out, prepare, roles
from disranker_jax.stages.cpt import next_token_loss
from disranker_jax.training import train
from disranker_jax.training.settings import training


def task(config, network) -> train.Task:
  """The loss and the batch shape of the stage."""
  row_len = config.retriever.row_len
  # A prompt is about as long as what follows it.
  shape = batches.Shape(config.memorise.batch_rows, row_len, 1, row_len * 3 // 4)
  return train.Task(functools.partial(next_token_loss, network), shape)


def encode(teaching: Teaching, drawn: Drawn) -> EncodedGroup:
  text = teaching.prompts.encoded(drawn.query, drawn.view, drawn.target)
  return EncodedGroup.alone(text, drawn.query)


def asked(run, teaching: Teaching, clicks: Sequence[Click]) -> list[tuple[str, int]]:
  """(query, the clicked page), for clicks on pages of the collection."""
  found = [(click.query, teaching.pages.find(click.title, click.summary)) for click in clicks]
  known = [(query, page) for query, page in found if page is not None]
  if lost := len(found) - len(known):
    say(f'memorise: {lost:,} of {len(found):,} clicks are on pages that the collection lacks')
  if found and not known:
    raise UserError(
      'config.data.clicks: none of the clicked pages is in config.data.documents; title and text '
      'of a click have to be those of its page'
    )
  return known


def lessons(run, teaching: Teaching, clicks: Sequence[Click]) -> Lessons:
  c = run.config.memorise
  rows = {view: c[f'{view}_rows'] for view in teaching.views}
  return Lessons(len(teaching.pages), asked(run, teaching, clicks), rows, c.page_rows)


def measured(run, teaching: Teaching, clicks: Sequence[Click]) -> Iterator[EncodedGroup]:
  """One lesson per view of each held-out click, always the same ones."""
  for i, (query, page) in enumerate(asked(run, teaching, clicks)):
    for view in teaching.views:
      drawn = teaching.draw(Lesson(query, page, view), np.random.default_rng(i))
      if len(drawn.target):
        yield encode(teaching, drawn)


def execute(run: Run) -> dict:
  model = index.open_retriever(run.config)
  pages, _ = index.load(run)
  teaching = Teaching.of(pages, Prompts(model))
  variables = roles.trained(run, 'retriever', model, (), trains='memorise')
  split = held_out.split(run, 'memorise', prepare.records(run, 'clicks'))
  computed, learned = task(run.config, model.network), lessons(run, teaching, split.learned)
  todo, feed = roles.job(
    run, 'memorise', computed, learned, functools.partial(encode, teaching), teaching.draw,
    unit='rows',
  )  # fmt: skip
  checks = list(measured(run, teaching, split.measured)) if split.measured else []
  measure = held_out.MeanLoss(run, computed.loss, checks, computed.shape) if checks else None
  checked = held_out.validation('memorise', todo, measure)
  train.fit(todo, feed, variables, run.mesh, checked)
  return {'rows': len(learned)} | held_out.results(todo, checked)


def check(config) -> None:
  held_out.check(config, 'memorise', ('loss',))
  c = config.memorise
  if not c.page_rows and not any(c[f'{view}_rows'] for view in config.retriever.views):
    raise UserError(
      'config.memorise: learns nothing, since page_rows and the rows of all views are 0'
    )


def tokens(run: Run) -> tuple[float, str]:
  """(tokens of all steps, what they are), for the estimate."""
  c, s = run.config.memorise, run.config.retriever
  rows = sum(c[f'{view}_rows'] for view in s.views)
  count = len(prepare.records(run, 'clicks')) * rows
  if c.page_rows:
    count += len(index.documents.read(run.config, least=1)) * c.page_rows
  count *= c.epochs
  return count * s.max_len * 0.7, f'{count:,.0f} rows'


def uses(config) -> tuple[Use, ...]:
  opened = functools.partial(index.open_retriever, config)
  return (Use('retriever', 'retriever', opened, config.memorise.batch_rows, tokens=tokens),)


SETTINGS: Section = {
  **training(),
  'title_rows': Key(1, at_least(0), 'How often a query learns the title of its page, per epoch.'),
  'body_rows': Key(2, at_least(0), 'How often it learns an n-gram, each time a new one.'),
  'query_rows': Key(1, at_least(0), 'How often it learns a pseudo-query of its page.'),
  'page_rows': Key(
    1, at_least(0),
    'Rows of every page: a piece or a pseudo-query of it is the prompt, and another view follows.',
  ),
}  # fmt: skip


STAGE = Stage(
  'memorise', 'the retriever learns to write pages', execute, SETTINGS, check=check,
  check_models=lambda config, models: prompts.check_model(models['retriever']), role='retriever',
  uses=uses, reads_stages=('prepare', 'index'),
  requires=lambda config: {'memorise': ('prepare', 'index')},
  reads_records=lambda config: ('clicks',), head=lambda config: 'lm', task=task, unit='lessons',
)  # fmt: skip
