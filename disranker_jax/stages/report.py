"""The stage that writes report/: the web page, report.md and summary.json."""

import json
import shlex
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.config.settings import Key, regex
from disranker_jax.devices import processes
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import amount, clock
from disranker_jax.report import cautions, facts, findings, page, results, tables
from disranker_jax.stages import result_table
from disranker_jax.stages.result_table import Table


def execute(run: Run) -> dict:
  """Writes report/."""
  return processes.first_alone('report', lambda: write(run)) or {}


def write(run) -> dict:
  folder = run.folder('report')
  gathered = facts.gather(run)
  summary = summarised(run, gathered)
  manifest.write_json(folder / 'summary.json', summary)
  (folder / 'report.md').write_text(markdown(run, summary), encoding='utf-8')
  page.write(run, gathered, folder / 'index.html')
  files = sorted(p.name for p in folder.iterdir() if p.name != manifest.FILE)
  return {'files': files, 'reports': finished(run)}


def summarised(run, gathered: facts.Facts) -> dict:
  """What summary.json has: everything that the table and the sentences say, as numbers."""
  found, spread = gathered.results, gathered.intervals
  means: dict[str, dict] = {}
  for (name, metric), cell in spread.means.items():
    means.setdefault(name, {})[metric] = cell
  differences = [
    {'model': gathered.title(name), 'against': gathered.title(baseline), 'metric': metric, **cell}
    for (baseline, name, metric), cell in spread.differences.items()
  ]
  latency = [
    {'model': name, 'ms_per_pair': values['ms_per_pair'], 'device': gathered.device}
    for name, values in found.items()
    if 'ms_per_pair' in values
  ]
  queries = len(next(iter(gathered.rows.values()), ()))
  return tables.plain({
    'computed_on': {
      'test': gathered.config['data.test'],
      'queries': queries,
      'pairs': max((values['pairs'] for values in found.values()), default=0),
      'drawn': tables.drawn(queries, gathered.drawn.count),
    },
    'models': found,
    'intervals': means,
    'differences': differences,
    'lead_kept': spread.kept,
    'sentences': findings.sentences(gathered),
    'warnings': cautions.of(gathered),
    'stages': stage_facts(run),
    'latency': latency,
    'overlap': gathered.overlap,
    'seeds': gathered.seeds,
    'served': gathered.served,
  })  # fmt: skip


def finished(run) -> dict[str, str]:
  """{stage: when it was finished}, for the stages that a report describes, other seeds' too."""
  folders = {stage: run.folder(stage) for stage in run.config.stages if stage != 'report'}
  seeded = run.workdir.glob(f'seeds/*/{result_table.of(run.config).stage}')
  folders |= {str(f.relative_to(run.workdir)): f for f in seeded}
  stages = {name: manifest.read(folder) for name, folder in folders.items()}
  return {name: m['finished'] for name, m in stages.items() if m and m['status'] == 'done'}


def is_complete(run) -> bool:
  """Whether the report describes the stages as they are now."""
  done = manifest.read(run.folder('report')) or {}
  return done.get('results', {}).get('reports') == finished(run)


def stage_facts(run) -> dict:
  """{stage: {wall_s, device, steps, rows, ...}} of the finished stages."""
  stages = {}
  for stage in run.config.stages:
    done = manifest.read(run.folder(stage))
    if done and done['status'] == 'done':
      plain = {k: v for k, v in done['results'].items() if not isinstance(v, dict | list)}
      stages[stage] = {'wall_s': round(done['wall_s'], 1), 'device': done['device'], **plain}
  return stages


def markdown(run, summary: dict) -> str:
  """report.md: the result table, what it says, and the stages."""
  lines, table = (
    [f'# {escaping.markdown(run.config.name)}: results', ''],
    result_table.of(run.config),
  )
  if models := summary['models']:
    lines += [
      about(table, run.config[table.stage].min_relevance, summary),
      '',
      results.markdown(table, models, summary['intervals']),
      '',
      *(f'- {escaping.markdown(sentence)}' for sentence in summary['sentences']),
      '',
    ]
  if summary['warnings']:
    lines += ['## Warnings', '', *(f'- {escaping.markdown(w)}' for w in summary['warnings']), '']
  if summary['differences']:
    lines += [
      '## Differences', '', results.differences(summary['differences']), '',
      f'p: paired randomisation over {summary["computed_on"]["drawn"]}, two-sided; Holm: corrected '
      f'for the {len(summary["differences"])} tests of this table.', '',
    ]  # fmt: skip
  stages = summary['stages']
  heads, units = ('stage', 'time', 'steps', 'learned or scored'), facts.units(run)
  rows = [
    [s, clock(f['wall_s']), str(f.get('steps', '')), facts.amount(f, units.get(s, ''))]
    for s, f in stages.items()
    if s != 'report'
  ]
  lines += ['## Stages', '', tables.markdown(heads, rows), '']
  for text in facts.read_samples(run).values():
    lines += [f'#{text}']  # its heading is one below those of the report's title
  return '\n'.join(lines)


