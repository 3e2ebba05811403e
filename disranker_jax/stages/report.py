"""What a person and a machine read at the end: a web page, report.md, summary.json, the table."""

from pathlib import Path

from disranker_jax.config.settings import Key, regex
from disranker_jax.devices import processes
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Stage
from disranker_jax.progress import clock
from disranker_jax.report import facts, page, plots, tables
from disranker_jax.report.facts import TRAINING, Facts, read_results


def run(run) -> dict:
  """Writes report/."""
  return processes.first_alone('report', lambda: write(run)) or {}


def write(run) -> dict:
  folder = run.folder('report')
  found = facts.gather(run)
  results, stages = found.results, stage_facts(run)
  latency = [
    {'model': name, 'ms_per_pair': values['ms_per_pair'], 'device': device(stages)}
    for name, values in results.items()
    if 'ms_per_pair' in values
  ]
  summary = {'models': results, 'stages': stages, 'latency': latency}
  manifest.write_json(folder / 'summary.json', summary)
  pictures = draw(run, found)
  text = markdown(run, results, stages, pictures)
  (folder / 'report.md').write_text(text, encoding='utf-8')
  page.write(run, found, folder / 'index.html')
  return {'files': sorted(p.name for p in folder.iterdir() if p.name != 'manifest.json')}


def stage_facts(run) -> dict:
  """{stage: wall time, steps, rows, device, ...} of the stages that are done."""
  told = {}
  for stage in run.config.stages:
    done = manifest.read(run.folder(stage))
    if done and done['status'] == 'done':
      plain = {k: v for k, v in done['results'].items() if not isinstance(v, dict | list)}
      told[stage] = {'wall_s': round(done['wall_s'], 1), 'device': done['device'], **plain}
  return told


def device(stages: dict) -> str:
  """Where the models were evaluated."""
  return stages.get('evaluate', {}).get('device', 'an unknown device')


def draw(run, found: Facts) -> list[tuple[str, str]]:
  """(file, caption) of each picture."""
  folder, results = run.folder('report'), found.results
  pictures = []
  if results:
    names = {tables.TITLES[n]: v['ndcg@5'] for n, v in results.items()}
    plots.quality(names, folder / 'ndcg.png')
    pictures.append(('ndcg.png', 'nDCG@5 on the held-out queries.'))
  logs = {s: run.folder(s) / 'metrics.jsonl' for s in TRAINING}
  if logs := {s: f for s, f in logs.items() if f.exists()}:
    plots.training_curves(logs, folder / 'training.png')
    pictures.append(('training.png', 'Loss by step; the line is an exponential mean.'))
  models = [m for m in results if 'parameters' in results[m]]
  if scores := facts.scores_by_label(found, models):
    scores = {tables.TITLES[m]: by_label for m, by_label in scores.items()}
    plots.score_histograms(scores, folder / 'scores.png')
    pictures.append(('scores.png', 'Scores of the test pairs by label, each label of equal area.'))
  return pictures


def markdown(run, results, stages, pictures) -> str:
  """report.md."""
  lines = [f'# {run.config.name}: results', '']
  if results:
    first = next(iter(results.values()))
    lines += [
      f'{first["queries"]} held-out queries, {first["pairs"]} query-document pairs re-ranked. '
      'nDCG with exponential gain; PNR pooled over all pairs; a query that a run lacks counts 0; '
      f'MRR takes grade {run.config.evaluate.min_relevance} and better for an answer. ms a pair is '
      f'model time at full batches on {device(stages)}.',
      '',
      tables.markdown(tables.HEADS, tables.rows(results)),
      '',
    ]
  for file, caption in pictures:
    lines += [f'![{caption}]({file})', '', caption, '']
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
  """The table on the terminal, where things are, and what to type next."""
  if results := read_results(run):
    print('\n' + tables.text(results) + '\n')
  for what, name in (('report:', 'index.html'), ('as text:', 'report.md')):
    if (file := run.folder('report') / name).exists():
      print(f'{what:<9}{shown(file)}')
  student = run.folder('export') / 'student'
  if student.exists():
    print(f'model:   {shown(student)}')
    print(
      f'next:    disranker rerank --model {shown(student)} '
      '--query "run a command and capture its output"'
    )
    print(f'serve:   disranker serve --model {shown(student)}')


def shown(path) -> str:
  """A path as the person would type it."""
  return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


STAGE = Stage(
  'report', 'tables and pictures for people', run,
  settings={
    'cluster': Key(
      '', regex(empty=True),
      'Queries whose ids share what this expression matches, such as those of a session, are drawn '
      "together for intervals and tests; '': as data.holdout_by keeps them together.",
    ),
  },
  after=('prepare', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate', 'export'),
)  # fmt: skip
