"""The run's report as one HTML page without scripts or external resources."""

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from disranker_jax.evaluation import metrics
from disranker_jax.progress import clock
from disranker_jax.report import (
  cautions,
  charts,
  curves,
  facts,
  findings,
  rankings,
  results,
  tables,
  tiles,
)
from disranker_jax.report.facts import Facts
from disranker_jax.report.intervals import Intervals
from disranker_jax.training.validation import of_steps

TEMPLATE = 'page.html'
ALPHA = 0.05
DIGITS = 3  # of metrics between 0 and 1


def write(run, gathered: Facts, file: Path) -> None:
  """Writes the page of a run."""
  file.write_bytes(render(run, gathered).encode('utf-8', 'replace'))


def render(run, gathered: Facts) -> str:
  """The page as text; everything but our own charts is escaped."""
  queries, spread = len(next(iter(gathered.rows.values()), ())), gathered.intervals
  gained = rankings.gains(gathered)
  loader = jinja2.FileSystemLoader(Path(__file__).parent)
  environment = jinja2.Environment(
    loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  environment.filters |= {'clock': clock, 'number': tiles.number, 'signed': tiles.typographic}
  return environment.get_template(TEMPLATE).render(
    name=gathered.name,
    about=about(gathered),
    tiles=tiles.tiles(gathered),
    sentences=findings.comparisons(gathered),
    more=[tables.with_minus(sentence) for sentence in findings.others(gathered)],
    warnings=[tables.with_minus(warning) for warning in cautions.of(gathered)],
    seeds_vary=bool(gathered.seeds),
    notes=results.notes(gathered.table, run.config[gathered.table.stage].min_relevance),
    reranks=gathered.table.reranks,
    metric=metrics.title(gathered.table.main),
    results=table_rows(gathered, spread),
    columns=[metrics.title(m) for m in gathered.table.columns],
    costs=[results.COSTS[name][0] for name in gathered.table.costs],
    has_intervals=bool(spread.means),
    drawn=tables.drawn(queries, gathered.drawn.count),
    queries=queries,
    pairs=max((values['pairs'] for values in gathered.results.values()), default=0),
    test=gathered.config['data.test'],
    differences=difference_tables(gathered, spread),
    charts=draw(gathered, spread, gained),
    gains=gained,
    first_stage=gathered.title(gathered.table.first_stage),
    data=gathered.data,
    labels=label_table(gathered),
    legend=legend(gathered),
    marks=marks(legend(gathered)),
    has_equal_times=has_equal_times(gathered),
    dotted=tables.joined([gathered.title(name) for name in dotted(gathered)]),
    stages=[stage_row(s, gathered) for s in gathered.stages],
    has_devices=len({s['device'] for s in gathered.stages}) > 1,  # else the head names the one
    manifests=gathered.stages,
    versions=versions(gathered.stages),
    config=gathered.config,
    changed=gathered.changed,
    samples=gathered.samples,
  )


def about(gathered: Facts) -> dict[str, str]:
  """When and where the run was done, and how long it took."""
  done = [s for s in gathered.stages if s['status'] == 'done']
  return {
    'finished': moment(max((s['finished'] for s in done), default='')),
    'devices': ' and '.join(dict.fromkeys(s['device'] for s in gathered.stages)),
    'time': clock(sum(s['wall_s'] for s in gathered.stages)) if gathered.stages else '',
  }


def moment(written: str) -> str:
  """'2026-11-21T05:51:06Z' -> '2026-11-21 05:51 UTC'."""
  return f'{written[:10]} {written[11:16]} UTC' if written else ''


def table_rows(gathered: Facts, spread: Intervals) -> list[dict[str, Any]]:
  """One row per model: {title, is_subject, cells: [{value, span, is_best}], costs}."""
  of, found = gathered.table, gathered.results
  best = {m: max((float(v[m]) for v in found.values()), default=0) for m in of.columns}
  table = []
  for model, values in found.items():
    cells = []
    for metric in of.columns:
      digits, interval = tables.decimals(metric, DIGITS), spread.means.get((model, metric))
      cells.append({
        'value': tiles.number(values[metric], digits),
        'span': tiles.span(interval, digits) if interval else '',
        'is_best': float(values[metric]) == best[metric],
      })  # fmt: skip
    table.append({
      'title': gathered.title(model),
      'is_subject': model == of.subject,
      'cells': cells,
      'costs': [results.cost(name, values) for name in of.costs],
    })  # fmt: skip
  return table


def difference_tables(gathered: Facts, spread: Intervals) -> list[dict[str, Any]]:
  """{title, columns, rows: [{title, is_subject, cells}]} of each row that is tested against."""
  made = []
  for baseline in dict.fromkeys(baseline for baseline, _, _ in spread.differences):
    models = dict.fromkeys(m for b, m, _ in spread.differences if b == baseline)
    lines = []
    for model in models:
      cells = []
      for metric in gathered.table.tested:
        difference = spread.differences[baseline, model, metric]
        digits = tables.decimals(metric, DIGITS)
        cells.append({
          'value': tiles.number(difference['value'], digits, '+'),
          'span': tiles.span(difference, digits, '+'),
          'p': tables.chance(difference['p_holm'], DIGITS),
          'is_sure': difference['p_holm'] < ALPHA,
        })  # fmt: skip
      title, is_subject = gathered.title(model), model == gathered.table.subject
      lines.append({'title': title, 'is_subject': is_subject, 'cells': cells})
    if lines:
      columns = [metrics.title(m) for m in gathered.table.tested]
      made.append({'title': gathered.title(baseline), 'columns': columns, 'rows': lines})
  return made


def draw(gathered: Facts, spread: Intervals, gained) -> dict[str, Any]:
  """The charts by their place on the page; empty where there is nothing to draw."""
  of, found = gathered.table, gathered.results
  names = {model: gathered.title(model) for model in found}
  means = {model: interval(gathered, spread, model) for model in found}
  fair = {model: mean for model, mean in means.items() if not of.is_floor(model)}
  times = {model: found[model].get('ms_per_pair', 0) for model in fair}
  metric = metrics.title(of.main)
  cost, free = {model: ms for model, ms in times.items() if ms > 0}, dotted(gathered)
  timed = {model: mean for model, mean in fair.items() if model in cost or model in free}
  scores = facts.scores_by_label(gathered)
  top = gathered.top_label
  return {
    'dots': charts.dots(metric, names, means, of.subject, of.first_stage) if len(means) > 1 else '',
    'latency': charts.latency(metric, names, cost, timed, of.subject) if cost else '',
    'histograms': [charts.histogram(gathered.title(m), v, top) for m, v in scores.items()],
    'scatters': scatters(gathered),
    'gains': gain_charts(gathered, gained) if gained else [],
    'trainings': trainings(gathered),
  }


def dotted(gathered: Facts) -> list[str]:
  """The rows that the charts draw dotted: the first stage, and others that no model has ranked.

  The others are in the chart of times alone, which needs a row that has a time.
  """
  of, found = gathered.table, gathered.results
  timed = {name for name, values in found.items() if values.get('ms_per_pair')}
  free = [
    name
    for name in found
    if not of.is_floor(name) and not (name in of.rows and of.roles_of(of.rows[name]))
  ]
  return [name for name in free if name not in timed and (timed or name == of.first_stage)]


def has_equal_times(gathered: Facts) -> bool:
  """Whether rows took the same time, as fused ones and their model do."""
  times = [ms for values in gathered.results.values() if (ms := values.get('ms_per_pair'))]
  return len(set(times)) < len(times)


def trainings(gathered: Facts) -> list[dict[str, Any]]:
  """{title, charts, caption, class}: the losses, then each stage with panels of its own."""
  losses = {s: steps for s, steps in gathered.logs.items() if s not in gathered.panels}
  shown = []
  if losses:
    drawn = [curves.loss(stage, steps) for stage, steps in losses.items()]
    said = 'Loss by step, its exponential mean'
    if any(of_steps(steps) for steps in losses.values()):
      said += ', and the values of the held-out training queries'
    shown.append({'title': '', 'charts': drawn, 'caption': f'{said}.', 'class': ''})
  for stage, panels in gathered.panels.items():
    steps, before = gathered.logs.get(stage, []), gathered.before.get(stage, {})
    filled = curves.fill(panels, steps, before)
    if steps and filled:
      drawn = [curves.small(stage, steps, each) for each in filled]
      caption = curves.caption(filled)
      shown.append({'title': stage, 'charts': drawn, 'caption': caption, 'class': 'small'})
  return shown


def interval(gathered: Facts, spread: Intervals, model: str) -> dict[str, float]:
  """{value, low, high} of the main metric; a point if there are no intervals."""
  main = gathered.table.main
  value = float(gathered.results[model][main])
  return spread.means.get((model, main), {'value': value, 'low': value, 'high': value})


def gain_charts(gathered: Facts, gained) -> list[Markup]:
  metric, title = metrics.title(gathered.table.main), gathered.title
  limit = max((abs(v) for values in gained.pairs.values() for v in values), default=0.0)
  return [
    charts.gains(metric, f'{title(row)} against {title(other)}', values, limit)
    for (row, other), values in gained.pairs.items()
  ]


def legend(gathered: Facts) -> list[dict[str, int]]:
  """The labels of the test pairs with their colours."""
  labels = sorted({d.label for g in gathered.tests.values() for d in g.docs})
  return [{'label': label, 'grade': rankings.grade(label, gathered.top_label)} for label in labels]


def marks(legend: list[dict[str, int]]) -> str:
  """What the marks of the scatters are where they are not filled points."""
  labels = {entry['label'] for entry in legend}
  said = ['0: rings'] if 0 in labels else []
  said += ['not judged: crosses'] if min(labels, default=0) < 0 else []
  return f' ({"; ".join(said)})' if said else ''


def scatters(gathered: Facts) -> list[Markup]:
  """The students' scores against the teacher's."""
  of, labels = gathered.table, gathered.labels()
  teacher, drawn = gathered.runs.get(of.teacher), []
  for model in [name for name in of.trained if of.rows[name].role == of.role]:
    run = gathered.runs.get(model, {})
    points = [
      (score, run[query][doc], labels.get((query, doc), -1))
      for query, docs in (teacher or {}).items()
      for doc, score in docs.items()
      if doc in run.get(query, {})
    ]
    if points:
      tau = metrics.mean_tau(run, teacher)
      drawn.append(charts.scatter(gathered.title(model), np.array(points), tau, gathered.top_label))
  return drawn


def label_table(gathered: Facts) -> dict[str, Any]:
  """{kinds, rows: [{label, grade, cells: [{count, share}]}]} of the kinds that have labels."""
  kinds = [d for d in gathered.data if d['labels']]
  labels = sorted({label for d in kinds for label in d['labels']})
  table = []
  for label in labels:
    cells = []
    for kind in kinds:
      count, every = kind['labels'].get(label, 0), sum(kind['labels'].values())
      cells.append({'count': count, 'share': 100 * count / every})
    table.append({
      'label': str(label) if label >= 0 else 'none',
      'grade': rankings.grade(label, max(labels)),
      'cells': cells,
    })  # fmt: skip
  return {'kinds': [d['kind'] for d in kinds], 'rows': table}


def stage_row(stage: dict, gathered: Facts) -> dict[str, Any]:
  results = stage.get('results', {})
  return {
    'name': stage['stage'],
    'what': gathered.titles.get(stage['stage'], ''),
    'is_done': stage['status'] == 'done',
    'wall_s': stage['wall_s'],
    'steps': results.get('steps', ''),
    'amount': facts.amount(results, gathered.units.get(stage['stage'], '')),
    'device': stage['device'],
    'started': moment(stage['started']),
  }


def versions(stages: list[dict]) -> dict[str, str]:
  """{package: version}; where stages differ, each version with its stages."""
  used: dict[str, dict[str, list[str]]] = {}
  for stage in stages:
    for package, version in stage['versions'].items():
      used.setdefault(package, {}).setdefault(version, []).append(stage['stage'])
  return {
    package: ', '.join(v if len(by) == 1 else f'{v} ({" ".join(s)})' for v, s in by.items())
    for package, by in used.items()
  }
