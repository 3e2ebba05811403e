"""The stage in which the retriever finds pages for the training queries, with their n-grams.

The teacher then scores these pages, and the stages ltrgr and align learn from them. What is found
is stored about once a minute, so a restart searches what is missing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

from disranker_jax import escaping
from disranker_jax.config.settings import Key, Section, at_least, between
from disranker_jax.data import store
from disranker_jax.data.records import UNJUDGED, Group
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.generative import prompts, retrieved, retriever
from disranker_jax.generative.evidence import PAGES
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.records import Found
from disranker_jax.generative.retrieved import FORMAT, Retrieved
from disranker_jax.generative.retriever import Retriever
from disranker_jax.generative.stages import index
from disranker_jax.models.load import TextModel
from disranker_jax.models.writing import Beams
from disranker_jax.pipeline.stage import Run, Stage, Use, Writing
from disranker_jax.progress import amount, part_of, say
from disranker_jax.rankers import filling
from disranker_jax.rankers import shards as shards_of
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import collection_rows, documents, prepare, roles


def open_it(run, hits: int, stages: tuple[str, ...] = ('memorise',)) -> Retriever:
  """The retriever that some stages trained, in order; it finds `hits` pages of a query."""
  model = index.open_retriever(run.config)
  variables = roles.trained(run, 'retriever', model, stages, trains='')
  pages, suffixes = index.load(run)
  watchdog_s = run.config.watchdog_s
  return Retriever(
    model, variables, pages, suffixes, run.config.retrieve, run.mesh, hits, watchdog_s
  )


def queries(run) -> Sequence[Group]:
  """The labelled training queries, at most `retrieve.queries` of them."""
  records = prepare.records(run, 'judgements')
  most = run.config.retrieve.queries
  return [records[i] for i in range(min(len(records), most or len(records)))]


def open_shards(run, count: int, made: dict | None = None) -> Shards:
  return Shards(run.folder('retrieve') / 'shards', count, made, FORMAT)


def maker(run, model: TextModel) -> dict:
  """What the pages of a query depend on apart from the query: in every shard's note."""
  c = run.config.retrieve
  names = (name for name, key in retriever.SETTINGS.items() if key.affects_results)
  trained = [stage for stage in ('index', 'memorise') if stage in run.config.stages]
  return {
    **roles.made_by(run, 'retriever', model, trained),
    **{name: c[name] for name in (*names, 'matches', 'depth')},
  }


def execute(run: Run) -> dict:
  groups = queries(run)
  retriever = index.open_retriever(run.config)
  if cut := Prompts(retriever).cut([group.query for group in groups]):
    say(f'retrieve: {cut}')
  shards = open_shards(run, len(groups), maker(run, retriever))
  facts = fill(run, groups, shards, lambda: open_it(run, run.config.retrieve.depth), 'retrieve')
  return (processes.first_alone('retrieve: finish', lambda: finish(run, groups)) or {}) | facts


def fill(
  run, groups: Sequence[Group], shards: Shards, opened: Callable[[], Retriever], label: str
) -> dict:
  """Searches the queries that are in no shard, with the retriever that `opened` gives."""
  if not (missing := filling.missing(label, shards)):
    return {}
  c, searching = run.config.retrieve, opened()
  units = shards_of.units(missing, c.batch_rows)
  found = (
    (unit, (groups[i].query_id, kept_of(run, searching, pages)), 1)
    for unit, i, pages in searching([group.query for group in groups], units)
  )
  filling.store(label, shards, units, found, 'queries', c.shard_seconds)
  rate = searching.tokens / max(searching.seconds, 1e-9)
  say(f'{label}: {rate:,.0f} tokens/s in {amount(c.beams, "beam")}')
  return {'tokens_per_s': rate}


def kept_of(run, searching: Retriever, found: Sequence[Found]) -> list[tuple[str, Found]]:
  """The pages with their document ids, each with its best matches."""
  c, ids = run.config.retrieve, searching.pages.doc_ids
  return [(ids[p.page], dataclasses.replace(p, matches=p.matches[: c.matches])) for p in found]


