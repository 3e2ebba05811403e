"""What the results say, in sentences: the subject of the table against each baseline.

The terminal, report.md, summary.json and the page show the same sentences.
"""

import math
from typing import NamedTuple

from disranker_jax.evaluation import metrics
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.progress import amount
from disranker_jax.report import tables
from disranker_jax.report.facts import Facts
from disranker_jax.report.intervals import baselines
from disranker_jax.rewriting import gain
from disranker_jax.stages import quantise_gate
from disranker_jax.stages.best_student import comparable
from disranker_jax.stages.held_out import NDCG
from disranker_jax.training.validation import ndcg

DIGITS = 3  # of nDCG and p


class Comparison(NamedTuple):
  """A row minus a baseline in the main metric, as text."""

  row: str
  baseline: str
  value: str
  metric: str
  interval: str
  p: str
  p_holm: str
  tests: int

  def __str__(self) -> str:
    return (
      f'"{self.row}" against "{self.baseline}": {self.value} {self.metric} '
      f'(95 % interval {self.interval}, p {self.p}, Holm {self.p_holm})'
    )


def sentences(facts: Facts) -> list[str]:
  """The sentences about the results; those of cautions.py are apart."""
  found = comparisons(facts)
  corrected = [
    f"Holm: p with Holm's correction for the {each.tests} tests of the report" for each in found[:1]
  ]
  return [*map(str, found), *corrected, *others(facts)]


def others(facts: Facts) -> list[str]:
  """The sentences that are not comparisons."""
  return [
    *to_serve(facts), *power(facts), *held_out(facts), *gains(facts), *hard_labels(facts),
    *fused(facts), *best(facts), *remarks(facts), *seeds(facts), *served(facts), *quantised(facts),
  ]  # fmt: skip


def to_serve(facts: Facts) -> list[str]:
  """Which row is the best of those that the exported student gives, and what it needs."""
  table, results = facts.table, facts.results
  for name, found in results.items():
    alone = (found.get('fusion') or {}).get('row')
    rows = [row for row in (name, alone, table.first_stage) if row in results]
    if not alone or len(rows) < 3 or facts.best.get('row', table.subject) != alone:
      continue
    rows.sort(key=lambda row: -float(results[row][table.main]))
    best, *others = (f'{float(results[row][table.main]):.{DIGITS}f}' for row in rows)
    listed = ', '.join(f'{quoted(facts, r)} {v}' for r, v in zip(rows[1:], others, strict=True))
    what = {
      name: "requests need the first stage's scores or ranks (docs/serve.md)",
      alone: 'requests need no scores of the first stage',
    }.get(rows[0], 'the exported student does not improve on it')
    return [
      f'of {quoted(facts, table.first_stage)}, export/{table.subject} and both together, '
      f'{quoted(facts, rows[0])} ranks the test best: {metrics.title(table.main)} {best} '
      f'({listed}); {what}'
    ]
  return []


def quoted(facts: Facts, row: str) -> str:
  """A row's title in a sentence: titles can have commas."""
  return f'"{facts.title(row)}"'


def comparisons(facts: Facts) -> list[Comparison]:
  """The subject against each baseline; rows with rows of their own to beat against those."""
  found, table = [], facts.table
  pairs = [(baseline, table.subject) for baseline in baselines(table, list(facts.results))]
  pairs += [(o, name) for name, row in facts.results.items() for o in row.get('against', ())]
  for baseline, row in pairs:
    if cell := facts.intervals.differences.get((baseline, row, table.main)):
      value = tables.number(cell['value'], DIGITS, '+')
      interval = tables.span(cell, DIGITS, '+')
      p, p_holm = (tables.chance(cell[name], DIGITS) for name in ('p', 'p_holm'))
      names = facts.title(row), facts.title(baseline)
      count = len(facts.intervals.differences)
      metric = metrics.title(table.main)
      found.append(Comparison(*names, value, metric, interval, p, p_holm, count))
  return found


def power(facts: Facts) -> list[str]:
  """Which difference the test queries show, and how many the measured one needs."""
  table = facts.table
  cell = facts.intervals.differences.get((table.first_stage, table.subject, table.main))
  if not cell or math.isnan(cell['needed']):
    return []
  of = f' {metrics.title(table.main)} to {facts.title(table.first_stage)}'
  return [tables.power(cell, facts.drawn.count, facts.drawn.kind, DIGITS, of=of)]


