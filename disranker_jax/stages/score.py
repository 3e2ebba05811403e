"""The teacher scores the unlabeled pairs: a map over shards, each written once and never again.

A restart, on any number of processes and devices, does the shards that are missing or damaged; at
the end an audit asserts that every pair has exactly one finite score.
"""

import bisect
import gzip
import hashlib
import itertools
import json

import jax
import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.pipeline import manifest
from disranker_jax.progress import Progress, say
from disranker_jax.rankers import score_statistics
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import prepare, roles

SAMPLE = 200  # queries by which the work is estimated


def kinds(config) -> list[str]:
  """What is scored: the candidates, and the judged queries for the hard-label term."""
  return ['candidates', *(['judgements'] if config.score.judgements else [])]


def run(run) -> dict:
  c = run.config.score
  teacher, variables, kind = roles.load(run, 'teacher')
  scorer = roles.scorer(run, teacher, variables, kind, rows=c.batch_rows, workers=c.workers)
  del variables  # the scorer has them, perhaps merged
  made = maker(run, teacher)
  for kind in kinds(run.config):
    groups = prepare.records(run, kind)
    shards = open_shards(run, kind, len(groups), made)
    processes.first_alone('folder', lambda s=shards: s.folder.mkdir(parents=True, exist_ok=True))
    score_missing(f'score {kind}', groups, shards, scorer, c)
    processes.barrier(f'{kind} are scored')
  say(f'score: {speed(scorer)}')
  found = processes.first_alone('audit', lambda: finish(run)) or {}
  results = {'pairs': sum(s['pairs'] for s in found.values()), 'ms_per_pair': scorer.ms_per_pair}
  return results | {'padding': padding(scorer), 'idle': idle(scorer)}


def maker(run, teacher) -> dict:
  """What decides a score beside the pair: noted in every shard."""
  c = run.config.teacher
  trained = [s for s in roles.stages_of(run.config, 'teacher') if s in run.config.stages]
  tokenizer = teacher.tokenizer.backend_tokenizer.to_str().encode()
  return {
    'model': c.model,
    'parameters': [manifest.read(run.folder(stage))['fingerprint'] for stage in trained],
    'precision': teacher.network.precision,
    'scorer': c.scorer,
    'tokenizer': hashlib.sha256(tokenizer).hexdigest()[:16],
  }


def open_shards(run, kind: str, queries: int, made: dict | None = None) -> Shards:
  return Shards(
    run.folder('score') / 'shards' / kind, queries, run.config.score.shard_queries, made
  )


def score_missing(label: str, groups, shards: Shards, scorer, c) -> None:
  """Scores the shards that are not there yet; each of several processes takes its share of them."""
  seen = processes.first_alone(f'{label}: look', shards.missing) or []
  # One list for all processes: what each sees changes as others finish.
  missing = np.flatnonzero(processes.told(np.isin(range(len(shards)), seen))).tolist()
  own = missing[jax.process_index() :: jax.process_count()]
  if missing:
    say(f'{label}: {estimate(groups, shards, missing, scorer.prompt, c)}')

  def part(shard):
    return (chosen(groups[i], c) for i in shards.span(shard))

  done, rows = len(groups) - sum(len(shards.span(s)) for s in own), []
  with Progress(label, len(groups), 'pairs', done) as progress:
    for shard, group, scores in scorer.parts((s, part(s)) for s in own):
      rows.append((group, scores))
      done += 1
      progress.update(done, len(scores))
      if len(rows) == len(shards.span(shard)):
        shards.write(shard, rows)
        rows = []