def finish(run, groups: Sequence[Group]) -> dict:
  """Writes the pages as prepared records for the teacher; returns how good they are.

  Raises: UserError if nothing was found.
  """
  found = list(read(run, groups))
  texts = {doc.doc_id: doc for doc in documents.read(run.config, least=1)}
  folder = run.folder('retrieve')
  records = [group for group in grouped(groups, found, texts) if group.docs]
  if not records:
    raise UserError(
      f'retrieve: no page was found for any of the {amount(len(groups), "query", "queries")}; '
      'train the stage memorise longer, or raise config.retrieve.beams'
    )
  count = store.write('candidates', records, folder / 'candidates')
  write_samples(run, groups, found)
  ranking = {one.query_id: {doc_id: p.score for doc_id, p in one.pages} for one in found}
  values = metrics.summary(metrics.per_query(
    ranking, {g.query_id: g.grades for g in groups}, 1, names=('recall@1', 'recall@20', 'mrr@10'),
  ))  # fmt: skip
  say(
    f'retrieve: {amount(len(groups), "training query", "training queries")}: recall@1 '
    f'{values["recall@1"]:.3f}, recall@20 {values["recall@20"]:.3f}'
  )
  return {
    'queries': len(groups),
    'without_pages': len(groups) - len(records),
    **{name: values[name] for name in ('recall@1', 'recall@20', 'mrr@10')},
    prepare.RETRIEVED: {'rows': count, 'fingerprint': store.fingerprint(folder / 'candidates')},
  }


def read(run, groups: Sequence[Group]) -> Iterator[Retrieved]:
  """What was found for each query, after a check that the shards have these queries."""
  shards = open_shards(run, len(groups))
  for group, one in zip(groups, retrieved.read(shards), strict=True):
    if one.query_id != group.query_id:
      raise UserError(
        f'{shards.folder}: has the query {one.query_id!r} where the records have '
        f'{group.query_id!r}; {FORMAT.again}'
      )
    yield one


def grouped(groups, found: Sequence[Retrieved], texts) -> Iterator[Group]:
  """The queries with the pages that were found, their ranks and scores, and known labels."""
  for group, one in zip(groups, found, strict=True):
    docs = tuple(
      dataclasses.replace(
        texts[doc_id], label=group.grades.get(doc_id, UNJUDGED), rank=rank, score=page.score
      )
      for rank, (doc_id, page) in enumerate(one.pages, 1)
    )
    yield Group(group.query_id, group.query, docs)


