"""What a run left in its folders, gathered for the report; whatever is not there stays empty."""

import csv
import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import numpy as np

from disranker_jax import config as configs
from disranker_jax.data import store
from disranker_jax.data.records import Click, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline import manifest, systems
from disranker_jax.report import tables

TRAINING = ('cpt', 'sft', 'student_sft', 'distill')
SCORED = (
  'student_sft',
  'student',
  'teacher',
)  # before and after distillation, and what is imitated
RANKED = ('bm25', *SCORED, 'zero_shot')  # runs that are read
RUN_ROW = re.compile(r'(.*) Q0 (.*) \d+ (\S+) \S+')
MOST = 10_000  # records whose texts are measured; of more, as many at even distances
TEXTS = ('query', 'title', 'summary')


@dataclasses.dataclass
class Facts:
  """All that the page tells; every part may be empty."""

  name: str
  results: dict[str, dict]  # {model: {metric: value}}, in the order of the table
  rows: dict[str, dict[str, dict[str, float]]]  # {model: {query_id: {metric: value}}}
  tests: dict[str, Group]  # the held-out queries
  runs: dict[str, dict[str, dict[str, float]]]  # {model: {query_id: {doc_id: score}}}, best first
  logs: dict[str, list[dict]]  # {stage: steps}
  stages: list[dict]  # manifests, in the order of the stages
  data: list[dict]  # a kind of records each
  config: dict[str, object]  # by dotted keys
  changed: dict[str, object]  # the part that is not the default
  samples: str  # what the teacher writes after continued pre-training
  cluster: str  # queries whose ids it matches alike are drawn together

  def labels(self) -> dict[tuple[str, str], int]:
    """{(query_id, doc_id): label} of the judged test pairs."""
    return {(q, d.doc_id): d.label for q, g in self.tests.items() for d in g.docs if d.label >= 0}

  @functools.cached_property
  def top_label(self) -> int:
    """The best label of the test pairs."""
    return max((d.label for g in self.tests.values() for d in g.docs), default=0)

  def title(self, model: str) -> str:
    return tables.TITLES.get(model, model)


def gather(run) -> Facts:
  """Reads what there is under the run's workdir."""
  evaluated, samples = run.folder('evaluate'), run.folder('cpt') / 'samples.md'
  config, default = configs.flatten(run.config), configs.flatten(configs.defaults())
  files = {model: evaluated / f'{model}.run' for model in RANKED}
  return Facts(
    name=run.config.name,
    results=read_results(run),
    rows=read_rows(evaluated / 'per_query.csv'),
    tests=read_tests(run),
    runs={model: read_run(file) for model, file in files.items() if file.exists()},
    logs=read_logs(run),
    stages=read_stages(run),
    data=[described(run, kind) for kind in store.KINDS if data_folder(run, kind).is_dir()],
    config=config,
    changed={k: v for k, v in config.items() if default.get(k) != v},
    samples=samples.read_text('utf-8') if samples.exists() else '',
    cluster=configs.cluster(run.config),
  )


def read_results(run) -> dict[str, dict]:
  """{model: {metric: value}}; infinite values are text."""
  file = run.folder('evaluate') / 'results.json'
  return json.loads(file.read_text()) if file.exists() else {}


def read_rows(file: Path) -> dict[str, dict[str, dict[str, float]]]:
  """Every model's metrics of every query, of per_query.csv."""
  rows: dict[str, dict[str, dict[str, float]]] = {}
  if not file.exists():
    return rows
  with file.open(newline='', encoding='utf-8') as f:
    for row in csv.DictReader(f):
      query, model = row.pop('query_id'), row.pop('model')
      rows.setdefault(model, {})[query] = {k: float(v) for k, v in row.items() if v}
  return rows


def read_run(file: Path) -> dict[str, dict[str, float]]:
  """{query_id: {doc_id: score}} of a run that evaluate wrote, best first. Ids may have spaces."""
  scores: dict[str, dict[str, float]] = {}
  for number, line in enumerate(file.read_text('utf-8').split('\n'), 1):
    if not line:
      continue
    if not (row := RUN_ROW.fullmatch(line)):
      raise UserError(f'{file}:{number}: is no row of a run; do it again with --rerun=evaluate')
    query, doc, score = row.groups()
    scores.setdefault(query, {})[doc] = float(score)
  return scores


def read_logs(run) -> dict[str, list[dict]]:
  """{stage: its steps with a finite loss}; the line at which a run was killed is left out."""
  logs = {}
  for stage in TRAINING:
    file = run.folder(stage) / 'metrics.jsonl'
    lines = file.read_text().splitlines() if file.exists() else []
    steps = [json.loads(line) for line in lines if line.endswith('}')]
    if steps := [row for row in steps if math.isfinite(row.get('loss', math.nan))]:
      logs[stage] = steps
  return logs


def read_stages(run) -> list[dict]:
  """Manifests of the stages that have begun; the report itself is not done while it is written."""
  stages = [s.name for s in systems.stages(run.config) if s.name != 'report']
  found = [manifest.read(run.folder(stage)) for stage in stages]
  return [before for before in found if before is not None]


def data_folder(run, kind: str) -> Path:
  return run.folder('prepare') / kind


def read_tests(run) -> dict[str, Group]:
  """The held-out queries with all their documents, if their records are there."""
  folder = data_folder(run, 'test')
  return {g.query_id: g for g in store.open('test', folder)} if folder.is_dir() else {}


def described(run, kind: str) -> dict:
  """Counts, labels and text lengths of a kind of records."""
  source = store.open(kind, data_folder(run, kind))
  picks = np.unique(np.linspace(0, len(source) - 1, min(MOST, len(source))).astype(int))
  lengths: dict[str, list[int]] = {field: [] for field in TEXTS}
  labels: dict[int, int] = {}
  documents = 0
  for record in (source[int(i)] for i in picks):
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
  """Rows that prepare set aside."""
  before = manifest.read(run.folder('prepare')) or {}
  return before.get('results', {}).get(kind, {}).get('quarantined', 0)


def scores_by_label(facts: Facts, models=SCORED) -> dict[str, dict[int, list[float]]]:
  """{model: {label: scores}} of the judged test pairs, for the models that have a run."""
  labels = facts.labels()
  scores: dict[str, dict[int, list[float]]] = {}
  for model in models:
    for query, docs in facts.runs.get(model, {}).items():
      for doc, score in docs.items():
        if (query, doc) in labels:
          of_label = scores.setdefault(model, {}).setdefault(labels[query, doc], [])
          of_label.append(score)
  return scores