def trained(facts: Facts) -> dict[str, dict]:
  """{row: held-out values} of the models with an nDCG, if it is of the same labelled queries."""
  found = {
    name: facts.validation[row.trained_by]
    for name, row in facts.table.rows.items()
    if name in facts.table.models and row.trained_by in facts.validation
  }
  return comparable({name: values for name, values in found.items() if ndcg(values)})


def held_out(facts: Facts) -> list[str]:
  """How the trained models rank the training queries that are held out."""
  values = trained(facts)
  if not values:
    return []
  first = next(iter(values.values()))
  metric, queries, listed = ndcg(first), first['labelled'], []
  for name, of_row in values.items():
    stage = facts.table.rows[name].trained_by
    before = facts.before.get(stage, {}).get(metric)
    since = '' if before is None else f' ({before:.{DIGITS}f} before {stage})'
    listed.append(f'{quoted(facts, name)} {of_row[metric]:.{DIGITS}f}{since}')
  what = 'a few documents of each' if facts.table.reranks else 'searches of the whole collection'
  return [
    f'on {amount(queries, "held-out training query", "held-out training queries")}, for validation '
    f'({what}): {metrics.title(metric)} {", ".join(listed)}'
  ]


def gains(facts: Facts) -> list[str]:
  """What a stage gained on held-out queries while it learned."""
  return [
    f'change during {stage} on {next(iter(cells.values()))["queries"]:,} held-out training '
    f'queries: {gain.described(cells)}'
    for stage, cells in facts.gains.items()
  ]


def fused(facts: Facts) -> list[str]:
  """The weight of each model fused with the first stage, and by which queries it was chosen."""
  file = f'{facts.table.stage}/results.json'
  return [
    f'{facts.title(name)}: {Fusion.from_dict(values["fusion"], file).text}'
    for name, values in facts.results.items()
    if values.get('fusion')
  ]


def hard_labels(facts: Facts) -> list[str]:
  """Which weight of the hard labels was chosen."""
  if not facts.tried:
    return []
  chosen = max(facts.tried, key=facts.tried.__getitem__)  # the first of equal ones, as in the stage
  listed = ', '.join(f'{weight}: {value:.{DIGITS}f}' for weight, value in facts.tried.items())
  return [
    f'distill has hard_label_weight={chosen}, the best on held-out training queries '
    f'({metrics.title(NDCG)} by weight: {listed})'
  ]


def best(facts: Facts) -> list[str]:
  """Which student was exported."""
  if not facts.best:
    return []
  which = quoted(facts, facts.best['row'])
  return [f'the folder export/{facts.table.subject} has {which}: {facts.best["why"]}']


def quantised(facts: Facts) -> list[str]:
  """That the teacher scored in 8 bits, and what the gate found."""
  found = facts.quantised
  if not found:
    return []
  gate = quantise_gate.as_text(found) if 'tau' in found else 'not compared with full precision'
  return [f'the teacher scored in {found["format"]}: {gate}']


def seeds(facts: Facts) -> list[str]:
  """How much the trained rows vary from training to training."""
  said, metric = [], metrics.title(facts.table.main)
  for row, by_seed in facts.seeds.items():
    values = list(by_seed.values())
    mean, spread = sum(values) / len(values), max(values) - min(values)
    said.append(
      f'{facts.title(row)} with seeds {", ".join(map(str, by_seed))}: {metric} '
      f'{", ".join(f"{value:.{DIGITS}f}" for value in values)} (mean {mean:.{DIGITS}f}, range '
      f'{spread:.{DIGITS}f}); the table has seed {next(iter(by_seed))}'
    )
  return said


def served(facts: Facts) -> list[str]:
  """Quality and time of requests to the exported folders."""
  said = []
  for name, rows in facts.served.items():
    for row in rows:
      trained = [
        values[NDCG] for values in list(facts.rows.get(name, {}).values())[: row['queries']]
      ]
      beside = f' (as trained {sum(trained) / len(trained):.{DIGITS}f})' if trained else ''
      said.append(
        f'{facts.title(name)} as exported, {row["backend"]}: {metrics.title(NDCG)} '
        f'{row[NDCG]:.{DIGITS}f}{beside} over {amount(row["queries"], "query", "queries")}; '
        f'{row["p50_ms"]:.1f} ms per request of {amount(round(row["documents"]), "document")}, 95 '
        '% within '
        f'{row["p95_ms"]:.1f} ms'
      )
  return said


def remarks(facts: Facts) -> list[str]:
  """What rows say of their results."""
  return [f'{facts.title(n)}: {r["remark"]}' for n, r in facts.results.items() if r.get('remark')]
