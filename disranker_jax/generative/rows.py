"""The result table of DGR: every row searches the whole collection."""

import functools
import time
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from disranker_jax.config.settings import Key, Section, at_least, text
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Group
from disranker_jax.evaluation import fusion, metrics, runs
from disranker_jax.generative.stages import index, retrieve
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.inputs import model_files
from disranker_jax.pipeline.stage import Run, Use
from disranker_jax.progress import Progress
from disranker_jax.rankers import loaded
from disranker_jax.stages import documents, evaluate, prepare
from disranker_jax.stages.result_table import Ranking, Row, Table

STAGE = 'search'
# The stages that trained each retriever, in order.
TRAINED = {
  'memorised': ('memorise',),
  'ltrgr': ('memorise', 'ltrgr'),
  'aligned': ('memorise', 'align'),
}
TITLES = {
  'bm25': 'BM25',
  'memorised': 'retriever',
  'ltrgr': 'retriever, labels',
  'aligned': 'retriever, teacher',
}


def bm25(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """BM25 over the whole collection."""
  docs = documents.read(run.config, least=1)
  begin = time.monotonic()
  found = BM25(docs).each((group.query for group in groups), run.config.retrieve.hits)
  ranking = {
    group.query_id: {docs[i].doc_id: score for i, score in hits}
    for group, hits in zip(groups, found, strict=True)
  }
  return ranking, {'ms_per_query': per_query(begin, groups)}


def per_query(begin: float, groups: Sequence[Group]) -> float:
  return 1000 * (time.monotonic() - begin) / max(len(groups), 1)


def generated(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """A retriever writes n-grams, and finds the pages that have them."""
  searching = retrieve.open_it(run, TRAINED[row.name])
  ids = searching.pages.doc_ids

  def search(label: str, queries: Sequence[str]) -> list[dict[str, float]]:
    found = []
    with Progress(label, len(queries), 'queries') as progress:
      for _, i, pages in searching(queries):
        found.append({ids[page.page]: page.score for page in pages})
        progress.update(i + 1, 1)
    return found

  known = training_queries(run, searching.pages)
  learned = search(f'{STAGE} {row.name} (training)', [query for query, _ in known])
  begin = time.monotonic()
  found = search(f'{STAGE} {row.name}', [group.query for group in groups])
  facts = {
    'parameters': searching.model.network.count_params(),
    'ms_per_query': per_query(begin, groups),
  }
  if known:
    right = sum(
      metrics.ranked(scores)[:1] == [ids[page]]
      for scores, (_, page) in zip(learned, known, strict=True)
    )
    facts['note'] = (
      f'of {len(known)} training queries it finds the page of {right / len(known):.1%} first'
    )
  return {group.query_id: scores for group, scores in zip(groups, found, strict=True)}, facts


def training_queries(run: Run, pages) -> list[tuple[str, int]]:
  """Some queries that the stage memorise learned, with their pages."""
  most = run.config.search.training_queries
  if not most or 'clicks' not in prepare.kinds(run.config):
    return []
  clicks = prepare.records(run, 'clicks')
  step = max(1, len(clicks) // most)
  chosen = [clicks[i] for i in range(0, len(clicks), step)][:most]
  found = [(click.query, pages.find(click.title, click.summary)) for click in chosen]
  return [(query, page) for query, page in found if page is not None]


def ranking_of(run: Run, name: str, groups: Sequence[Group]) -> metrics.Run:
  """The ranking of another row: the one on disk if it is still good."""
  file, row = run.folder(STAGE) / f'{name}.run', ROWS[name]
  if name in run.config.search.models and file.exists() and evaluate.filled(run, row) is not None:
    return runs.read_run(file)
  return row.rank(run, row, groups)[0]


def reranked(base: str, run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """The best pages of another row, ordered by a cross-encoder; the others stay behind them."""
  c = run.config.search
  before = ranking_of(run, base, groups)
  texts = {doc.doc_id: doc for doc in documents.read(run.config, least=1)}
  ranker, begin, ranking = loaded.load(c.reranker), time.monotonic(), {}
  with Progress(f'{STAGE} {row.name}', len(groups), 'queries') as progress:
    for done, group in enumerate(groups, 1):
      ids = metrics.ranked(before.get(group.query_id, {}))
      best = ids[: c.rerank]
      order = ranker.rank(group.query, [texts[doc_id] for doc_id in best]) if best else []
      ids[: c.rerank] = [best[i] for i, _ in order]
      ranking[group.query_id] = {doc_id: -float(rank) for rank, doc_id in enumerate(ids)}
      progress.update(done, 1)
  return ranking, {'ms_per_query': per_query(begin, groups), 'against': [base]}


def fused(base: str, run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """Another row with BM25, by reciprocal ranks."""
  ids = [group.query_id for group in groups]
  rankings = (ranking_of(run, name, groups) for name in (base, 'bm25'))
  every = [{query_id: found.get(query_id, {}) for query_id in ids} for found in rankings]
  return fusion.fuse_runs(every, (1.0, 1.0), 'ranks'), {'against': ['bm25', base]}


def searches(config: ConfigDict) -> dict:
  """What decides how pages are found, beside the retriever's parameters."""
  return {
    'retrieve': config.retrieve.to_dict(),
    'training_queries': config.search.training_queries,
  }


def reranker_of(config: ConfigDict) -> list:
  """A fingerprint of the re-ranker."""
  return [
    config.search.reranker,
    manifest.files(model_files(loaded.locate(config.search.reranker))),
  ]


def use(name: str, config: ConfigDict) -> Use:
  rows = config.retrieve.batch_rows * config.retrieve.beams

  def tokens(run: Run) -> tuple[float, str]:
    count = len(prepare.records(run, 'test'))
    return count * retrieve.tokens_per_query(config), f'{count:,} queries'

  return Use(name, 'retriever', lambda: index.open_retriever(config), rows, tokens=tokens)


def retriever(name: str, **more) -> Row:
  """A row of a retriever."""
  return Row(
    name, TITLES[name], generated, 'retriever', stages=lambda config: TRAINED[name],
    reads_stages=('index',), trained_by=TRAINED[name][-1], reads=searches,
    used=functools.partial(use, name), **more,
  )  # fmt: skip


def derived(base: str, name: str, title: str, rank: Callable, reads: Callable, **more) -> Row:
  """A row that changes the ranking of another one."""
  trained = TRAINED.get(base, ())
  return Row(
    name, f'{TITLES[base]}, {title}', functools.partial(rank, base),
    stages=lambda config: trained, reads_stages=('index',) if trained else (),
    trained_by=trained[-1] if trained else '', fuses=(base,),
    reads=lambda config: [searches(config), reads(config)], **more,
  )  # fmt: skip


def has_reranker(config: ConfigDict) -> bool:
  return bool(config.search.reranker)


def with_reranker(base: str) -> Row:
  def reads(config):
    return [config.search.rerank, reranker_of(config)]

  return derived(base, f'{base}_reranked', 're-ranked', reranked, reads, exists=has_reranker)


def with_bm25(base: str) -> Row:
  return derived(base, f'{base}_fused', 'with BM25', fused, lambda config: None)


ROWS = {
  row.name: row
  for row in (
    Row('bm25', TITLES['bm25'], bm25, is_baseline=True, reads=lambda config: config.retrieve.hits),
    retriever('memorised', is_baseline=True),
    retriever('ltrgr', is_baseline=True, improves_on=('memorised',)),
    retriever('aligned', improves_on=('memorised', 'ltrgr')),
    *map(with_bm25, TRAINED),
    *map(with_reranker, TITLES),
  )
}
SETTINGS: Section = {
  'reranker': Key(
    '', text('an exported student or a ready reranker'),
    "Re-ranks the best pages of every row, as a row of its own; '': no such rows.",
    affects_results=False,
  ),
  'rerank': Key(20, at_least(1), 'Pages of a query that it re-ranks.', affects_results=False),
  'training_queries': Key(
    100, at_least(0),
    'Training queries that are searched too: what the retriever finds for them is what it learned '
    'by heart.', affects_results=False,
  ),
}  # fmt: skip


def check(config: ConfigDict) -> None:
  """Raises: UserError for a re-ranker that cannot be opened, before anything trains."""
  if config.search.reranker:
    loaded.check(loaded.locate(config.search.reranker))


TABLE = Table(
  STAGE, 'every retriever searches the held-out queries', ROWS, first_stage='bm25',
  subject='aligned', models=('aligned', 'ltrgr', 'memorised'), reranks=False,
  columns=('hits@1', 'hits@5', 'hits@20', 'mrr@10', 'ndcg@10'),
  kept=('hits@1', 'hits@5', 'hits@20', 'mrr@10', 'ndcg@10', 'recall@100'), main='mrr@10',
  tested=('mrr@10', 'hits@5'), costs=('ms_per_query',), settings=SETTINGS, check=check,
)  # fmt: skip