def about(table: Table, relevant: int, summary: dict) -> str:
  """What the rows of the table are of, and what its columns are."""
  on = summary['computed_on']
  pairs = f'{amount(on["pairs"], "query-document pair")} that every row ranks'
  said = [
    f'{amount(on["queries"], "held-out query", "held-out queries")} of '
    f'{escaping.code(on["test"])}, '
    f'{pairs if table.reranks else "for which every row ranks the whole collection"}.',
    'A query that a run lacks counts 0.',
    *results.notes(table, relevant, device(summary)),
    f'Intervals: bootstrap over {on["drawn"]}.',
    'Charts: index.html.',
  ]
  return ' '.join(said)


def device(summary: dict) -> str:
  """The device that evaluated the models."""
  return next((row['device'] for row in summary['latency']), 'an unknown device')


def show(run) -> None:
  """Prints the result table with what it says, the paths of the outputs, and the next commands."""
  file, table = run.folder('report') / 'summary.json', result_table.of(run.config)
  if is_complete(run) and file.exists():
    summary = json.loads(file.read_text())
    models, means = summary['models'], summary['intervals']
    print('\n' + results.text(table, models, means, tables.columns()) + '\n')
    for sentence in summary['sentences']:
      print(tables.wrapped(escaping.line(sentence)))
    for warning in summary['warnings']:
      print(tables.wrapped(f'warning: {escaping.line(warning)}'))
    print()
  elif models := facts.read_results(run):
    if manifest.is_done(run.folder(table.stage)):
      print('\n' + results.text(table, models, {}, tables.columns()) + '\n')
    else:  # its rows are kept, but what they were made from is gone
      print(f'\nno result table: {table.stage} has to run again\n')
  for what, name in (('report:', 'index.html'), ('as text:', 'report.md')):
    if (file := run.folder('report') / name).exists():
      print(f'{what:<9}{shown(file)}')
  student = run.folder('export') / 'student'
  if student.exists():
    print(f'model:   {shown(student)}')
    print(f'next:    disranker rerank --model {shown(student)} {on_own_data(run)}')
    print(f'serve:   disranker serve --model {shown(student)}')
  if any(manifest.is_done(run.folder(stage)) for stage in table.command_needs):
    words = ['--run', shown(run.workdir), '--query', any_query(run)]
    print(f'next:    disranker {table.command} {shlex.join(words)}')


def on_own_data(run) -> str:
  """The arguments of `disranker rerank` that use the run's own test data."""
  address, table = run.config.data.test, result_table.of(run.config)
  first = run.folder(table.stage) / f'{table.first_stage}.run'
  if address in ('', 'python_docs:'):
    return shlex.join(['--query', 'run a command and capture its output'])
  if first.exists():
    return shlex.join(['--run', shown(first), '--source', address, '--out', 'reranked.run'])
  return shlex.join(['--query', any_query(run), '--docs', address])


def any_query(run) -> str:
  """A test query, to be typed in a command."""
  texts = (group.query for group in facts.read_tests(run).values())
  return next((text for text in texts if escaping.line(text) == text), 'TEXT')


def shown(path) -> str:
  """A path relative to the current directory, if it is below it."""
  return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


SETTINGS = {
  'cluster': Key(
    '', regex(empty=True),
    'Queries whose ids share what this expression matches, such as those of a session, are drawn '
    "together for intervals and tests; '': as data.holdout_by keeps them together, else those "
    "that share their judgements; '.+': every query by itself.",
  ),
}  # fmt: skip


def stage(*reads_stages: str) -> Stage:
  """The stage that reports on what the named stages wrote."""
  return Stage(
    'report', 'tables and pictures for people', execute, SETTINGS, is_complete=is_complete,
    reads_stages=reads_stages, any_records=True, of_its_run=True,
  )  # fmt: skip
