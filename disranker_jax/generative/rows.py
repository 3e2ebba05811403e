"""The result table of DGR: every row searches the whole collection."""

import functools
import time
from collections.abc import Sequence

from ml_collections import ConfigDict

from disranker_jax.config.settings import Key, Section, at_least
from disranker_jax.data import sources
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document, Group
from disranker_jax.evaluation import metrics
from disranker_jax.generative.retriever import SETTINGS as SEARCH
from disranker_jax.generative.stages import index, retrieve
from disranker_jax.pipeline.stage import Run, Use
from disranker_jax.progress import Progress, amount
from disranker_jax.stages import collection_rows, documents, evaluate, prepare
from disranker_jax.stages.collection_rows import STAGE, per_query, with_first_stage, with_reranker
from disranker_jax.stages.result_table import Ranking, Row, Table

# The stages that trained each retriever, in order.
TRAINED = {
  'memorised': ('memorise',),
  'ltrgr': ('memorise', 'ltrgr'),
  'aligned': ('memorise', 'align'),
}


def documents_of(run: Run) -> dict[str, Document]:
  """{doc_id: document} of the collection."""
  return {doc.doc_id: doc for doc in documents.read(run.config, least=1)}


def bm25(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """BM25 over the whole collection."""
  docs = documents.read(run.config, least=1)
  ids, index = [doc.doc_id for doc in docs], BM25(docs)
  begin = time.monotonic()
  found = index.each((group.query for group in groups), run.config.search.depth)
  ranking = {
    group.query_id: {ids[i]: score for i, score in hits}
    for group, hits in zip(groups, found, strict=True)
  }
  return ranking, {'ms_per_query': per_query(begin, len(groups))}


def generated(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """A retriever writes n-grams, and finds the pages that have them."""
  searching = retrieve.open_it(run, run.config.retrieve.hits, TRAINED[row.name])
  ids = searching.pages.doc_ids

  def search(label: str, queries: Sequence[str]) -> list[dict[str, float]]:
    found = []
    with Progress(label, len(queries), 'queries') as progress:
      for _, i, pages in searching(queries):
        found.append({ids[page.page]: page.score for page in pages})
        progress.update(i + 1, 1)
    return found

  known = training_queries(run, searching.pages)
  # The first search compiles the programs, which the time of a query leaves out.
  first = [query for query, _ in known] or [group.query for group in groups[:1]]
  learned = search(
    f'{STAGE} {row.name} (training)' if known else f'{STAGE} {row.name}: compile', first
  )
  begin = time.monotonic()
  found = search(f'{STAGE} {row.name}', [group.query for group in groups])
  facts = {'ms_per_query': per_query(begin, len(groups))}
  if cut := searching.prompts.cut([group.query for group in groups]):
    facts['remark'] = cut
  if known:
    right = sum(
      metrics.ranked(scores)[:1] == [ids[page]]
      for scores, (_, page) in zip(learned, known, strict=True)
    )
    facts['note'] = (
      f'of {amount(len(known), "clicked query", "clicked queries")} it finds the page of '
      f'{right / len(known):.1%} first'
    )
  return {group.query_id: scores for group, scores in zip(groups, found, strict=True)}, facts


def training_queries(run: Run, pages) -> list[tuple[str, int]]:
  """Some clicked queries, of which memorise learned all but the held-out ones, with their pages."""
  most = run.config.search.training_queries
  if not most or 'clicks' not in prepare.kinds(run.config):
    return []
  clicks = prepare.records(run, 'clicks')
  step = max(1, len(clicks) // most)
  chosen = [clicks[i] for i in range(0, len(clicks), step)][:most]
  found = [(click.query, pages.find(click.title, click.summary)) for click in chosen]
  return [(query, page) for query, page in found if page is not None]


def check_records(run: Run) -> None:
  """Raises: UserError, before anything trains, for what no row could find or compute."""
  if any(row.trained_by for row in TABLE.rows_of(run.config).values()):
    retrieve.check_rows(run)
  collection_rows.check_judged(run, 'test', documents_of(run), documents.address(run.config))


def first_reads(config: ConfigDict) -> list:
  """The collection, and how much of it BM25 gives."""
  return [config.search.depth, sources.fingerprint(documents.address(config))]


def searches(config: ConfigDict) -> list:
  """What decides how pages are found, beside the retriever's parameters and the index."""
  found = {name: config.retrieve[name] for name in SEARCH if name != 'batch_rows'}
  return [found, config.search.training_queries]


def use(name: str, config: ConfigDict) -> Use:
  def count(run: Run) -> int:
    known = prepare.records(run, 'clicks') if 'clicks' in prepare.kinds(run.config) else ()
    learned = min(len(known), config.search.training_queries)
    return len(prepare.records(run, 'test')) + learned

  return retrieve.use(config, name, count)


def retriever(name: str, title: str, **more) -> Row:
  """A row of a retriever."""
  return Row(
    name, title, generated, 'retriever', open=index.open_retriever,
    stages=lambda config: TRAINED[name],
    reads_stages=('index',), trained_by=TRAINED[name][-1], reads=searches,
    used=functools.partial(use, name), **more,
  )  # fmt: skip


FIRST = Row('bm25', 'BM25', bm25, is_baseline=True, reads=first_reads)
RETRIEVERS = (
  retriever('memorised', 'retriever', is_baseline=True),
  retriever('ltrgr', 'retriever, labels', is_baseline=True, improves_on=('memorised',)),
  retriever('aligned', 'retriever, teacher', improves_on=('memorised', 'ltrgr')),
)
FUSED = tuple(with_first_stage(row, FIRST) for row in RETRIEVERS)
ROWS = {
  row.name: row
  for row in (
    FIRST, *RETRIEVERS, *FUSED,
    *(with_reranker(row, FIRST) for row in (FIRST, *RETRIEVERS, *FUSED)),
  )
}  # fmt: skip
SETTINGS: Section = {
  **collection_rows.SETTINGS,
  'batch_rows': Key(
    evaluate.BATCH_ROWS, at_least(1),
    'Rows per batch where export compares the folder with the retriever; retrieve.batch_rows has '
    'the queries that are searched together.', affects_results=False,
  ),
  'training_queries': Key(
    100, at_least(0),
    'Training queries that are searched too: what the retriever finds for them is what it learned '
    'by heart.', affects_results=False,
  ),
}  # fmt: skip


TABLE = Table(
  STAGE, 'every retriever searches for the held-out queries', ROWS, first_stage='bm25',
  subject='aligned', models=('aligned', 'ltrgr', 'memorised'), reranks=False,
  columns=('hits@1', 'hits@5', 'hits@20', 'mrr@10', 'ndcg@10'),
  kept=('hits@1', 'hits@5', 'hits@20', 'mrr@10', 'ndcg@10', 'recall@100'), main='mrr@10',
  tested=('mrr@10', 'hits@5', 'hits@20'), costs=('ms_per_query',), settings=SETTINGS,
  check=collection_rows.check, check_records=check_records, documents=documents_of,
  shares=collection_rows.has_reranker,  # else BM25 alone reads the collection
  addresses=documents.addresses, command='search',
  command_needs=tuple(names[-1] for names in TRAINED.values()),
)  # fmt: skip
