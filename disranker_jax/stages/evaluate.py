"""Fills the rows of the result table (result_rows.py) on the held-out queries.

Every row re-ranks the same documents. Its run is written in TREC format, with its metrics per query
and their means.
"""

import csv
import dataclasses
import json

from disranker_jax import escaping
from disranker_jax.config.settings import Key, at_least, between, list_of, mapping_of, one_of
from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, runs
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import say
from disranker_jax.rankers.llm.methods import METHODS
from disranker_jax.report import tables
from disranker_jax.stages import prepare, prompting, teacher
from disranker_jax.stages.result_rows import ROWS, Lacking, Row, given_rows, read_given


def rows_of(config) -> dict[str, Row]:
  """The rows that this config can fill, by name: those whose stage it lists, and all others."""
  rows = [*(ROWS[name] for name in config.evaluate.models), *prompting.rows(config)]
  rows += given_rows(config)
  return {row.name: row for row in rows if row.is_available(config)}


def execute(run: Run) -> dict:
  """<row>.run, <row>.json, per_query.csv and results.json for the rows that the config names.

  Each row is kept until what it was made from changes, so another row costs only itself. A row for
  which the records lack something is left out, with a message.
  """
  tests = prepare.records(run, 'test')
  groups = [to_rerank(group) for group in tests]
  qrels = {group.query_id: group.grades for group in tests}
  pool = {g.query_id: [d.doc_id for d in g.docs] for g in groups}
  folder = run.folder('evaluate')
  # The first process has written the stage's manifest, which tells what rows are made from.
  processes.barrier('evaluate: begins')
  # Every process lists the finished rows before the first one writes.
  rows = rows_of(run.config)
  results = {name: filled(run, row) for name, row in rows.items()}
  processes.barrier('evaluate: looked')
  for name in [n for n, done in results.items() if done is None]:
    try:
      ranking, facts = rows[name].rank(run, rows[name], groups)
    except Lacking as lacking:
      results[name] = {}
      write_row(run, rows[name], {})
      say(f'evaluate {name}: left out: {lacking}')
      continue
    least = run.config.evaluate.min_relevance
    values = metrics.per_query(ranking, qrels, least, pool=pool)
    facts = {'title': rows[name].title} | facts
    results[name] = tables.plain(facts | metrics.summary(values))
    if processes.is_first():
      runs.write_run(folder / f'{name}.run', ranking, name)
      write_per_query(folder / f'{name}.csv', name, values)
    write_row(run, rows[name], results[name])
    say(f'evaluate {name}: nDCG@5 {results[name]["ndcg@5"]:.3f}')
    if note := results[name].get('note'):
      say(f'evaluate {name}: {note}')
    processes.barrier(f'{name} is evaluated')
  results = {name: found for name, found in results.items() if found}
  if processes.is_first():
    merge_per_query(folder, list(results))
    manifest.write_json(folder / 'results.json', results)
  return results


def write_row(run: Run, row: Row, results: dict) -> None:
  """<row>.json, which says that the row is done; without results it is left out."""
  if processes.is_first():
    done = {'made_from': made_from(run, row), 'results': results}
    manifest.write_json(run.folder('evaluate') / f'{row.name}.json', done)


def filled(run: Run, row: Row) -> dict | None:
  """The results of a row that was filled before from the same settings and inputs, else None.

  They are empty if the records lack what the row needs.
  """
  file = run.folder('evaluate') / f'{row.name}.json'
  done = json.loads(file.read_text()) if file.exists() else {}
  return done['results'] if done.get('made_from') == made_from(run, row) else None


def made_from(run: Run, row: Row) -> str:
  """A fingerprint of the settings and inputs that a row depends on."""
  stage = manifest.read(run.folder('evaluate')) or {'config': {}, 'inputs': {}}
  sections, inputs = {'seed', 'evaluate', row.role}, {'prepare test'}
  inputs |= {f'{row.role}.model', f'{row.role}.init_from'}
  trained = {name: manifest.read(run.folder(name)) for name in row.stages(run.config)}
  return manifest.digest([
    {k: v for k, v in stage['config'].items() if k.split('.')[0] in sections},
    {k: v for k, v in stage['inputs'].items() if k in inputs | trained.keys()},
    # Not every device repeats a training to the bit.
    {name: done.get('finished') for name, done in trained.items() if done},
    row.reads(run.config),
  ])  # fmt: skip


