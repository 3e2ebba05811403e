"""The stage that fills a system's result table (result_table.py) on the held-out queries.

The rows re-rank the same documents, or each of them ranks the whole collection. The run of a row is
written in TREC format, with its metrics per query and their means.
"""

import contextlib
import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.config.settings import (
  Key,
  Section,
  at_least,
  between,
  list_of,
  mapping_of,
  one_of,
)
from disranker_jax.data import once, sources
from disranker_jax.data.records import LARGEST_LABEL, UNJUDGED, Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, runs
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import amount, part_of, say
from disranker_jax.report import tables
from disranker_jax.stages import prepare, result_table
from disranker_jax.stages.held_out import graded
from disranker_jax.stages.result_table import Lacking, Ranking, Row, Table

BATCH_ROWS = 64  # by default
ONE_GRADE = 'ranked documents of one grade only, so every order of them is as good'


def execute(run: Run) -> dict:
  """<row>.run, <row>.json, per_query.csv and results.json for the rows that the config names.

  Each row is kept until what it was made from changes, so another row costs only itself. A row for
  which the records lack something is left out, with a message.
  """
  table = result_table.of(run.config)
  with once.shared() if table.shares(run.config) else contextlib.nullcontext():
    return fill(run, table)


def fill(run: Run, table: Table) -> dict:
  """See `execute`."""
  tests = prepare.records(run, 'test')
  groups = [to_rerank(group) if table.reranks else group for group in tests]
  qrels = {group.query_id: group.grades for group in tests}
  pool = {g.query_id: [d.doc_id for d in g.docs] for g in groups} if table.reranks else None
  folder, c = run.folder(table.stage), run.config[table.stage]
  # The first process has written the stage's manifest, which tells what rows are made from.
  processes.barrier(f'{table.stage}: begins')
  # Every process lists the finished rows before the first one writes.
  rows = table.rows_of(run.config)
  results = {name: filled(run, row) for name, row in rows.items()}
  processes.barrier(f'{table.stage}: looked')
  for name in [n for n, done in results.items() if done is None]:
    try:
      ranking, facts = rows[name].rank(run, rows[name], groups)
    except Lacking as lacking:
      results[name] = {}
      write_row(run, rows[name], {})
      say(f'{table.stage} {name}: left out: {lacking}')
      continue
    values = metrics.per_query(ranking, qrels, c.min_relevance, table.kept, pool)
    facts = {'title': rows[name].title} | facts
    results[name] = tables.plain(facts | metrics.summary(values))
    if processes.is_first():
      runs.write_run(folder / f'{name}.run', ranking, name)
      write_per_query(folder / f'{name}.csv', name, values)
    write_row(run, rows[name], results[name])
    value = results[name][table.main]
    say(f'{table.stage} {name}: {metrics.title(table.main)} {value:.3f}')
    for note in filter(None, map(results[name].get, ('remark', 'note'))):
      say(f'{table.stage} {name}: {note}')
    processes.barrier(f'{name} is evaluated')
  results = {name: found for name, found in results.items() if found}
  if processes.is_first():
    merge_per_query(folder, list(results), table.kept)
    manifest.write_json(folder / 'results.json', results)
  return results


def write_row(run: Run, row: Row, results: dict) -> None:
  """<row>.json, which says that the row is done; without results it is left out."""
  if processes.is_first():
    done = {'made_from': made_from(run, row), 'versions': versions_of(run, row), 'results': results}
    manifest.write_json(folder_of(run) / f'{row.name}.json', done)


def folder_of(run: Run) -> Path:
  """The folder of the stage that fills the table of the run's system."""
  return run.folder(result_table.of(run.config).stage)


def filled(run: Run, row: Row) -> dict | None:
  """The results of a row that was filled before from the same settings and inputs, else None.

  They are empty if the records lack what the row needs.
  """
  file = folder_of(run) / f'{row.name}.json'
  done = json.loads(file.read_text()) if file.exists() else {}
  if done.get('made_from') != made_from(run, row):
    return None
  then, now = done['versions'], versions_of(run, row)
  return done['results'] if inputs.as_before(then, now) == then else None


def ranking_of(run: Run, name: str, groups: Sequence[Group]) -> metrics.Run:
  """The ranking of the test queries by a row of the table. Raises: as `ranked`."""
  return ranked(run, name, groups)[0]


def ranked(run: Run, name: str, groups: Sequence[Group]) -> Ranking:
  """A row's ranking of the test queries and its facts: those on disk if they are still good.

  Also those of a row that the config does not name any more. Raises: Lacking.
  """
  row = result_table.of(run.config).rows[name]
  return stored(run, row) or row.rank(run, row, groups)


def on_disk(run: Run, name: str) -> Ranking | None:
  """The ranking and the facts of a row of the config that is filled already and still good."""
  table = result_table.of(run.config)
  return stored(run, table.rows[name]) if name in run.config[table.stage].models else None


