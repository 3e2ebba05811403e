"""Every row of the result table: random order, BM25, the LLM as it came, and the trained models.

Each model re-ranks the same documents of the held-out queries; its run is written as TREC, its
metrics per query and in the mean.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.evaluation import metrics
from disranker_jax.pipeline import manifest
from disranker_jax.progress import Progress, say
from disranker_jax.stages import prepare, roles

# Rows that need a trained stage; the others are always to be had.
TRAINED = {'student_sft': 'student_sft', 'teacher': 'sft', 'student': 'distill'}


def models(config) -> list[str]:
  """The rows that this config can fill: those whose stage it lists."""
  rows = []
  for name in config.evaluate.models:
    if name == 'teacher' and 'likelihood' in config.teacher.scorer:
      rows.append(name)  # ranks with or without fine-tuning
    elif name not in TRAINED or TRAINED[name] in config.stages:
      rows.append(name)
  return rows


def run(run) -> dict:
  """<model>.run, per_query.csv and results.json for the models that the config names."""
  tests = prepare.records(run, 'test')
  groups = [pooled(tests[i]) for i in range(len(tests))]
  qrels = {g.query_id: {d.doc_id: d.label for d in g.docs if d.label >= 0} for g in all_of(tests)}
  folder = run.folder('evaluate')
  # What is finished is not scored again after a restart. All processes look before one writes.
  files = {name: folder / f'{name}.json' for name in models(run.config)}
  results = {n: json.loads(f.read_text()) if f.exists() else None for n, f in files.items()}
  processes.barrier('evaluate: looked')
  for name in [n for n, done in results.items() if done is None]:
    ranking, facts = ROWS[name](run, name, groups)
    rows = metrics.per_query(ranking, qrels, run.config.evaluate.min_relevance)
    results[name] = {k: plain(v) for k, v in (metrics.summary(rows) | facts).items()}
    if processes.is_first():
      write_run(folder / f'{name}.run', ranking, name)
      write_per_query(folder / f'{name}.csv', name, rows)
      manifest.write_json(files[name], results[name])
    say(f'evaluate {name}: nDCG@5 {results[name]["ndcg@5"]:.3f}')
    processes.barrier(f'{name} is evaluated')
  if processes.is_first():
    merge_per_query(folder, list(results))
    manifest.write_json(folder / 'results.json', results)
  return results


def all_of(source) -> Iterator[Group]:
  return (source[i] for i in range(len(source)))


def pooled(group: Group) -> Group:
  """The query with the documents that are to be re-ranked."""
  return Group(group.query_id, group.query, tuple(d for d in group.docs if d.in_pool))


def plain(value):
  """JSON has no infinity: a PNR without a discordant pair is written as text."""
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def random_order(run, name, groups):
  """Scores drawn from the config's seed."""
  rng = np.random.default_rng(run.config.seed)
  return {g.query_id: {d.doc_id: rng.random() for d in g.docs} for g in groups}, {}


def first_stage(run, name, groups):
  """The order in which the documents came; those that it does not have go last."""
  return {
    g.query_id: {d.doc_id: -float(d.rank or len(g.docs) + 1) for d in g.docs} for g in groups
  }, {}


def model(run, name, groups):
  """A model of the run: the pretrained teacher, or a trained teacher or student."""
  scorer = roles.scorer(run, *roles.load(run, name), rows=run.config.evaluate.batch_rows)
  return score_all(name, scorer, groups), facts(scorer)


ROWS: dict[str, Callable] = {
  'random': random_order,
  'bm25': first_stage,
  'zero_shot': model,
  'student_sft': model,
  'teacher': model,
  'student': model,
}


def score_all(name: str, scorer, groups) -> metrics.Run:
  """Every group's scores, in every process; each scores its share of the groups."""
  scores_by_group = [np.zeros(len(g.docs), np.float32) for g in groups]
  own = range(jax.process_index(), len(groups), jax.process_count())
  with Progress(f'evaluate {name}', len(own), 'pairs') as progress:
    scored = scorer(groups[i] for i in own)
    for done, (i, (_, scores)) in enumerate(zip(own, scored, strict=True), 1):
      scores_by_group[i] = scores
      progress.update(done, len(scores))
  every = processes.add_up(np.concatenate([np.zeros(0, np.float32), *scores_by_group])).tolist()
  values = iter(every)
  return {g.query_id: {d.doc_id: next(values) for d in g.docs} for g in groups}


def facts(scorer) -> dict:
  return {'parameters': scorer.network.count_params(), 'ms_per_pair': scorer.ms_per_pair}


def write_run(file, ranking: metrics.Run, name: str) -> None:
  """query Q0 document rank score tag, best first."""
  with file.open('w') as f:
    for query, scores in ranking.items():
      for rank, doc in enumerate(metrics.ranked(scores), 1):
        f.write(f'{query} Q0 {doc} {rank} {scores[doc]:.9g} {name}\n')


def write_per_query(file, name: str, rows) -> None:
  with file.open('w', newline='') as f:
    writer = csv.writer(f)
    for query, values in rows.items():
      writer.writerow([query, name, *values.values()])


def merge_per_query(folder, names: list[str]) -> None:
  """per_query.csv: every model's every query in one table."""
  empty = metrics.per_query({'': {}}, {'': {}})['']
  text = ','.join(['query_id', 'model', *empty]) + '\n'
  text += ''.join((folder / f'{name}.csv').read_text() for name in names)
  (folder / 'per_query.csv').write_text(text)
