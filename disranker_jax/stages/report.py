"""The stage that writes report/: the web page, report.md and summary.json."""

import shlex
from pathlib import Path

from disranker_jax.config.settings import Key, regex
from disranker_jax.devices import processes
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import clock
from disranker_jax.report import facts, page, results, tables


def execute(run: Run) -> dict:
  """Writes report/."""
  return processes.first_alone('report', lambda: write(run)) or {}


def write(run) -> dict:
  folder = run.folder('report')
  gathered = facts.gather(run)
  stages = stage_facts(run)
  latency = [
    {'model': name, 'ms_per_pair': values['ms_per_pair'], 'device': device(stages)}
    for name, values in gathered.results.items()
    if 'ms_per_pair' in values
  ]
  summary = {'models': gathered.results, 'stages': stages, 'latency': latency}
  manifest.write_json(folder / 'summary.json', summary)
  (folder / 'report.md').write_text(markdown(run, gathered.results, stages), encoding='utf-8')
  page.write(run, gathered, folder / 'index.html')
  return {'files': sorted(p.name for p in folder.iterdir() if p.name != 'manifest.json')}


def stage_facts(run) -> dict:
  """{stage: {wall_s, device, steps, rows, ...}} of the finished stages."""
  stages = {}
  for stage in run.config.stages:
    done = manifest.read(run.folder(stage))
    if done and done['status'] == 'done':
      plain = {k: v for k, v in done['results'].items() if not isinstance(v, dict | list)}
      stages[stage] = {'wall_s': round(done['wall_s'], 1), 'device': done['device'], **plain}
  return stages


def device(stages: dict) -> str:
  """The device that evaluated the models."""
  return stages.get('evaluate', {}).get('device', 'an unknown device')


def markdown(run, models, stages) -> str:
  """report.md: the result table and the stages."""
  lines = [f'# {run.config.name}: results', '']
  if models:
    first = next(iter(models.values()))
    lines += [
      f'{first["queries"]} held-out queries, {first["pairs"]} query-document pairs re-ranked. '
      'nDCG has exponential gain. PNR is pooled over all pairs. A query that a run lacks counts 0. '
      f'For MRR, grade {run.config.evaluate.min_relevance} or higher is relevant. ms per pair is '
      f'model time with full batches on {device(stages)}. Charts and intervals: index.html.',
      '',
      results.markdown(models),
      '',
    ]
  heads = ('stage', 'time', 'steps', 'rows or pairs')
  rows = [
    [s, clock(f['wall_s']), str(f.get('steps', '')), str(f.get('rows', f.get('pairs', '')))]
    for s, f in stages.items()
    if s != 'report'
  ]
  lines += ['## Stages', '', tables.markdown(heads, rows), '']
  samples = run.folder('cpt') / 'samples.md'
  if samples.exists():
    lines += [samples.read_text('utf-8').replace('# What', '## What'), '']
  return '\n'.join(lines)


def show(run) -> None:
  """Prints the result table, the paths of the outputs, and the next commands."""
  if models := facts.read_results(run):
    print('\n' + results.text(models) + '\n')
  for what, name in (('report:', 'index.html'), ('as text:', 'report.md')):
    if (file := run.folder('report') / name).exists():
      print(f'{what:<9}{shown(file)}')
  student = run.folder('export') / 'student'
  if student.exists():
    print(f'model:   {shown(student)}')
    print(f'next:    disranker rerank --model {shown(student)} {on_own_data(run)}')
    print(f'serve:   disranker serve --model {shown(student)}')


def on_own_data(run) -> str:
  """The arguments of `disranker rerank` that use the run's own test data."""
  address, first = run.config.data.test, run.folder('evaluate') / 'bm25.run'
  if address in ('', 'python_docs:'):
    return shlex.join(['--query', 'run a command and capture its output'])
  if first.exists():
    return shlex.join(['--run', shown(first), '--source', address, '--out', 'reranked.run'])
  query = next((group.query for group in facts.read_tests(run).values()), 'TEXT')
  return shlex.join(['--query', query, '--docs', address])


def shown(path) -> str:
  """A path relative to the current directory, if it is below it."""
  return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


STAGE = Stage(
  'report', 'tables and pictures for people', execute,
  settings={
    'cluster': Key(
      '', regex(empty=True),
      'Queries whose ids share what this expression matches, such as those of a session, are drawn '
      "together for intervals and tests; '': as data.holdout_by keeps them together.",
    ),
  },
  reads_stages=('prepare', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate', 'export'),
)  # fmt: skip
