"""What a run left in its folders, gathered for the report; what is missing stays empty."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from disranker_jax import config as configs
from disranker_jax.data import store
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.data.spaced import spaced
from disranker_jax.errors import UserError
from disranker_jax.evaluation import rewrites, runs
from disranker_jax.evaluation.rewrites import Rewrite
from disranker_jax.evaluation.units import Units
from disranker_jax.pipeline import manifest, systems
from disranker_jax.pipeline.stage import Stage
from disranker_jax.progress import of_units
from disranker_jax.report import intervals, seeds
from disranker_jax.report.intervals import Intervals
from disranker_jax.stages import result_table
from disranker_jax.stages.result_table import Table
from disranker_jax.training import logs
from disranker_jax.training.panels import Panel

MOST = 10_000  # records whose texts are measured, evenly spaced if there are more
TEXTS = ('query', 'title', 'summary')


@dataclasses.dataclass
class Facts:
  """Everything that the page shows; every part may be empty."""

  name: str
  table: Table  # the system's
  results: dict[str, dict]  # {model: {metric: value}}, in the order of the table
  rows: dict[str, dict[str, dict[str, float]]]  # {model: {query_id: {metric: value}}}
  tests: dict[str, Group]  # the held-out queries
  documents: Mapping[str, Document]  # of the collection, if rows rank all of it
  runs: dict[str, dict[str, dict[str, float]]]  # {model: {query_id: {doc_id: score}}}, best first
  logs: dict[str, list[dict]]  # {stage: steps}
  stages: list[dict]  # manifests, in the order of the stages
  titles: dict[str, str]  # {stage: what it does}
  units: dict[str, str]  # {stage: what the rows of its results are}
  panels: dict[
    str, tuple[Panel, ...]
  ]  # {stage: what is drawn of its training}, if it is not the loss
  data: list[dict]  # a kind of records each
  config: dict[str, object]  # by dotted keys
  changed: dict[str, object]  # the part that is not the default
  samples: dict[str, str]  # {stage: the texts that it wrote, as Markdown}
  rewrites: dict[str, dict[str, Rewrite]]  # {model: {query_id: what is searched for it}}
  cluster: str  # queries whose ids it matches alike are drawn together; '': by shared judgements
  device: str  # that evaluated the rows
  overlap: dict[str, dict]  # {kind: how much of the test is among the training data}
  served: dict[str, list[dict]]  # {model: what requests to its exported folder get}
  validation: dict[str, dict]  # {stage: its held-out values}
  before: dict[str, dict]  # {stage: its held-out values before the first step}, if it measures them
  gains: dict[str, dict]  # {stage: {held-out value: its change while the stage learned, tested}}
  tried: dict[
    str, float
  ]  # {weight of the hard labels: nDCG@5 of held-out queries}, if several were
  best: dict[str, str]  # which student is exported as the best one, and why
  quantised: dict  # the 8-bit format in which the teacher scored, and what the gate found
  seeds: dict[str, dict[int, float]]  # {row: {the seed of its model: value of the main metric}}
  other_seeds: dict[int, str]  # {seed: in what else its run differs}, which `seeds` lacks

  def labels(self) -> dict[tuple[str, str], int]:
    """{(query_id, doc_id): label} of the judged test pairs."""
    return {(q, d): grade for q, group in self.tests.items() for d, grade in group.grades.items()}

  def title(self, row: str) -> str:
    """The title of a row of the result table."""
    return self.table.row_title(row, self.results)

  @functools.cached_property
  def intervals(self) -> Intervals:
    """Means and differences of the rows with intervals; empty if there are too few queries."""
    rows = {name: values for name, values in self.rows.items() if name in self.results}
    against = {
      name: of_row['against'] for name, of_row in self.results.items() if 'against' in of_row
    }
    return intervals.analyse(self.table, rows, clusters_Q=self.drawn.of_Q, against=against)

  @functools.cached_property
  def drawn(self) -> Units:
    """What intervals and tests draw: by the config's expression, else by shared judgements."""
    grades = {query: group.grades for query, group in self.tests.items()}
    return Units(grades, list(next(iter(self.rows.values()), ())), self.cluster or None)

  @functools.cached_property
  def top_label(self) -> int:
    """The highest label of the test pairs."""
    return max((d.label for g in self.tests.values() for d in g.docs), default=0)


def gather(run) -> Facts:
  """Reads what the run's workdir holds."""
  table = result_table.of(run.config)
  evaluated = run.folder(table.stage)
  config = configs.flatten(run.config)
  default = configs.flatten(configs.defaults(config['system']))
  results = read_results(run)
  ranked = [name for name in results if not table.is_floor(name)]
  files = {model: evaluated / f'{model}.run' for model in ranked}
  per_query = evaluated / 'per_query.csv'
  return Facts(
    name=run.config.name,
    table=table,
    results=results,
    rows=runs.read_per_query(per_query) if per_query.exists() else {},
    tests=read_tests(run),
    documents=table.documents(run),
    runs={model: read_run(file, table.stage) for model, file in files.items() if file.exists()},
    logs=read_logs(run),
    stages=read_stages(run),
    titles={stage.name: stage.title for stage in declared(run)},
    units=units(run),
    panels={stage.name: stage.panels for stage in declared(run) if stage.panels},
    data=[described(run, kind) for kind in store.KINDS if data_folder(run, kind).is_dir()],
    config=config,
    changed={k: v for k, v in config.items() if default.get(k) != v},
    samples=read_samples(run),
    rewrites={
      model: rewrites.read(file)
      for model in results
      if (file := evaluated / f'{model}.{rewrites.SUFFIX}').exists()
    },
    cluster=configs.cluster(run.config),
    overlap=stage_results(run, 'prepare').get('overlap', {}),
    served=stage_results(run, 'export').get('served', {}),
    validation=of_stages(run, 'validation'),
    before=of_stages(run, 'before'),
    gains=of_stages(run, 'gain'),
    tried=stage_results(run, 'distill').get('tried', {}),
    best=stage_results(run, 'export').get('best', {}),
    quantised=stage_results(run, 'score').get('quantised', {}),
    seeds=seeds.values(run, results),
    other_seeds=seeds.left_out(run),
    device=(manifest.read(evaluated) or {}).get('device', 'an unknown device'),
  )


