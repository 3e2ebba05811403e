"""Exports trained models as Hugging Face folders that give the same scores in other libraries."""

import dataclasses
import functools
import glob
import os
import shutil
import tempfile
from pathlib import Path

from disranker_jax.config.settings import Check, Key, above, between, list_of, one_of, text
from disranker_jax.data import python_docs
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.exporting import card, formats, licence, parity, serving, vocabulary
from disranker_jax.exporting.licence import Origin
from disranker_jax.models import hf, weights
from disranker_jax.models.load import open_tokenizer
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import say
from disranker_jax.rankers import pointwise
from disranker_jax.report import facts
from disranker_jax.stages import best_student, evaluate, fused_rows, prepare
from disranker_jax.stages.best_student import Choice
from disranker_jax.stages.result_rows import ROWS, STUDENT, TABLE

READERS = 3  # libraries that read a folder, if all are installed
BEST = 'best'  # the student that ranks held-out queries best; its folder is export/student


def execute(run: Run) -> dict:
  """Writes a folder below export/ for each model in config.export.models, with adapters merged.

  A folder gets its final name only after every installed reader gave the model's scores.
  """
  folders, served, best = {}, {}, {}
  for name in run.config.export.models:
    choice = best_student.choose(run) if name == BEST else Choice(name, '')
    row, folder = choice.row, run.folder('export') / folder_of(name)
    if choice.why:
      best = {'row': row, 'why': choice.why}
      say(f'export: {folder.name}/ is the {choice.text}')
    is_student = ROWS[row].role == 'student'
    model, variables, kind = ROWS[row].load(run)
    how = fused_rows.of_export(run, row, (model, variables, kind)) if is_student else None
    folders[folder.name] = str(folder.relative_to(run.workdir))
    unchecked = folder.with_name(f'.{folder.name}')
    model, variables = save(run, model, variables, unchecked, how)
    groups, reference = scored(run, model, variables)
    origins = origins_of(run, row, model)
    finishing = functools.partial(
      finish, run, model, unchecked, folder, groups, reference, origins, choice
    )
    processes.first_alone(f'export of {row}', finishing)
    if is_student and is_tested(run):
      measuring = functools.partial(measured, run, folder)
      served[row] = processes.first_alone(f'requests to {row}', measuring)
  return {'folders': folders, 'served': served, 'best': best}


def folder_of(name: str) -> str:
  """The folder of an entry of config.export.models."""
  return STUDENT if name == BEST else name


def is_tested(run) -> bool:
  """Whether there is a prepared test set."""
  return 'prepare' in run.config.stages and 'test' in prepare.kinds(run.config)


def measured(run, folder: Path) -> list[dict]:
  """What requests for the test queries get from the folder (serving.measure)."""
  tests = prepare.records(run, 'test')
  groups = [tests[i] for i in range(min(len(tests), serving.QUERIES))]
  qrels = {group.query_id: group.grades for group in groups}
  rows = serving.measure(folder, [evaluate.to_rerank(group) for group in groups], qrels)
  for row in rows:
    say(
      f'export: {row["backend"]}: nDCG@5 {row["ndcg@5"]:.3f} over {row["queries"]} queries, '
      f'{row["p50_ms"]:.1f} ms per request of {row["documents"]:.0f} documents (95 %: '
      f'{row["p95_ms"]:.1f} ms)'
    )
  return rows


def kept(run) -> str:
  """Which models have their final folder."""
  names = map(folder_of, run.config.export.models)
  done = [name for name in names if (run.folder('export') / name).exists()]
  return f'{" and ".join(done)} exported' if done else ''


