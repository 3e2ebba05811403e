"""What a reader must know before deciding anything by the numbers, in sentences.

The terminal, report.md, summary.json and the page show the same ones, after those of findings.py.
"""

import shlex

from disranker_jax.data import overlap
from disranker_jax.evaluation import metrics
from disranker_jax.progress import amount, part_of
from disranker_jax.report import tables, times
from disranker_jax.report.facts import Facts
from disranker_jax.report.findings import DIGITS, quoted, trained
from disranker_jax.stages import evaluate
from disranker_jax.training.validation import LOSS, ndcg, of_steps

FEW = 30  # queries, or clusters of them, below which a bootstrap interval is too narrow
RISE = 1.05  # a held-out loss that ends this many times above its lowest value has risen


def of(facts: Facts) -> list[str]:
  """What a reader must know before deciding anything by the numbers."""
  return [
    *missed(facts), *missed_held_out(facts), *memorised(facts), *overlaps(facts),
    *related(facts), *together(facts), *few(facts), *noisy(facts), *notes(facts),
    *unjudged(facts), *other_seeds(facts),
  ]  # fmt: skip


def missed(facts: Facts) -> list[str]:
  """The rows that do not rank better than those that they should improve on."""
  found, rows, main = [], facts.table.rows, facts.table.main
  for name, results in facts.results.items():
    for other in rows[name].improves_on if name in rows else ():
      if other not in facts.results:
        continue
      ours, theirs = float(results[main]), float(facts.results[other][main])
      if ours <= theirs:
        cell = facts.intervals.differences.get((other, name, main))
        interval = f', 95 % interval {tables.span(cell, DIGITS, "+")}' if cell else ''
        found.append(
          f'{quoted(facts, name)} ranks no better than {quoted(facts, other)}: '
          f'{metrics.title(main)} {ours:.{DIGITS}f} against {theirs:.{DIGITS}f} '
          f'({ours - theirs:+.{DIGITS}f}{interval})'
        )
  return advised(found, 'docs/choose.md says what to try')


def missed_held_out(facts: Facts) -> list[str]:
  """The same of trained rows on held-out training queries, where the test does not show it."""
  values, found, main = trained(facts), [], facts.table.main
  for name, of_row in values.items():
    metric = ndcg(of_row)
    for other in facts.table.rows[name].improves_on:
      if other not in values or of_row[metric] > values[other][metric]:
        continue
      tested = facts.results.get(name), facts.results.get(other)
      if all(tested) and float(tested[0][main]) <= float(tested[1][main]):
        continue
      found.append(
        f'{quoted(facts, name)} ranks the '
        f'{amount(of_row["labelled"], "held-out training query", "held-out training queries")} no '
        f'better than {quoted(facts, other)}: {metrics.title(metric)} {of_row[metric]:.{DIGITS}f} '
        f'against {values[other][metric]:.{DIGITS}f}'
      )
  return advised(found, 'docs/results.md says what limits a student')


def advised(found: list[str], where: str) -> list[str]:
  """Warnings of one kind; the last one names the page for all of them."""
  whole = f' in these {len(found)} cases' if len(found) > 1 else ''
  return [*found[:-1], *(f'{last}; {where}{whole}' for last in found[-1:])]


def memorised(facts: Facts) -> list[str]:
  """The stages whose held-out loss rises while the training loss falls."""
  found = []
  for stage, rows in facts.logs.items():
    losses = {step: v[LOSS] for step, v in of_steps(rows).items() if LOSS in v}
    if len(losses) < 3:
      continue
    least, last = min(losses, key=lambda step: losses[step]), max(losses)
    if losses[last] <= RISE * losses[least] or loss_around(rows, last) >= loss_around(rows, least):
      continue
    found.append(
      f'{stage} memorises its data: the held-out loss rises from {losses[least]:.4g} at step '
      f'{least} to {losses[last]:.4g} at step {last} while the training loss falls; give more '
      f'queries, lower config.{stage}.epochs, or set config.{stage}.validation.keep_best=True'
    )
  return found


