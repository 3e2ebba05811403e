"""The run's report as one HTML page: no network, no script, everything inside."""

import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from disranker_jax.data.holdout import clusters
from disranker_jax.evaluation import metrics
from disranker_jax.progress import clock
from disranker_jax.report import charts, comparison, facts, intervals, rankings, tables, words
from disranker_jax.report.facts import Facts
from disranker_jax.report.intervals import MAIN, Intervals

TEMPLATE = 'page.html'
WHAT = {
  'prepare': 'reads the sources',
  'cpt': 'the teacher reads clicks (continued pre-training)',
  'sft': 'the teacher learns to rank from labels',
  'score': 'the teacher scores unlabeled pairs',
  'student_sft': 'the student learns from labels alone',
  'distill': "the student learns the teacher's scores",
  'evaluate': 'every model ranks the held-out queries',
  'export': 'the student for other programs',
}


def write(run, found: Facts, file: Path) -> None:
  """Writes the page of a run."""
  file.write_bytes(render(run, found).encode('utf-8', 'replace'))


def render(run, found: Facts) -> str:
  """The page as text; all that does not come from our own charts is escaped."""
  by, queries = found.cluster, list(found.tests)
  rows = {model: of_model for model, of_model in found.rows.items() if model in found.results}
  spread = intervals.analyse(rows, by=by)
  gained = rankings.gains(found)
  loader = jinja2.FileSystemLoader(Path(__file__).parent)
  environment = jinja2.Environment(
    loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  environment.filters |= {'clock': clock, 'number': words.number}
  return environment.get_template(TEMPLATE).render(
    name=found.name,
    about=about(found),
    summary=words.sentences(found, spread),
    tiles=words.tiles(found, spread),
    relevant=run.config.evaluate.min_relevance,
    results=result_rows(found, spread),
    columns=[comparison.title(m) for m in metrics.COLUMNS],
    has_intervals=bool(spread.means),
    drawn=comparison.drawn(len(queries), len(set(clusters(queries, by)))),
    differences=difference_tables(found, spread),
    charts=draw(found, spread, gained),
    gains=gained,
    contender=found.title(gained.model) if gained else '',
    data=found.data,
    labels=label_table(found),
    legend=legend(found),
    stages=[stage_row(s) for s in found.stages],
    has_devices=len({s['device'] for s in found.stages}) > 1,  # one is told at the top
    manifests=found.stages,
    versions=versions(found.stages),
    config=found.config,
    changed=found.changed,
    samples=found.samples,
  )


def about(found: Facts) -> dict[str, str]:
  """When and where, as far as the stages say."""
  done = [s for s in found.stages if s['status'] == 'done']
  return {
    'finished': moment(max((s['finished'] for s in done), default='')),
    'devices': ' and '.join(dict.fromkeys(s['device'] for s in found.stages)),
    'time': clock(sum(s['wall_s'] for s in found.stages)) if found.stages else '',
  }


def moment(written: str) -> str:
  """'2026-11-21T05:51:06Z' -> '2026-11-21 05:51 UTC'."""
  return f'{written[:10]} {written[11:16]} UTC' if written else ''


def result_rows(found: Facts, spread: Intervals) -> list[dict[str, Any]]:
  """A row a model: {title, is_student, cells: [{value, span, is_best}], parameters, ms}."""
  best = {m: max((float(v[m]) for v in found.results.values()), default=0) for m in metrics.COLUMNS}
  rows = []
  for model, values in found.results.items():
    cells = []
    for metric in metrics.COLUMNS:
      value, interval = float(values[metric]), spread.means.get((model, metric))
      cells.append({
        'value': digits(value, metric),
        'span': span(interval, metric) if interval else '',
        'is_best': value == best[metric],
      })  # fmt: skip
    rows.append({
      'title': found.title(model),
      'is_student': model == 'student',
      'cells': cells,
      'parameters': tables.short(values['parameters']) if 'parameters' in values else '',
      'ms': tables.number(values['ms_per_pair'], 2) if 'ms_per_pair' in values else '',
    })  # fmt: skip
  return rows


def digits(value: float, metric: str, sign: str = '') -> str:
  """Two decimals for PNR, three for what lies between 0 and 1."""
  if not math.isfinite(value):
    return '\N{EN DASH}' if math.isnan(value) else f'{value:{sign}}'
  return f'{value:{sign}.{2 if metric == "pnr" else 3}f}'.replace('-', words.MINUS)


def span(cell: dict, metric: str, sign: str = '') -> str:
  return ' to '.join(digits(cell[end], metric, sign) for end in ('low', 'high'))


def difference_tables(found: Facts, spread: Intervals) -> list[dict[str, Any]]:
  """For each baseline its table: {title, columns, rows: [{title, cells}]}."""
  made = []
  for baseline in intervals.BASELINES:
    models = dict.fromkeys(m for b, m, _ in spread.differences if b == baseline)
    rows = []
    for model in models:
      cells = []
      for metric in intervals.TESTED:
        apart = spread.differences[baseline, model, metric]
        cells.append({
          'value': digits(apart['value'], metric, '+'),
          'span': span(apart, metric, '+'),
          'p': words.chance(apart['p_holm']),
          'is_sure': apart['p_holm'] < words.ALPHA,
        })  # fmt: skip
      rows.append({'title': found.title(model), 'is_student': model == 'student', 'cells': cells})
    if rows:
      columns = [comparison.title(m) for m in intervals.TESTED]
      made.append({'title': words.named(found, baseline), 'columns': columns, 'rows': rows})
  return made


def draw(found: Facts, spread: Intervals, gained) -> dict[str, Any]:
  """Every chart for which there is something to draw, by the place where it stands."""
  names = {model: found.title(model) for model in found.results}
  means = {model: interval(found, spread, model) for model in found.results}
  fair = {model: mean for model, mean in means.items() if model != intervals.FLOOR}
  times = {model: found.results[model].get('ms_per_pair', 0) for model in fair}
  cost = {model: ms for model, ms in times.items() if ms > 0}
  scores = facts.scores_by_label(found)
  top = found.top_label
  return {
    'dots': charts.dots(names, means, 'student', 'bm25') if len(means) > 1 else '',
    'latency': charts.latency(names, cost, fair) if cost else '',
    'histograms': [charts.histogram(found.title(m), v, top) for m, v in scores.items()],
    'scatters': scatters(found),
    'gains': gain_charts(found, gained) if gained else [],
    'curves': [charts.curve(stage, steps) for stage, steps in found.logs.items()],
  }


def interval(found: Facts, spread: Intervals, model: str) -> dict[str, float]:
  """Of nDCG@5; a point where nothing is known of its width."""
  value = float(found.results[model][MAIN])
  return spread.means.get((model, MAIN), {'value': value, 'low': value, 'high': value})


def gain_charts(found: Facts, gained) -> list[Markup]:
  shown = {other: found.title(other) for other in gained.others}
  return [charts.gains(f'against {shown[m]}', values) for m, values in gained.others.items()]


def legend(found: Facts) -> list[dict[str, int]]:
  """The labels of the test pairs with their colours."""
  labels = sorted({d.label for g in found.tests.values() for d in g.docs})
  return [{'label': label, 'grade': rankings.grade(label, found.top_label)} for label in labels]


def scatters(found: Facts) -> list[Markup]:
  """The students' scores against the teacher's, before and after distillation."""
  teacher, labels = found.runs.get('teacher'), found.labels()
  drawn = []
  for model in ('student_sft', 'student'):
    run = found.runs.get(model, {})
    points = [
      (score, run[query][doc], labels.get((query, doc), -1))
      for query, docs in (teacher or {}).items()
      for doc, score in docs.items()
      if doc in run.get(query, {})
    ]
    if points:
      tau = metrics.mean_tau(run, teacher)
      drawn.append(charts.scatter(found.title(model), np.array(points), tau, found.top_label))
  return drawn


def label_table(found: Facts) -> dict[str, Any]:
  """{kinds: names, rows: [{label, cells: [{count, share}]}]} of the kinds that have labels."""
  kinds = [d for d in found.data if d['labels']]
  labels = sorted({label for d in kinds for label in d['labels']})
  rows = []
  for label in labels:
    cells = []
    for kind in kinds:
      count, every = kind['labels'].get(label, 0), sum(kind['labels'].values())
      cells.append({'count': count, 'share': 100 * count / every})
    rows.append({
      'label': str(label) if label >= 0 else 'none',
      'grade': rankings.grade(label, max(labels)),
      'cells': cells,
    })  # fmt: skip
  return {'kinds': [d['kind'] for d in kinds], 'rows': rows}


def stage_row(stage: dict) -> dict[str, Any]:
  results = stage.get('results', {})
  return {
    'name': stage['stage'],
    'what': WHAT.get(stage['stage'], ''),
    'is_done': stage['status'] == 'done',
    'wall_s': stage['wall_s'],
    'steps': results.get('steps', ''),
    'rows': results.get('rows', results.get('pairs', '')),
    'device': stage['device'],
    'started': moment(stage['started']),
  }


def versions(stages: list[dict]) -> dict[str, str]:
  """{package: version}; where stages differ, each version with the stages that it was used by."""
  used: dict[str, dict[str, list[str]]] = {}
  for stage in stages:
    for package, version in stage['versions'].items():
      used.setdefault(package, {}).setdefault(version, []).append(stage['stage'])
  return {
    package: ', '.join(v if len(by) == 1 else f'{v} ({" ".join(s)})' for v, s in by.items())
    for package, by in used.items()
  }
