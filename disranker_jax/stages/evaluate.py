"""Fills the rows of the result table (rows.py) on the held-out queries.

Every row re-ranks the same documents. Its run is written in TREC format, with its metrics per query
and their means.
"""

import csv
import json
import math
from collections.abc import Iterator

from disranker_jax.config.settings import Key, at_least, between, list_of, one_of
from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.evaluation import metrics, runs
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import say
from disranker_jax.stages import prepare, teacher
from disranker_jax.stages.result_rows import ROWS, Row


def rows_of(config) -> list[Row]:
  """The rows that this config can fill: those whose stage it lists."""
  rows = (ROWS[name] for name in config.evaluate.models)
  return [row for row in rows if row.is_available(config)]


def execute(run: Run) -> dict:
  """<model>.run, per_query.csv and results.json for the models that the config names."""
  tests = prepare.records(run, 'test')
  groups = [to_rerank(tests[i]) for i in range(len(tests))]
  qrels = {g.query_id: {d.doc_id: d.label for d in g.docs if d.label >= 0} for g in all_of(tests)}
  folder = run.folder('evaluate')
  # Finished rows are not scored again. Every process lists them before the first one writes.
  rows = {row.name: row for row in rows_of(run.config)}
  files = {name: folder / f'{name}.json' for name in rows}
  results = {n: json.loads(f.read_text()) if f.exists() else None for n, f in files.items()}
  processes.barrier('evaluate: looked')
  for name in [n for n, done in results.items() if done is None]:
    ranking, facts = rows[name].rank(run, rows[name], groups)
    values = metrics.per_query(ranking, qrels, run.config.evaluate.min_relevance)
    results[name] = {k: plain(v) for k, v in (metrics.summary(values) | facts).items()}
    if processes.is_first():
      runs.write_run(folder / f'{name}.run', ranking, name)
      write_per_query(folder / f'{name}.csv', name, values)
      manifest.write_json(files[name], results[name])
    say(f'evaluate {name}: nDCG@5 {results[name]["ndcg@5"]:.3f}')
    processes.barrier(f'{name} is evaluated')
  if processes.is_first():
    merge_per_query(folder, list(results))
    manifest.write_json(folder / 'results.json', results)
  return results


def kept(run) -> str:
  """How many rows of the table are finished."""
  rows = rows_of(run.config)
  done = sum((run.folder('evaluate') / f'{row.name}.json').exists() for row in rows)
  return f'{done} of {len(rows)} rows are done' if done else ''


def all_of(source) -> Iterator[Group]:
  return (source[i] for i in range(len(source)))


def to_rerank(group: Group) -> Group:
  """The query with the documents that are to be re-ranked."""
  return Group(group.query_id, group.query, tuple(d for d in group.docs if d.in_pool))


def plain(value):
  """JSON has no infinity: a PNR without a discordant pair is written as text."""
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_per_query(file, name: str, rows) -> None:
  with file.open('w', newline='', encoding='utf-8') as f:
    writer = csv.writer(f)
    for query, values in rows.items():
      writer.writerow([query, name, *values.values()])


def merge_per_query(folder, names: list[str]) -> None:
  """per_query.csv: every model's every query in one table."""
  empty = metrics.per_query({'': {}}, {'': {}})['']
  text = ','.join(['query_id', 'model', *empty]) + '\n'
  text += ''.join((folder / f'{name}.csv').read_text(encoding='utf-8') for name in names)
  (folder / 'per_query.csv').write_text(text, encoding='utf-8')


def uses(config) -> tuple[Use, ...]:
  """The models of the rows."""
  return tuple(row.use(config) for row in rows_of(config) if row.role)


SETTINGS = {
  'batch_rows': Key(64, at_least(1), 'Rows of row_len tokens per batch.'),
  'models': Key(
    tuple(ROWS), list_of(one_of(*ROWS), distinct=True),
    'The rows of the result table.',
  ),
  'min_relevance': Key(
    1, between(1, 1000), 'Lowest grade that MRR, MAP and recall count as relevant.'
  ),
}  # fmt: skip


def check(config) -> None:
  if 'zero_shot' in config.evaluate.models:
    why = 'the zero_shot row of config.evaluate.models scores the query after the document'
    template = config.teacher.zero_shot_template
    teacher.check_template('teacher.zero_shot_template', template, why)


STAGE = Stage(
  'evaluate', 'every model ranks the held-out queries', execute, SETTINGS, check=check,
  models=('teacher', 'student'), reads_stages=('prepare', 'cpt', 'sft', 'student_sft', 'distill'),
  reads_records=lambda config: ('test',), kept=kept, uses=uses,
)  # fmt: skip