def save(run, model, variables, folder: Path, how: Fusion | None = None):
  """Writes tensors, config and tokenizer; returns (model, variables) as written.

  `how` is recorded for those who fuse the model with the first stage.
  They differ from the arguments if config.export.vocabulary reduces the vocabulary.
  """
  c = run.config.export
  s = model.settings
  extra = {'max_len': s.max_len, 'max_query_len': s.max_query_len}
  extra |= {'from': weights.origin(model.folder)}
  extra |= {'fusion': how.to_dict()} if how else {}
  network = model.network
  family = network.family
  extra |= {name: s[name] for name in family.prompt_settings}
  with tempfile.TemporaryDirectory() as scratch:
    tokenizer = model.folder
    if c.vocabulary and not family.vocabulary_tables:
      say(f'export: {network.config.model_type} models keep their whole vocabulary')
    elif c.vocabulary:
      tokenizer = Path(scratch) / 'tokenizer'
      ids = vocabulary.used(model.folder, texts(run))
      network, variables = vocabulary.trim(network, variables, model.folder, tokenizer, ids)
      say(f'export: {network.config.vocab} of {model.network.config.vocab} tokens are kept')
    hf.save(
      folder, network, variables, tokenizer_folder=tokenizer,
      extra_config={'disranker_jax': extra}, dtype=c.dtype,
      typed=getattr(model.prompt(), 'typed', True),
    )  # fmt: skip
  processes.barrier('exported, not checked yet')
  return dataclasses.replace(model, network=network, tokenizer=open_tokenizer(folder)), variables


def texts(run):
  """Yields every text of the run's data, or of the file in config.export.vocabulary."""
  from disranker_jax.data import sources

  source = run.config.export.vocabulary
  if source != 'data':
    for doc in sources.documents(source):
      yield from (doc.title, doc.summary)
    return
  for kind in prepare.kinds(run.config):
    for record in prepare.records(run, kind):
      yield record.query
      for doc in (record,) if kind == 'clicks' else record.docs:
        yield from (doc.title, doc.summary)


def scored(run, model, variables):
  """(groups, the trained model's own scores of them, in fp32)."""
  groups = parity.chosen(held_out(run), run.config.export.parity_pairs, model.prompt())
  exact = dataclasses.replace(
    model, network=dataclasses.replace(model.network, precision='float32')
  )
  rows = run.config.evaluate.batch_rows
  # Not roles.scorer, which merges the adapters: the reference must not share that step.
  scorer = pointwise.PointwiseRanker(
    exact.network, variables, exact.prompt(), run.mesh, rows, model.settings.row_len, model.scorer
  )
  return groups, parity.reference(scorer, groups, processes.is_first())


def held_out(run):
  """Queries with documents: the run's test set, else others of the run, else python_docs."""
  kind = held_out_kind(run.config)
  return iter(prepare.records(run, kind)) if kind else python_docs.groups('test')


def held_out_kind(config) -> str:
  """The kind of records whose pairs every reader scores; '' if the run has none."""
  prepared = prepare.kinds(config) if 'prepare' in config.stages else []
  generated = (prepare.GENERATED,) if 'generate' in config.stages else ()
  kinds = [kind for kind in ('test', 'judgements', 'candidates') if kind in prepared]
  return next(iter((*kinds, *generated)), '')


def origins_of(run, name: str, model) -> tuple[Origin, Origin | None]:
  """(the pretrained model, the teacher of a model that learned from its scores)."""
  base = licence.of(model.settings.model, model.folder)
  teacher = run.config.teacher.model
  if ROWS[name].trained_by != 'distill' or run.config.data.teachers or not teacher:
    return base, None
  try:
    folder = weights.find(teacher)
  except UserError:  # its scores are there, but its weights no longer are
    folder = Path(teacher)
  return base, licence.of(teacher, folder)


def finish(
  run, model, unchecked: Path, folder: Path, groups, reference, origins, choice: Choice
) -> None:
  """Adds formats, compares every reader's scores, writes the card, and renames the folder."""
  c = run.config.export
  names = [name for name in c.formats if name in model.network.family.formats]
  if missing := [name for name in c.formats if name not in names]:
    say(f'export: {model.network.config.model_type} models have no format {", ".join(missing)}')
  formats.write(unchecked, names)
  rows = parity.check(unchecked, names, groups, reference, model.prompt(), c.tolerance_factor)
  for row in rows:
    say(f'export: {row.reader}: tau {row.tau:.4f}, largest difference {row.max_difference:.2g}')
  base, teacher = origins
  if not (c.license or base.license):
    say(
      f'export: the folder of {base.name} states no licence, so the card says "{licence.UNKNOWN}"; '
      'set config.export.license to the licence of your model'
    )
  results, made = facts.read_results(run), card.made(run)
  which = choice.text if choice.why else ROWS[choice.row].title
  card.write(unchecked, names, rows, TABLE, results, made, base, teacher, c.license, which)
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(unchecked, folder)