def is_complete(run: Run) -> bool:
  """Whether results.json has the config's rows, and each is still good."""
  file, rows = run.folder('evaluate') / 'results.json', rows_of(run.config)
  found = {name: filled(run, row) for name, row in rows.items()}
  if not file.exists() or None in found.values():
    return False
  return list(json.loads(file.read_text())) == [name for name, of_row in found.items() if of_row]


def kept(run: Run) -> str:
  """How many rows of the table are finished."""
  rows = rows_of(run.config)
  done = sum(filled(run, row) is not None for row in rows.values())
  return f'{done} of {len(rows)} rows are done' if done else ''


def to_rerank(group: Group) -> Group:
  """The query with the documents that are to be re-ranked."""
  return Group(group.query_id, group.query, tuple(d for d in group.docs if d.in_pool))


def write_per_query(file, name: str, rows) -> None:
  with file.open('w', newline='', encoding='utf-8') as f:
    writer = csv.writer(f)
    for query, values in rows.items():
      writer.writerow([escaping.cell(query), name, *values.values()])


def merge_per_query(folder, names: list[str]) -> None:
  """per_query.csv: every model's every query in one table."""
  empty = metrics.per_query({'': {}}, {'': {}})['']
  text = ','.join(['query_id', 'model', *empty]) + '\n'
  text += ''.join((folder / f'{name}.csv').read_text(encoding='utf-8') for name in names)
  (folder / 'per_query.csv').write_text(text, encoding='utf-8')


def check_records(run: Run) -> None:
  """Raises: UserError if a run from elsewhere has nothing of the test: before anything trains."""
  queries, ranks = set(), 0
  for group in prepare.records(run, 'test'):
    queries.add(group.query_id)
    ranks += any(doc.rank for doc in group.docs)
  if not ranks and 'bm25' in run.config.evaluate.models:
    say('evaluate: the test has no first-stage ranks, so its first row will be BM25, computed here')
  for name, address in run.config.evaluate.runs.items():
    read_given(name, address, queries)


def uses(config) -> tuple[Use, ...]:
  """The models of the rows."""
  return tuple(
    dataclasses.replace(row.use(config), is_done=lambda run, r=row: filled(run, r) is not None)
    for row in rows_of(config).values()
    if row.role
  )


SETTINGS = {
  'batch_rows': Key(64, at_least(1), 'Rows of row_len tokens per batch.'),
  'models': Key(
    tuple(ROWS), list_of(one_of(*ROWS), distinct=True),
    'The rows of the result table.', affects_results=False,
  ),
  'rankers': Key(
    (), list_of(one_of(*METHODS), distinct=True),
    "More rows: the pretrained teacher ranks by prompts, such as ('yes_no', 'prp_allpair', "
    "'listwise'); docs/llm_rankers.md has the methods.", affects_results=False,
  ),
  'prompts': prompting.PROMPTS,
  'runs': Key(
    {}, mapping_of('[A-Za-z0-9_.-]+', prepare.ADDRESS),
    "More rows: rankings of the test queries from elsewhere, such as {'production': "
    "'trec:production.run'}. A document that they lack ranks last.", affects_results=False,
  ),
  'min_relevance': Key(
    1, between(1, 1000), 'Lowest grade that MRR, MAP and recall count as relevant.'
  ),
}  # fmt: skip


def check(config) -> None:
  for name in config.evaluate.runs:
    if name in (*ROWS, *config.evaluate.rankers):
      raise UserError(f'config.evaluate.runs.{name}: is the name of another row; choose a new one')
  prompting.check_rows(config)
  if 'zero_shot' in config.evaluate.models:
    why = 'the zero_shot row of config.evaluate.models scores the query after the document'
    template = config.teacher.zero_shot_template
    teacher.check_template('teacher.zero_shot_template', template, why)


STAGE = Stage(
  'evaluate', 'every model ranks the held-out queries', execute, SETTINGS, check=check,
  has_parts=True, is_complete=is_complete,
  models=('teacher', 'student'), reads_stages=('prepare', 'cpt', 'sft', 'student_sft', 'distill'),
  reads_records=lambda config: ('test',), kept=kept, uses=uses,
  check_records=check_records, paper_rows=104_960,
)  # fmt: skip
