"""The gate before a pass in 8 bits: does the teacher rank a sample as it does in full precision?

The sample is scored both ways. The result is written down, so that a run that continues, or whose
limits change, does not score it again.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from disranker_jax.config.settings import Key, above, at_least, between
from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.pipeline import manifest
from disranker_jax.progress import amount, say
from disranker_jax.rankers.shards import differing
from disranker_jax.stages import result_table

FILE = 'quantise_gate.json'
DEPTH = 5  # of nDCG
SETTINGS = {
  'pairs': Key(
    1000, at_least(0),
    'Pairs of each kind of queries that are scored both ways before a pass in 8 bits; 0: none.',
    affects_results=False,
  ),
  'min_tau': Key(
    0.98, between(-1, 1),
    "A lower Kendall's tau with full precision, a mean over queries, is an error.",
    affects_results=False,
  ),
  'max_ndcg_change': Key(
    0.003, above(0), 'A larger change of nDCG@5, up or down, is an error.', affects_results=False,
  ),
}  # fmt: skip


def opened(run, made: dict, kinds: Mapping[str, Sequence[Group]], open_scorer: Callable):
  """(the scorer in 8 bits, what the gate found; {} without a gate).

  `made` says what the scores depend on, `kinds` are all queries by kind, and `open_scorer` makes a
  ranker from the name of an 8-bit format, '' for full precision. All processes take part.

  Raises: UserError if the two rankings differ by more than config.score.quantize_gate allows.
  """
  c = run.config.score
  if not c.quantize_gate.pairs:
    return open_scorer(c.quantize), {}
  made = made | {'pairs': c.quantize_gate.pairs}
  found = processes.first_alone('gate: look', lambda: stored(run, made))
  if processes.any_of(bool(found)):
    scorer = open_scorer(c.quantize)
  else:
    sample = [
      dataclasses.replace(group, query_id=f'{kind}/{group.query_id}')
      for kind, groups in kinds.items()
      for group in chosen(groups, c.quantize_gate.pairs)
    ]
    if not sample:
      say('score: no query has two documents to order, so 8 bits are not compared')
      return open_scorer(c.quantize), {}
    wanted, full_ms = scored(open_scorer(''), 'in full precision', sample)
    scorer = open_scorer(c.quantize)
    given, ms = scored(scorer, f'in {c.quantize}', sample)
    found = compare(sample, given, wanted) | {'times_as_fast': full_ms / max(ms, 1e-9)}
    processes.first_alone('gate', lambda: write(run, made, found))
  processes.first_alone('gate: judge', lambda: judge(found, c))
  return scorer, found or {}


def scored(scorer, how: str, sample: list[Group]) -> tuple[metrics.Run, float]:
  """(the scores, milliseconds per pair)."""
  ranking = result_table.score_all(f'score a sample {how}', scorer, sample)
  return ranking, scorer.work.of_all().ms_per_pair


def chosen(groups: Sequence[Group], pairs: int) -> list[Group]:
  """Whole queries with about `pairs` pairs in all, the same ones whenever it is called.

  Queries with one document have no order, and are left out.
  """
  taken, count = [], 0
  for i in np.random.default_rng(0).permutation(len(groups)).tolist():
    group = groups[i]
    if len(group.docs) > 1:
      taken.append(group)
      count += len(group.docs)
    if count >= pairs:
      break
  return taken


def compare(sample: Sequence[Group], given: metrics.Run, wanted: metrics.Run) -> dict:
  """Kendall's tau and the change of nDCG, means over queries, and the change's standard error.

  Gains are the labels of the judged queries. If there are none, they are the scores in full
  precision, from 0 to 1 in each query.
  """
  judged = [g for g in sample if any(grade > 0 for grade in g.grades.values())]
  if judged:
    changes = [
      metrics.ndcg(given[g.query_id], g.grades, DEPTH)
      - metrics.ndcg(wanted[g.query_id], g.grades, DEPTH)
      for g in judged
    ]
  else:
    changes = [
      metrics.ndcg(given[g.query_id], gains(wanted[g.query_id]), DEPTH, float) - 1
      for g in sample
      if len(set(wanted[g.query_id].values())) > 1
    ]
  error = np.std(changes, ddof=1) / math.sqrt(len(changes)) if len(changes) > 1 else 0.0
  return {
    'queries': len(sample),
    'pairs': sum(len(g.docs) for g in sample),
    'tau': float(metrics.mean_tau(given, wanted)),
    'ndcg_queries': len(changes),
    'ndcg_gains': 'labels' if judged else 'scores in full precision',
    'ndcg_change': float(np.mean(changes)) if changes else 0.0,
    'ndcg_error': float(error),
  }


def gains(scores: Mapping[str, float]) -> dict[str, float]:
  """Scores that are not all equal, from 0, the lowest, to 1."""
  low, high = min(scores.values()), max(scores.values())
  return {doc: (score - low) / (high - low) for doc, score in scores.items()}


def as_text(found: Mapping) -> str:
  """The gate's figures in a line."""
  return (
    f"Kendall's tau {found['tau']:.4f}, nDCG@{DEPTH} {found['ndcg_change']:+.4f} (standard error "
    f'{found["ndcg_error"]:.4f}, {amount(found["ndcg_queries"], "query", "queries")}, gains: '
    f'{found["ndcg_gains"]}) against full precision on {amount(found["pairs"], "pair")} of '
    f'{amount(found["queries"], "query", "queries")}'
  )


def judge(found: Mapping, c) -> None:
  """Raises: UserError for figures outside the limits."""
  limits, text = c.quantize_gate, as_text(found)
  say(f'score in {c.quantize}: {text}, {found["times_as_fast"]:.2f} times as fast')
  problems = []
  # A comparison with nan is false, so these are the comparisons that have to hold.
  if not found['tau'] >= limits.min_tau:
    problems.append(f'config.score.quantize_gate.min_tau={limits.min_tau:g}')
  if not abs(found['ndcg_change']) <= limits.max_ndcg_change:
    problems.append(f'config.score.quantize_gate.max_ndcg_change={limits.max_ndcg_change:g}')
  if problems:
    other = "'fp8' where the device has it, or " if c.quantize == 'int8' else ''
    raise UserError(
      f'config.score.quantize={c.quantize!r}: {text}; outside {" and ".join(problems)}. Set '
      f"quantize={other}'', judge it by more pairs (config.score.quantize_gate.pairs="
      f'{limits.pairs}; 0: no gate), or change the limits'
    )


def is_alone(run) -> bool:
  """Whether the gate's figures, which know what they were made from, are there and no scores."""
  folder = run.folder('score')
  return (folder / FILE).exists() and not any(folder.glob('shards/*/_*.json'))


def stored(run, made: dict) -> dict | None:
  """What an earlier call found for the same model and sample."""
  file = run.folder('score') / FILE
  try:
    done = json.loads(file.read_text())
  except (OSError, ValueError):
    return None
  return None if differing(done.get('made', {}), made) else done['found']


def write(run, made: dict, found: dict) -> None:
  run.folder('score').mkdir(parents=True, exist_ok=True)
  manifest.write_json(run.folder('score') / FILE, {'made': made, 'found': found})