def stored(run: Run, row: Row) -> Ranking | None:
  """The ranking and the facts of a row that is filled and still good."""
  file = folder_of(run) / f'{row.name}.run'
  facts = filled(run, row) if file.exists() else None
  return (runs.read_run(file), facts) if facts else None


def versions_of(run: Run, row: Row) -> dict[str, str]:
  """{'ROLE.model version': version} of the named models of a row, as the manifest has them."""
  found = (manifest.read(folder_of(run)) or {'inputs': {}})['inputs']
  wanted = {f'{role}.model{inputs.VERSION}' for role in result_table.of(run.config).roles_of(row)}
  return {k: v for k, v in found.items() if k in wanted - {*row.ignores}}


def made_from(run: Run, row: Row) -> str:
  """A fingerprint of the settings and inputs that a row depends on, but for versions_of."""
  stage = manifest.read(folder_of(run)) or {'config': {}, 'inputs': {}}
  table = result_table.of(run.config)
  roles, ignored = table.roles_of(row), {*row.ignores}
  sections = {'seed', table.stage, *roles}
  wanted = {f'prepare {kind}' for kind in ('test', *row.reads_records)} | {*row.reads_stages}
  wanted |= {f'{role}.{key}' for role in roles for key in ('model', 'init_from')}
  trained = {name: manifest.read(run.folder(name)) for name in row.stages(run.config)}
  return manifest.digest([
    {k: v for k, v in stage['config'].items() if k.split('.')[0] in sections and k not in ignored},
    {k: v for k, v in stage['inputs'].items() if k in (wanted | trained.keys()) - ignored},
    # Not every device repeats a training to the bit.
    {name: done.get('finished') for name, done in trained.items() if done},
    row.reads(run.config),
  ])  # fmt: skip


def is_complete(run: Run) -> bool:
  """Whether results.json has the config's rows, and each is still good."""
  file, rows = folder_of(run) / 'results.json', result_table.of(run.config).rows_of(run.config)
  found = {name: filled(run, row) for name, row in rows.items()}
  if not file.exists() or None in found.values():
    return False
  return list(json.loads(file.read_text())) == [name for name, of_row in found.items() if of_row]


def kept(run: Run) -> str:
  """How many rows of the table are finished."""
  rows = result_table.of(run.config).rows_of(run.config)
  done = sum(filled(run, row) is not None for row in rows.values())
  return f'{part_of(done, len(rows), "row", "rows", "is", "are")} done' if done else ''


def to_rerank(group: Group) -> Group:
  """The query with the documents that are to be re-ranked."""
  return Group(group.query_id, group.query, tuple(d for d in group.docs if d.in_pool))


def write_per_query(file, name: str, rows) -> None:
  with file.open('w', newline='', encoding='utf-8') as f:
    writer = csv.writer(f)
    for query, values in rows.items():
      writer.writerow([escaping.cell(query), name, *values.values()])


def merge_per_query(
  folder: Path, names: Sequence[str], kept: Sequence[str] = metrics.STANDARD
) -> None:
  """per_query.csv: every model's every query in one table, with the metrics `kept`."""
  empty = metrics.per_query({'': {}}, {'': {}}, names=kept)['']
  text = ','.join(['query_id', 'model', *empty]) + '\n'
  text += ''.join((folder / f'{name}.csv').read_text(encoding='utf-8') for name in names)
  (folder / 'per_query.csv').write_text(text, encoding='utf-8')


def check_records(run: Run) -> None:
  """Raises: UserError, before anything trains, for a test that measures nothing.

  Also if a run from elsewhere has nothing of the test.
  """
  table = result_table.of(run.config)
  table.check_records(run)
  check_labels(run, table)
  if table.reranks:
    check_orders(run, table)
  given = run.config[table.stage].runs
  queries = {group.query_id for group in prepare.records(run, 'test')} if given else ()
  for name, address in given.items():
    result_table.read_given(f'{table.stage}.runs.{name}', address, queries)


