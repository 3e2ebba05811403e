"""The teacher scores the unlabeled pairs: a map over shards, each written once and never again.

A shard is a Parquet file of (query_id, doc_id, score) for a fixed range of queries; one that is
there is complete (it appears under its name only when it is whole), so a restart does the missing
ones only.
"""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax import processes
from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.progress import Progress
from disranker_jax.stages import prepare, sides

SCHEMA = pa.schema([('query_id', pa.string()), ('doc_id', pa.string()), ('score', pa.float32())])


def kinds(config) -> list[str]:
  """What is scored: the candidates, and the judged queries for the hard-label term."""
  return ['candidates', *(['judgements'] if config.score.judgements else [])]


def run(run) -> dict:
  c = run.config.score
  teacher = sides.open_teacher(run.config)
  variables = sides.trained(run, teacher, sides.TEACHER_STAGES)
  scorer = sides.scorer(run, teacher, variables, c.batch_rows, run.config.teacher.scorer)
  stats = {}
  for kind in kinds(run.config):
    groups = prepare.records(run, kind)
    folder = run.folder('score') / 'shards' / kind
    folder.mkdir(parents=True, exist_ok=True)
    score_shards(f'score {kind}', groups, folder, scorer, c)
    processes.barrier(f'{kind} are scored')
    stats[kind] = statistics(groups, folder, c)
  processes.first_alone('statistics', lambda: write_statistics(run, stats))
  return {'pairs': sum(s['pairs'] for s in stats.values()), 'ms_per_pair': scorer.ms_per_pair}


def score_shards(label: str, groups, folder: Path, scorer, c) -> None:
  """Scores the shards that are not there yet; each of several processes takes its share of them."""
  size = c.shard_queries
  files = {start: shard_file(folder, start, size) for start in range(0, len(groups), size)}
  missing = [start for start, file in files.items() if not file.exists()]
  # All processes must see the same shards missing, so none may begin before all have looked.
  processes.barrier(f'{label}: looked')
  own = missing[jax.process_index() :: jax.process_count()]
  length = {start: min(size, len(groups) - start) for start in files}

  def part(start):
    return (chosen(groups[i], c.group_size) for i in range(start, start + length[start]))

  done, rows = len(groups) - sum(length[s] for s in own), []
  with Progress(label, len(groups), 'pairs', done) as progress:
    for start, group, scores in scorer.parts((s, part(s)) for s in own):
      rows.append((group, scores))
      done += 1
      progress.update(done, len(scores))
      if len(rows) == length[start]:
        write_shard(files[start], rows)
        rows = []


def chosen(group: Group, size: int) -> Group:
  """The query with `size` documents: the first stage's best, before them the best-labelled ones.

  All of them if size is 0. Without labels the first stage's rank alone decides.
  """
  if not size or len(group.docs) <= size:
    return group
  best = max(d.label for d in group.docs)
  last = len(group.docs) + 1
  docs = sorted(group.docs, key=lambda d: (d.label != best, d.rank or last))[:size]
  return Group(group.query_id, group.query, tuple(docs))


def shard_file(folder: Path, start: int, size: int) -> Path:
  return folder / f'{start // size:05d}.parquet'


def write_shard(file: Path, scored) -> None:
  """Writes under another name first: a shard that can be seen is whole."""
  columns = {'query_id': [], 'doc_id': [], 'score': []}
  for group, scores in scored:
    columns['query_id'] += [group.query_id] * len(group.docs)
    columns['doc_id'] += [d.doc_id for d in group.docs]
    columns['score'] += scores.tolist()
  partial = file.with_suffix('.partial')
  pq.write_table(pa.table(columns, SCHEMA), partial)
  os.replace(partial, file)


def read_scores(folder: Path) -> Iterator[tuple[str, str, float]]:
  """(query_id, doc_id, score) of all shards, in order."""
  for file in sorted(folder.glob('*.parquet')):
    table = pq.read_table(file, schema=SCHEMA)
    yield from zip(*(table.column(c).to_pylist() for c in SCHEMA.names), strict=True)


def statistics(groups, folder: Path, c) -> dict:
  """Mean, deviation, range of the scores; raises unless every pair has exactly one."""
  rows = list(read_scores(folder))
  scores = np.array([s for _, _, s in rows])
  seen = {(q, d) for q, d, _ in rows}
  wanted = 0
  for i in range(len(groups)):
    group = chosen(groups[i], c.group_size)
    wanted += len(group.docs)
    if not all((group.query_id, d.doc_id) in seen for d in group.docs):
      raise UserError(f'{folder}: query {group.query_id!r} lacks scores; rerun with --rerun=score')
  if not len(rows) == len(seen) == wanted:
    raise UserError(f'{folder}: {len(rows)} scores for {wanted} pairs; rerun with --rerun=score')
  return {
    'queries': len(groups), 'pairs': len(rows), 'mean': float(scores.mean()),
    'std': float(scores.std()), 'min': float(scores.min()), 'max': float(scores.max()),
  }  # fmt: skip


def write_statistics(run, stats: dict) -> None:
  (run.folder('score') / 'stats.json').write_text(json.dumps(stats, indent=2) + '\n')
  write_run(run)


def write_run(run) -> None:
  """The teacher's ranking of the candidates as a TREC run, for any tool that reads those."""
  by_query: dict[str, list[tuple[float, str]]] = {}
  for query, doc, score in read_scores(run.folder('score') / 'shards' / 'candidates'):
    by_query.setdefault(query, []).append((score, doc))
  with gzip.open(run.folder('score') / 'teacher.run.gz', 'wt') as f:
    for query, rows in by_query.items():
      for rank, (score, doc) in enumerate(sorted(rows, reverse=True), 1):
        f.write(f'{query} Q0 {doc} {rank} {score:.9g} teacher\n')


class ScoredGroups:
  """Candidates (and judged queries) with the teacher's scores, by index: [i] -> (Group, scores)."""

  def __init__(self, run):
    c = run.config.score
    self._parts = []
    for kind in kinds(run.config):
      groups = prepare.records(run, kind)
      scores = [s for _, _, s in read_scores(run.folder('score') / 'shards' / kind)]
      sizes = [len(chosen(groups[i], c.group_size).docs) for i in range(len(groups))]
      self._parts.append((groups, np.array(scores, np.float32), np.cumsum([0, *sizes])))
    self._size = c.group_size
    self.scores = np.concatenate([p[1] for p in self._parts])

  def __len__(self) -> int:
    return sum(len(p[0]) for p in self._parts)

  def __getitem__(self, i: int) -> tuple[Group, np.ndarray]:
    for groups, scores, ends in self._parts:
      if i < len(groups):
        group = chosen(groups[i], self._size)
        return group, scores[ends[i] : ends[i + 1]]
      i -= len(groups)
    raise IndexError(i)