def read_results(run) -> dict[str, dict]:
  """{model: {metric: value}}; infinite values are text."""
  file = run.folder(result_table.of(run.config).stage) / 'results.json'
  return json.loads(file.read_text()) if file.exists() else {}


def read_samples(run) -> dict[str, str]:
  """{stage: its samples.md} of the stages that write one, in order."""
  files = {stage.name: run.folder(stage.name) / 'samples.md' for stage in declared(run)}
  return {name: file.read_text('utf-8') for name, file in files.items() if file.exists()}


def stage_results(run, stage: str) -> dict:
  """What a finished stage returned; {} if it is not finished."""
  done = manifest.read(run.folder(stage)) or {}
  return done.get('results', {})


def of_stages(run, key: str) -> dict[str, dict]:
  """{stage: a part of what it returned}, of the finished stages that have it."""
  found = {stage.name: stage_results(run, stage.name).get(key) for stage in declared(run)}
  return {name: part for name, part in found.items() if part}


def read_run(file: Path, stage: str) -> dict[str, dict[str, float]]:
  """A run that the stage wrote, best first. Raises: UserError if it is damaged."""
  try:
    return runs.read_run(file)
  except UserError as e:
    raise UserError(f'{e}; or repeat the stage with --rerun={stage}') from None


def declared(run) -> tuple[Stage, ...]:
  """All stages of the run's system."""
  return systems.of(run.config).stages


def units(run) -> dict[str, str]:
  """{stage: what the rows of its results are}."""
  return {stage.name: stage.unit for stage in declared(run)}


def amount(results: Mapping, unit: str) -> str:
  """How much a stage learned or scored: '1,000 clicks'; '' if its results do not say."""
  counts = ((results.get('rows'), unit), (results.get('pairs'), 'pairs'))
  return next((of_units(count, what) for count, what in counts if count is not None), '')


def read_logs(run) -> dict[str, list[dict]]:
  """{stage: its steps with a finite loss}."""
  found = {}
  for stage in [each.name for each in declared(run) if each.task]:
    steps = logs.read(run.folder(stage) / logs.FILE)
    if steps := [row for row in steps if math.isfinite(row.get('loss', math.nan))]:
      found[stage] = steps
  return found


def read_stages(run) -> list[dict]:
  """Manifests of the stages that have started, except the report's own."""
  stages = [stage.name for stage in declared(run) if stage.name != 'report']
  manifests = [manifest.read(run.folder(stage)) for stage in stages]
  return [each for each in manifests if each is not None]


def data_folder(run, kind: str) -> Path:
  return run.folder('prepare') / kind


def read_tests(run) -> dict[str, Group]:
  """The held-out queries with all their documents, if their records exist."""
  folder = data_folder(run, 'test')
  return {g.query_id: g for g in store.open('test', folder)} if folder.is_dir() else {}


def described(run, kind: str) -> dict:
  """Counts, labels and text lengths (in characters) of a kind of records."""
  source = store.open(kind, data_folder(run, kind))
  picks = spaced(len(source), MOST)
  lengths: dict[str, list[int]] = {field: [] for field in TEXTS}
  labels: dict[int, int] = {}
  documents = 0
  for record in (source[i] for i in picks):
    lengths['query'].append(len(record.query))
    docs = (record,) if isinstance(record, Click) else record.docs
    documents += len(docs)
    for doc in docs:
      lengths['title'].append(len(doc.title))
      lengths['summary'].append(len(doc.summary))
      if isinstance(record, Group) and kind != 'candidates':
        labels[doc.label] = labels.get(doc.label, 0) + 1
  return {
    'kind': kind,
    'address': run.config.data[kind],
    'rows': len(source),
    'measured': len(picks),
    'documents': documents if kind != 'clicks' else 0,
    'labels': dict(sorted(labels.items())),
    'lengths': {field: quantiles(values) for field, values in lengths.items()},
    'quarantined': quarantined(run, kind),
  }


def quantiles(values: list[int]) -> dict[str, int] | None:
  """The median, the 95th percentile and the maximum."""
  if not values:
    return None
  middle, high = np.percentile(values, [50, 95], method='higher')
  return {'median': int(middle), 'p95': int(high), 'max': max(values)}


def quarantined(run, kind: str) -> int:
  """The number of rows that prepare set aside."""
  before = manifest.read(run.folder('prepare')) or {}
  return before.get('results', {}).get(kind, {}).get('quarantined', 0)


def scores_by_label(facts: Facts) -> dict[str, dict[int, list[float]]]:
  """{model: {label: scores}} of the judged test pairs, for the trained models that have a run.

  Rankings of the whole collection hold few judged pairs, and have none.
  """
  labels = facts.labels()
  scores: dict[str, dict[int, list[float]]] = {}
  for model in facts.table.trained if facts.table.reranks else ():
    for query, docs in facts.runs.get(model, {}).items():
      for doc, score in docs.items():
        if (query, doc) in labels:
          of_label = scores.setdefault(model, {}).setdefault(labels[query, doc], [])
          of_label.append(score)
  return scores