def check_labels(run: Run, table: Table) -> None:
  """Says what of the test tells little. Raises: UserError if its labels tell nothing."""
  tests, labels, pool = prepare.records(run, 'test'), Counter(), Counter()
  for group in tests:
    labels.update(doc.label for doc in group.docs)
    pool.update(doc.label for doc in group.docs if doc.in_pool)
  highest, judged = max(labels, default=UNJUDGED), labels.total() - labels[UNJUDGED]
  where = f'config.data.test={run.config.data.test!r}: '
  if highest < 1:
    what = f'all {judged:,} labels are 0'
    if not judged:
      what = f'no document of its {amount(len(tests), "query", "queries")} has a label'
    raise UserError(
      f'{where}{what}, so there is nothing to measure; give relevant documents a "label" of 1 or '
      f'more, or take {table.stage} out of config.stages'
    )
  if highest > LARGEST_LABEL:
    raise UserError(
      f'{where}has a label of {highest:,}, and labels go up to {LARGEST_LABEL}; 0 to 4 is usual'
    )
  key, least = f'config.{table.stage}.min_relevance', run.config[table.stage].min_relevance
  zero = tables.joined(metrics.zero_without(table.columns, least))
  if highest < least and zero:
    say(
      f'{table.stage}: no document has a label of {key}={least} or better (the highest label is '
      f'{highest}), so {zero} will be 0 in every row; lower it'
    )
  if steep := metrics.steep(highest, key):
    say(f'{table.stage}: {where}{steep}')
  if table.reranks and 2 * pool[UNJUDGED] > pool.total():
    said = part_of(pool[UNJUDGED], pool.total(), 'test pair', 'test pairs', 'is', 'are')
    they = 'it counts' if pool[UNJUDGED] == 1 else 'they count'
    say(f'{table.stage}: {said} not judged; {they} as not relevant')


def is_of_one_grade(group: Group) -> bool:
  """Whether no model can rank a test query's documents wrongly, although one is relevant."""
  relevant = any(doc.label > 0 for doc in group.docs)  # else a line says that there is none
  return relevant and not graded(to_rerank(group))


def check_orders(run: Run, table: Table) -> None:
  """Says for how many test queries every order of the ranked documents is as good.

  Raises: UserError if it is so for all of them: each row would have the same values.
  """
  tests = prepare.records(run, 'test')
  if not any(graded(to_rerank(group)) for group in tests):
    fix = (
      'add documents that are not relevant, in rows with a "label" of 0 or without one, or rank '
      'what a first stage finds, such as trec:DIR?run=bm25'
    )
    if not any(doc.label > 0 for group in tests for doc in to_rerank(group).docs):
      fix = 'none of them is relevant: raise config.data.depth, or take another first stage'
    raise UserError(
      f'config.data.test={run.config.data.test!r}: no query has ranked documents of two grades, so '
      f'every order of them is as good and there is nothing to measure; {fix}; or take '
      f'{table.stage} out of config.stages'
    )
  if count := sum(map(is_of_one_grade, tests)):
    said = part_of(count, len(tests), 'test query', 'test queries', 'has', 'have')
    say(f'{table.stage}: {said} {ONE_GRADE}')


def reads(config) -> tuple[str, ...]:
  """The kinds of records that the rows read."""
  rows = result_table.of(config).rows_of(config).values()
  return tuple(dict.fromkeys(['test', *(kind for row in rows for kind in row.reads_records)]))


def addresses(config) -> list[tuple[str, str, str]]:
  """See Stage.addresses."""
  table = result_table.of(config)
  runs_of = config[table.stage].runs.to_dict().items()
  found = [(f'{table.stage}.runs.{name}', sources.SCORES, given) for name, given in runs_of]
  return [*found, *table.addresses(config)]


def uses(config) -> tuple[Use, ...]:
  """The models of the rows."""
  return tuple(
    dataclasses.replace(row.use(config), is_done=lambda run, r=row: filled(run, r) is not None)
    for row in result_table.of(config).rows_of(config).values()
    if row.role
  )


def settings_of(table: Table) -> Section:
  """The keys of the stage's section."""
  return {
    'batch_rows': Key(
      BATCH_ROWS, at_least(1), 'Rows of row_len tokens per batch.', affects_results=False,
    ),
    'models': Key(
      tuple(table.rows), list_of(one_of(*table.rows), distinct=True),
      'The rows of the result table.', affects_results=False,
    ),
    **table.settings,
    'runs': Key(
      {}, mapping_of('[A-Za-z0-9_.-]+', prepare.ADDRESS),
      "More rows: rankings of the test queries from elsewhere, such as {'production': "
      "'trec:production.run'}. A document that they lack ranks last.", affects_results=False,
    ),
    'min_relevance': Key(
      1, between(1, 1000), 'Lowest grade that MRR, MAP, recall and hits count as relevant.'
    ),
  }  # fmt: skip


def check(config) -> None:
  """As of the table; a line says which rows the config names and cannot fill."""
  table = result_table.of(config)
  others = [*table.rows, *(row.name for row in table.more_rows(config))]
  for name in config[table.stage].runs:
    if name in others:
      raise UserError(
        f'config.{table.stage}.runs.{name}: is the name of another row; choose a new one'
      )
  table.check(config)
  for name, why in table.left_out(config).items():
    say(f'{table.stage} {name}: is left out: {why}')


def stage(table: Table, **declared) -> Stage:
  """The stage that fills a table.

  Args:
    declared: more of what Stage has: the models and the stages that its rows read.
  """
  return Stage(
    table.stage, table.title, execute, settings_of(table), check=check, parts='rows',
    is_complete=is_complete, reads_records=reads, kept=kept, uses=uses,
    check_records=check_records, addresses=addresses, **declared,
  )  # fmt: skip