def estimate(groups, shards: Shards, missing: list[int], prompt, c) -> str:
  """How much there is to do, from some of the missing shards' queries, or all of them if few."""
  total = sum(len(shards.span(s)) for s in missing)
  picks = np.unique(np.linspace(0, total - 1, min(SAMPLE, total)).astype(int)).tolist()
  # All shards are full but the last, which is the last one here too.
  places = [shards.span(missing[j // shards.size])[j % shards.size] for j in picks]
  sample = [chosen(groups[i], c) for i in places]
  pairs = sum(len(g.docs) for g in sample)
  tokens = sum(len(d) for g in sample for d in prompt.encode(g.query, g.docs))
  about = '' if len(picks) == total else 'about '
  each = total / len(picks)
  return (
    f'{about}{pairs * each:,.0f} pairs, {tokens * each:,.0f} tokens, in {len(missing)} of '
    f'{len(shards)} shards'
  )


def padding(scorer) -> float:
  """The share of places in batches that held no token."""
  return 1 - scorer.tokens / scorer.places if scorer.places else 0.0


def idle(scorer) -> float:
  """The share of time in which the device waited for its next batch."""
  total = scorer.seconds + scorer.idle
  return scorer.idle / total if total else 0.0


def speed(scorer) -> str:
  if not scorer.seconds:
    return 'all shards were there'
  rate = scorer.tokens / (scorer.seconds + scorer.idle)
  return (
    f'{rate:,.0f} tokens/s, {padding(scorer):.1%} padding, '
    f'{idle(scorer):.1%} of the time the device waited for data'
  )


def chosen(group: Group, c) -> Group:
  """The query with c.group_size documents by the first stage's rank, best-labelled ones before all.

  The first of them, or if c.ranks is 'spread' some of every depth; all if group_size is 0.
  """
  if not c.group_size or len(group.docs) <= c.group_size:
    return group
  best = max(d.label for d in group.docs)
  last = len(group.docs) + 1
  docs = sorted(group.docs, key=lambda d: (d.label != best, d.rank or last))
  places = spread(len(docs), c.group_size) if c.ranks == 'spread' else range(c.group_size)
  return Group(group.query_id, group.query, tuple(docs[i] for i in places))


def spread(count: int, size: int) -> list[int]:
  """`size` of `count` places from the first to the last, each as much further as the one before.

  Among a first stage's best a teacher tells good from better; with what stands deep down, from bad.
  """
  places = []
  for place in np.geomspace(1, count, size):
    places.append(max(round(place), places[-1] + 1) if places else 1)
  return [place - 1 for place in places]


def finish(run) -> dict[str, dict]:
  """Audits every kind, writes stats.json and the teacher's run; raises if scores have collapsed."""
  c, found = run.config.score, {}
  for kind in kinds(run.config):
    groups = prepare.records(run, kind)
    shards = open_shards(run, kind, len(groups))
    sizes, labels = [], []

    def pairs_of(i, groups=groups, sizes=sizes, labels=labels):
      group = chosen(groups[i], c)
      sizes.append(len(group.docs))
      labels.extend(d.label for d in group.docs)
      return group.query_id, [d.doc_id for d in group.docs]

    scores = shards.audit(pairs_of)
    known = np.array(labels) if kind == 'judgements' else None
    found[kind] = score_statistics.describe(scores, sizes, known)
  manifest.write_json(run.folder('score') / 'stats.json', found)
  write_run(run)
  for kind, of_kind in found.items():
    score_statistics.refuse_collapsed(kind, of_kind, c)
  return found


def stats(run) -> dict[str, dict]:
  """The statistics of each kind's scores."""
  return json.loads((run.folder('score') / 'stats.json').read_text())


def write_run(run) -> None:
  """The teacher's ranking of the candidates as a TREC run, for any tool that reads those."""
  shards = open_shards(run, 'candidates', len(prepare.records(run, 'candidates')))
  # Without its name and the time of writing the same scores are the same file.
  file = run.folder('score') / 'teacher.run.gz'
  with file.open('wb') as raw, gzip.GzipFile('', 'wb', fileobj=raw, mtime=0) as f:
    for query, rows in itertools.groupby(shards.rows(), key=lambda row: row[0]):
      ranked = sorted(((score, doc) for _, doc, score in rows), reverse=True)
      for rank, (score, doc) in enumerate(ranked, 1):
        f.write(f'{query} Q0 {doc} {rank} {score:.9g} teacher\n'.encode())


class ScoredGroups:
  """Candidates (and judged queries) with the teacher's scores, by index: [i] -> (Group, scores)."""

  def __init__(self, run):
    self._config, self._parts, self._begins = run.config.score, [], [0]
    for kind in kinds(run.config):
      groups = prepare.records(run, kind)
      scores, ends = loaded(open_shards(run, kind, len(groups)))
      self._parts.append((groups, scores, ends))
      self._begins.append(self._begins[-1] + len(groups))
    self.facts = score_statistics.together(stats(run))

  def __len__(self) -> int:
    return self._begins[-1]

  def __getitem__(self, i: int) -> tuple[Group, np.ndarray]:
    part = bisect.bisect_right(self._begins, i) - 1
    groups, scores, ends = self._parts[part]
    i -= self._begins[part]
    return chosen(groups[i], self._config), scores[ends[i] : ends[i + 1]]


def loaded(shards: Shards) -> tuple[np.ndarray, np.ndarray]:
  """All scores in order, and where each query's begin (and the last one's end)."""
  scores, sizes = [], []
  for shard in range(len(shards)):
    table = shards.read(shard)
    scores.append(table.column('score').to_numpy())
    queries = itertools.groupby(table.column('query_id').to_pylist())
    sizes += [len(list(rows)) for _, rows in queries]
  return np.concatenate(scores), np.cumsum([0, *sizes])
