"""The stage that teaches the retriever to write pages: query -> title, n-gram, pseudo-query."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from disranker_jax.config.settings import Key, Section, at_least
from disranker_jax.data import batches
from disranker_jax.data.batches import EncodedGroup
from disranker_jax.data.records import Click
from disranker_jax.errors import UserError
from disranker_jax.generative import pages as collection
from disranker_jax.generative import prompts
from disranker_jax.generative.lessons import Drawn, Lesson, Lessons, Teaching
from disranker_jax.generative.pages import Pages
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.stages import index
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import amount, part_of, say
from disranker_jax.stages import documents, held_out, held_out_measures, prepare, roles
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


def on_pages(clicks: Sequence[Click], is_page: Callable[[Click], bool]) -> held_out.Subset:
  """The clicks on pages of the collection."""
  return held_out.Subset(clicks, np.flatnonzero([is_page(click) for click in clicks]))


def lessons(run, teaching: Teaching, clicks: Sequence[Click]) -> Lessons:
  c = run.config.memorise
  rows = {view: c[f'{view}_rows'] for view in teaching.views}
  asked = [(click.query, page_of(teaching.pages, click)) for click in clicks]
  return Lessons(len(teaching.pages), asked, rows, c.page_rows)


def page_of(pages: Pages, click: Click) -> int | None:
  return pages.find(click.title, click.summary)


def measured(teaching: Teaching, clicks: Sequence[Click]) -> Iterator[EncodedGroup]:
  """One lesson per view of each held-out click, always the same ones."""
  for i, click in enumerate(clicks):
    for view in teaching.views:
      lesson = Lesson(click.query, page_of(teaching.pages, click), view)
      drawn = teaching.draw(lesson, np.random.default_rng(i))
      if len(drawn.target):
        yield encode(teaching, drawn)


def execute(run: Run) -> dict:
  model = index.open_retriever(run.config)
  pages, _ = index.load(run)
  teaching = Teaching.of(pages, Prompts(model))
  variables = roles.trained(run, 'retriever', model, (), trains='memorise')
  every = prepare.records(run, 'clicks')
  clicks = on_pages(every, lambda click: page_of(pages, click) is not None)
  if lost := len(every) - len(clicks):
    where = 'on a page' if lost == 1 else 'on pages'
    said = part_of(lost, len(every), 'click', 'clicks', 'is', 'are')
    say(f'memorise: {said} {where} that the collection lacks')
  if cut := teaching.prompts.cut([click.query for click in clicks]):
    say(f'memorise: {cut}')
  split = held_out.split(run, 'memorise', clicks)
  computed, learned = task(run.config, model.network), lessons(run, teaching, split.learned)
  todo, feed = roles.job(
    run, 'memorise', computed, learned, functools.partial(encode, teaching), teaching.draw,
    unit='rows',
  )  # fmt: skip
  checks = list(measured(teaching, split.measured))
  measure = (
    held_out_measures.MeanLoss(run, computed.loss, checks, computed.shape) if checks else None
  )
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


def check_records(run: Run) -> None:
  """Raises: UserError, before anything trains, for clicks that nothing can be learned from."""
  clicks = prepare.records(run, 'clicks')
  docs = documents.read(run.config, least=1)
  keys = {collection.key(doc.title, doc.summary) for doc in docs}

  def is_page(click: Click) -> bool:
    return collection.key(click.title, click.summary) in keys

  if len(clicks) and not any(map(is_page, clicks)):
    raise UserError(
      f'config.data.clicks={run.config.data.clicks!r}: none of the clicked pages is in '
      f'{documents.address(run.config)}; title and text of a click have to be those of its page'
    )
  held_out.check_records(run, 'memorise', 'clicks', records=lambda: on_pages(clicks, is_page))


def tokens(run: Run) -> tuple[float, str]:
  """(tokens of all steps, what they are), for the estimate."""
  c, s = run.config.memorise, run.config.retriever
  rows = sum(c[f'{view}_rows'] for view in s.views)
  count = len(prepare.records(run, 'clicks')) * rows
  if c.page_rows:
    count += len(documents.read(run.config, least=1)) * c.page_rows
  count *= c.epochs
  return count * s.max_len * 0.7, amount(round(count), 'row')


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
  reads_records=lambda config: ('clicks',), head=lambda config: 'lm', task=task, unit='rows',
  check_records=check_records,
)  # fmt: skip