SETTINGS = {
  'models': Key(
    (BEST,), list_of(one_of(BEST, *(r.name for r in ROWS.values() if r.trained_by)), distinct=True),
    "The trained models that are exported: 'best' is the student that ranks held-out queries best, "
    "in export/student; 'student' is the distilled one.",
  ),
  'dtype': Key(
    'float32', one_of('float32', 'bfloat16', 'float16'),
    'Type of the tensors; the 16-bit ones halve the folder.',
  ),
  'formats': Key(
    ('onnx', 'onnx_int8'), list_of(one_of(*formats.FORMATS), distinct=True),
    'Formats of a student beside safetensors.',
  ),
  'vocabulary': Key(
    '', text("'', 'data' or a file"),
    "Tokens that a student keeps: all (''), those of the run's data ('data'), or those of the "
    'documents in a JSON lines file.',
  ),
  'tolerance_factor': Key(
    1.0, above(0),
    "How many times the usual differences a reader's scores may have; random weights, whose scores "
    'hardly differ from each other, need more than 1.',
  ),
  'license': Key(
    '', Check("an identifier of the hub, such as apache-2.0, or ''", licence.ID.fullmatch),
    "The licence in the model card, such as 'apache-2.0'; '': the one that the base model's folder "
    'states (README.md, origin.json).',
  ),
  'parity_pairs': Key(
    1000, between(2, 10_000_000),
    'Pairs that every reader of the folder scores, at least. nDCG is a mean over their queries: '
    '8 bits once changed it by .034 over ten queries and by .002 over 295.',
  ),
}  # fmt: skip


def uses(config) -> tuple[Use, ...]:
  """The models that are exported. Each one and all its readers score the pairs of the check."""
  c = config.export
  kind = held_out_kind(config)
  work = {'kinds': (kind,) if kind else (), 'pairs': c.parity_pairs}
  work['times'] = 1 + READERS + len(c.formats)
  # The students of a run are equally large, so the first may stand for the best.
  best = [row.name for row in best_student.candidates(config)[:1]]
  names = [n for name in c.models for n in (best if name == BEST else [name])]
  return tuple(dataclasses.replace(ROWS[name].use(config), **work) for name in names)


def requires(config) -> dict[str, tuple[str, ...]]:
  """The student models need the stage that trains them; a teacher may be exported untrained."""
  if BEST in config.export.models and not best_student.candidates(config):
    return {'export of the best student': (ROWS[STUDENT].trained_by,)}
  trained = [
    row for row in ROWS.values() if row.name in config.export.models and row.role == 'student'
  ]
  return {f'export of {row.name}': (row.trained_by,) for row in trained}


def check(config) -> None:
  source = config.export.vocabulary
  if source not in ('', 'data') and not glob.glob(source):
    raise UserError(
      f"config.export.vocabulary={source!r}: no such file; name a file of documents, 'data', or ''"
    )
  if BEST in config.export.models and STUDENT in config.export.models:
    raise UserError(
      f'config.export.models: {BEST!r} and {STUDENT!r} are both written to export/{STUDENT}; list '
      'one of them'
    )
  if 'teacher' in config.export.models and config.teacher.scorer == 'score_head+query_likelihood':
    raise UserError(
      "config.export.models: a teacher with scorer 'score_head+query_likelihood' has two heads, as "
      "no Hugging Face model has; export only 'student', or train with 'score_head' or "
      "'query_likelihood'"
    )


STAGE = Stage(
  'export', 'the student for other programs', execute, SETTINGS, check=check,
  models=('teacher', 'student'), requires=requires, kept=kept, uses=uses,
  reads_stages=('prepare', 'cpt', 'sft', 'generate', 'student_sft', 'distill', 'evaluate'),
)  # fmt: skip
