"""Rows of tables in which every row searches the whole collection: BM25, re-ranked, fused.

`generative/rows.py` and `rewriting/rows.py` have the tables.
"""

import functools
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
from ml_collections import ConfigDict

from disranker_jax.config.settings import Key, Section, at_least, text
from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion, metrics
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import Progress, amount, say
from disranker_jax.rankers import loaded
from disranker_jax.stages import evaluate, prepare, result_table
from disranker_jax.stages.result_table import Ranking, Row

STAGE = 'search'  # the stage that fills such a table
RERANKED = 'reranked'


def per_query(begin: float, count: int) -> float:
  """Milliseconds per query since `begin`."""
  return 1000 * (time.monotonic() - begin) / max(count, 1)


def values(run: Run, groups: Sequence[Group], ranking: metrics.Run) -> np.ndarray:
  """Each query's value of the main metric, as the table has it: [Q]."""
  qrels, least = {group.query_id: group.grades for group in groups}, run.config.search.min_relevance
  main = result_table.of(run.config).main
  rows = metrics.per_query(ranking, qrels, least, (main,))
  return np.array([rows[group.query_id][main] for group in groups])


def counted(
  run: Run, groups: Sequence[Group], ranking: metrics.Run, before: metrics.Run, against: str = ''
) -> str:
  """How many queries are better and worse than in another ranking.

  Args:
    against: the title of the row whose ranking that is, if it has to be said.
  """
  gains = values(run, groups, ranking) - values(run, groups, before)
  said = (
    f'{metrics.title(result_table.of(run.config).main)} rises for {(gains > 0).sum():,} of the '
    f'{amount(len(groups), "query", "queries")} and falls for {(gains < 0).sum():,}'
  )
  return f'{said}, against {against}' if against else said


def reranked(
  base: str, against: Sequence[str], run: Run, row: Row, groups: Sequence[Group]
) -> Ranking:
  """The best pages of another row, ordered by a cross-encoder; the others stay behind them."""
  c, before = run.config.search, evaluate.ranking_of(run, base, groups)
  texts = result_table.of(run.config).documents(run)
  ranker, begin, ranking = loaded.load(c.reranker), time.monotonic(), {}
  with Progress(f'{STAGE} {row.name}', len(groups), 'queries') as progress:
    for done, group in enumerate(groups, 1):
      ids = metrics.ranked(before.get(group.query_id, {}))
      best = ids[: c.rerank]
      order = ranker.rank(group.query, [texts[doc_id] for doc_id in best]) if best else []
      ids[: c.rerank] = [best[i] for i, _ in order]
      ranking[group.query_id] = {doc_id: -float(rank) for rank, doc_id in enumerate(ids)}
      progress.update(done, 1)
  spent = per_query(begin, len(groups))
  table, said = result_table.of(run.config), []
  for name in against:
    # Only what is on disk: a row is not ranked twice for a remark.
    if found := (before,) if name == base else evaluate.on_disk(run, name):
      said.append(counted(run, groups, ranking, found[0], f'"{table.rows[name].title}"'))
  return ranking, {'ms_per_query': spent, 'against': list(against), 'remark': '; '.join(said)}


def fused(base: str, other: str, run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """Two rows by reciprocal ranks."""
  ids = [group.query_id for group in groups]
  rankings = (evaluate.ranking_of(run, name, groups) for name in (base, other))
  every = [{query_id: found.get(query_id, {}) for query_id in ids} for found in rankings]
  return fusion.fuse_runs(every, (1.0, 1.0), 'ranks'), {'against': [other, base]}


def derived(base: Row, suffix: str, title: str, rank: Callable, reads: Callable, **more) -> Row:
  """A row that changes the ranking of another one; it depends on all that this one does."""

  def same_as(config: ConfigDict) -> str:
    return f'{other}_{suffix}' if (other := base.same_as(config)) else ''

  return Row(
    f'{base.name}_{suffix}', f'{base.title}, {title}', rank, stages=base.stages,
    reads_stages=base.reads_stages, reads_records=base.reads_records, trained_by=base.trained_by,
    needs_training=base.needs_training, instead=base.instead, absent=base.absent,
    same_as=same_as, ignores=base.ignores, fuses=(base.name,),
    reads=lambda config: [base.reads(config), reads(config)], **more,
  )  # fmt: skip


def with_reranker(base: Row, first: Row) -> Row:
  """A row re-ranked by `search.reranker`; there is none without one.

  It is tested against the row as it was, and against what the first stage finds, re-ranked too.
  """

  def reads(config):
    return [config.search.rerank, fingerprint(config)]

  against = [base.name, *([f'{first.name}_{RERANKED}'] if base is not first else [])]
  rank = functools.partial(reranked, base.name, against)
  return derived(base, RERANKED, 're-ranked', rank, reads, key='search.reranker')


def with_first_stage(base: Row, first: Row) -> Row:
  """A row fused with the first stage."""
  rank = functools.partial(fused, base.name, first.name)
  return derived(base, 'fused', f'with {first.title}', rank, first.reads)


def check_judged(run: Run, kind: str, known: Collection[str], where: str) -> None:
  """Says how many relevant documents of the prepared records of a kind are not in the collection.

  Raises: as `check_known`.
  """
  groups = prepare.records(run, kind)
  relevant = {doc.doc_id for group in groups for doc in group.docs if doc.label > 0}
  check_known(relevant, known, kind, where)


def check_known(relevant: Collection[str], known: Collection[str], kind: str, where: str) -> None:
  """Says how many relevant documents of a kind of records are not in the collection.

  Args:
    relevant: their ids.
    known: the ids of the collection's documents.
    where: its address.

  Raises: UserError if none is: the ids are then those of another collection.
  """
  lost = set(relevant).difference(known)
  if lost and len(lost) == len(relevant):
    raise UserError(
      f'config.data.{kind}: none of its {amount(len(relevant), "relevant document")}, such as '
      f'{min(lost)!r}, is in the collection {where}; set config.data.documents to the address of '
      'the documents that are searched, with the same ids'
    )
  if lost:
    are = 'is' if len(lost) == 1 else 'are'
    say(
      f'{kind}: {len(lost):,} of {amount(len(relevant), "relevant document")}, such as '
      f'{min(lost)!r}, {are} not in {where}, and cannot be found (config.data.documents is the '
      'address of all documents)'
    )


def has_reranker(config: ConfigDict) -> bool:
  return bool(config.search.reranker)


def fingerprint(config: ConfigDict) -> list:
  """What the re-ranker is."""
  folder = loaded.locate(config.search.reranker)
  return [config.search.reranker, manifest.files(inputs.model_files(folder, onnx=True))]


SETTINGS: Section = {
  'depth': Key(100, at_least(1), 'Documents that BM25 finds for a query.', affects_results=False),
  'reranker': Key(
    '', text('an exported student or a ready reranker'),
    "Re-ranks the best pages of every row, as a row of its own; '': no such rows.",
    affects_results=False,
  ),
  'rerank': Key(20, at_least(1), 'Pages of a query that it re-ranks.', affects_results=False),
}  # fmt: skip


def check(config: ConfigDict) -> None:
  """Raises: UserError for a re-ranker that cannot be opened, before anything trains."""
  if has_reranker(config):
    loaded.check(loaded.locate(config.search.reranker))