def write_samples(run, groups, found: Sequence[Retrieved]) -> None:
  """samples.md: for some queries the pages that were found, and the n-grams that found them."""
  decode = index.open_retriever(run.config).tokenizer.backend_tokenizer.decode
  step = max(1, len(groups) // max(run.config.retrieve.shown, 1))
  lines = ['# What the retriever finds for training queries', '']
  for group, one in list(zip(groups, found, strict=True))[::step][: run.config.retrieve.shown]:
    lines.append(f'- {escaping.code(group.query)}')
    for rank, (doc_id, page) in enumerate(one.pages[:5], 1):
      mark = ' (relevant)' if group.grades.get(doc_id, 0) > 0 else ''
      lines.append(f'  {rank}. {escaping.code(doc_id)}, {page.score:,.0f}{mark}')
      for match in page.matches[:4]:
        ngram = match.ngram
        lines.append(
          f'     - {ngram.view}: {escaping.code(decode(list(ngram.tokens)).strip())}, log p '
          f'{ngram.logprob:.1f}, {amount(ngram.count, "time")}, adds '
          f'{match.weight * match.coverage:,.0f}'
        )
  (run.folder('retrieve') / 'samples.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def check_rows(run: Run) -> None:
  """Raises: UserError for queries that the devices cannot share, of every stage that searches."""
  parts, rows = sharding.parts(run.mesh), run.config.retrieve.batch_rows
  if rows % parts:
    raise UserError(
      f'config.retrieve.batch_rows={rows}: must be a multiple of mesh data x fsdp = {parts}'
    )


def check_records(run: Run) -> None:
  """Raises: UserError, before anything trains, for labels and batches that cannot be used."""
  check_rows(run)
  known = {doc.doc_id for doc in documents.read(run.config, least=1)}
  collection_rows.check_judged(run, 'judgements', known, documents.address(run.config))


def kept(run) -> str:
  """How many queries have their pages on disk."""
  groups = queries(run)
  done = open_shards(run, len(groups)).kept()
  said = part_of(done, len(groups), 'query', 'queries', 'has its', 'have their')
  return f'{said} pages' if done else ''


class Expected(Sequence[Group]):
  """As many pages as retrieval can find, for estimates before it."""

  def __init__(self, run):
    self._docs = documents.read(run.config, least=1)
    self._groups, self._depth = queries(run), run.config.retrieve.depth

  def __len__(self) -> int:
    return len(self._groups)

  def __getitem__(self, i: int) -> Group:
    picks = tuple(self._docs[(i + k) % len(self._docs)] for k in range(self._depth))
    return Group(f'{i}', self._groups[i].query, picks)


def batches(config, model: TextModel) -> list[Beams]:
  """What is written for `batch_rows` queries, in each view."""
  c, asked = config.retrieve, Prompts(model)
  return [
    Beams(c.batch_rows, c.beams, asked.longest, asked.length(view)) for view in model.settings.views
  ]


def writing(config, model: TextModel, count: int) -> Writing:
  """What is written for so many queries, for the estimate."""
  times = math.ceil(count / config.retrieve.batch_rows)
  return [(beams, times) for beams in batches(config, model)]


def use(config, name: str, count: Callable[[Run], int]) -> Use:
  """A retriever that searches, under a name; `count`: run -> queries to come."""

  def writes(run: Run, model: TextModel) -> tuple[Writing, str]:
    asked = count(run)
    return writing(config, model, asked), amount(asked, 'query', 'queries')

  def largest(model: TextModel) -> Beams:
    return max(batches(config, model), key=lambda beams: beams.slots)

  rows = config.retrieve.batch_rows * config.retrieve.beams
  opened = functools.partial(index.open_retriever, config)
  return Use(name, 'retriever', opened, rows, texts=largest, writes=writes, made_of=ROWS)


def to_come(run: Run) -> int:
  """The queries whose pages are not on disk."""
  count = len(queries(run))
  return count - open_shards(run, count).kept()


def uses(config) -> tuple[Use, ...]:
  return (use(config, 'retriever', to_come),)


ROWS = ('retrieve.batch_rows', 'retrieve.beams')  # whose product is the rows of a batch
SETTINGS: Section = {
  **retriever.SETTINGS,
  'queries': Key(0, at_least(0), 'Training queries that are searched; 0: all of judgements.'),
  'depth': Key(
    20, between(2, PAGES), 'Pages of a training query that are found, and scored by the teacher.'
  ),
  'matches': Key(40, at_least(1), 'N-grams of a page that are kept, the best ones.'),
  'shown': Key(
    20, at_least(0), 'Queries whose pages are listed in samples.md.', affects_results=False
  ),
  'shard_seconds': Key(
    60.0, at_least(0), 'What is found is stored so often, each time as one shard.',
    affects_results=False,
  ),
}  # fmt: skip


STAGE = Stage(
  'retrieve', 'the retriever finds pages for training queries', execute, SETTINGS,
  check_models=lambda config, models: prompts.check_model(models['retriever']), role='retriever',
  uses=uses, reads_stages=('prepare', 'index', 'memorise'),
  requires=lambda config: {'retrieve': ('prepare', 'index')},
  reads_records=lambda config: ('judgements',), head=lambda config: 'lm', kept=kept,
  expected=Expected, check_records=check_records,
)  # fmt: skip