def loss_around(rows: list[dict], step: int) -> float:
  """The mean training loss of a tenth of the steps, up to a step."""
  size = max(1, len(rows) // 10)
  values = [row['loss'] for row in rows if step - size < row['step'] <= step]
  return sum(values) / max(len(values), 1)


def overlaps(facts: Facts) -> list[str]:
  """What the training data have of the test, as prepare counted it."""
  lines = [overlap.described(kind, counts) for kind, counts in facts.overlap.items()]
  topics = [counts.get('same_judgements', 0) for counts in facts.overlap.values()]
  if any(topics):
    lines.append(
      f'{amount(sum(topics), "test query has", "test queries have")} the same relevant documents '
      'and grades as judged queries, whose labels are learned (docs/data.md: training and test '
      'apart)'
    )
  return [line for line in lines if line]


def notes(facts: Facts) -> list[str]:
  """How the rows that are not simply a model's scores were made."""
  return [f'{facts.title(n)}: {r["note"]}' for n, r in facts.results.items() if r.get('note')]


def together(facts: Facts) -> list[str]:
  """Which queries share judgements, and whether they are drawn together."""
  drawn, of = facts.drawn, 'test queries'
  if said := drawn.together('report.cluster={!r}'.format, of):
    return [said]
  if said := drawn.separated(repr, of):
    pattern = drawn.shared.pattern
    return [f'{said}, so p is too small' + (f'; use report.cluster={pattern!r}' if pattern else '')]
  return []


def related(facts: Facts) -> list[str]:
  """Whether queries look like those of topics, although each has judgements of its own."""
  if not (said := facts.drawn.alike()):
    return []
  return [
    f'{said}, the true intervals are wider and the true p is larger: use '
    f'--config.report.cluster={shlex.quote(facts.drawn.related.pattern)} --rerun=report'
  ]


def unjudged(facts: Facts) -> list[str]:
  """Test queries and pairs that tell nothing."""
  results, said, table = next(iter(facts.results.values()), {}), [], facts.table
  key = f'{table.stage}.min_relevance'
  least = facts.config.get(key, 1)
  zero = tables.joined(metrics.zero_without(table.columns, least))
  if zero and (none := results.get('queries_without_relevant')):
    without = 'no relevant document'
    if least > 1:
      highest = max(facts.labels().values(), default=0)
      without = f'no document with a label of config.{key}={least} or better (the highest label is '
      without += f'{highest})'
    verb = 'is' if ' and ' not in zero else 'are'
    have = part_of(none, results['queries'], 'test query', 'test queries', 'has', 'have')
    its = 'its' if none == 1 else 'their'
    said.append(f'{have} {without}, so {its} {zero} {verb} 0 in every row')
  single = map(evaluate.is_of_one_grade, facts.tests.values())
  if table.reranks and (count := sum(single)):
    have = part_of(count, len(facts.tests), 'test query', 'test queries', 'has', 'have')
    said.append(f'{have} {evaluate.ONE_GRADE}')
  kinds = dict.fromkeys(name.partition('@')[0] for name in table.columns)
  names = tables.joined(
    [metrics.METRICS[kind].title for kind in kinds if metrics.METRICS[kind].formula]
  )
  labels = [d.label for group in facts.tests.values() for d in group.docs if d.in_pool]
  if table.reranks and (count := sum(label < 0 for label in labels)):
    are = part_of(count, len(labels), 'test pair', 'test pairs', 'is', 'are')
    counted = 'it counts' if count == 1 else 'they count'
    outside = ', and not at all in PNR' if 'pnr' in kinds else ''
    said.append(f'{are} not judged; {counted} as not relevant in {names}{outside}')
  return said


def noisy(facts: Facts) -> list[str]:
  """Whether equal networks took very different times."""
  if not (found := times.uneven(facts)):
    return []
  fast, slow = (
    f'{tables.rounded(facts.results[row]["ms_per_pair"], 3)} ms per pair ({quoted(facts, row)})'
    for row in found
  )
  return [
    f'equal networks took {fast} and {slow}: other work may have used the machine, so times say '
    'little'
  ]


def other_seeds(facts: Facts) -> list[str]:
  """The seeds that the report leaves out, as their runs differ in more than the seed."""
  by_why: dict[str, list[int]] = {}
  for seed, why in facts.other_seeds.items():
    by_why.setdefault(why, []).append(seed)
  said = []
  for why, seeds in by_why.items():
    names, folders = ', '.join(map(str, seeds)), ', '.join(f'seeds/{seed}' for seed in seeds)
    which = f'seed {names} is' if len(seeds) == 1 else f'seeds {names} are'
    said.append(
      f'{which} left out, because other settings or inputs were used ({why}); to train again, '
      f'delete {folders} and add --seeds={names.replace(" ", "")}'
    )
  return said


def few(facts: Facts) -> list[str]:
  """Whether there are too few queries, or clusters of them, to trust the intervals."""
  drawn = facts.drawn
  if not drawn.queries or drawn.count >= FEW:
    return []
  if drawn.count == 1:
    kind = 'query' if len(drawn.queries) == 1 else 'cluster of queries'
    return [f'the test has only 1 {kind}, so there are no intervals']
  return [f'the test has only {drawn.count} {drawn.kind}, so the true intervals are wider']
