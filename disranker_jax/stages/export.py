"""Trained models as Hugging Face folders, which score elsewhere as they do here."""

import dataclasses
import functools
import os
import shutil
import tempfile
from pathlib import Path

from disranker_jax.config.settings import Key, above, between, list_of, one_of, text
from disranker_jax.data import python_docs
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.exporting import card, formats, parity, vocabulary
from disranker_jax.models import hf, weights
from disranker_jax.models.load import open_tokenizer
from disranker_jax.pipeline.stage import Stage
from disranker_jax.progress import say
from disranker_jax.rankers import pointwise
from disranker_jax.report import facts
from disranker_jax.stages import prepare, roles
from disranker_jax.stages.rows import ROWS


def run(run) -> dict:
  """export/<model> for each model that the config names; adapters are merged.

  A folder takes its place only when every reader that is installed gives the model's scores.
  """
  c = run.config.export
  folders = {}
  for name in c.models:
    side, variables, _ = roles.load(run, name)
    folder = run.folder('export') / name
    folders[name] = str(folder.relative_to(run.workdir))
    unchecked = folder.with_name(f'.{name}')
    side, variables = save(run, side, variables, unchecked)
    groups, reference = scored(run, side, variables)
    finishing = functools.partial(finish, run, side, unchecked, folder, groups, reference)
    processes.first_alone(f'export of {name}', finishing)
  return {'folders': folders}


def save(run, side, variables, folder: Path):
  """Writes tensors, config and tokenizer; (side, variables) as written, in our precision.

  They differ from what was given where a smaller vocabulary is asked for.
  """
  c = run.config.export
  s = side.settings
  extra = {'max_len': s.max_len, 'max_query_len': s.max_query_len}
  extra |= {'from': weights.origin(side.folder)}
  network = side.network
  family = network.family
  extra |= {name: s[name] for name in family.prompt_settings}
  with tempfile.TemporaryDirectory() as scratch:
    tokenizer = side.folder
    if c.vocabulary and family.vocabulary_tables:
      tokenizer = Path(scratch) / 'tokenizer'
      ids = vocabulary.used(side.folder, texts(run))
      network, variables = vocabulary.trim(network, variables, side.folder, tokenizer, ids)
      say(f'export: {network.config.vocab} of {side.network.config.vocab} tokens are kept')
    hf.save(
      folder, network, variables, tokenizer_folder=tokenizer,
      extra_config={'disranker_jax': extra}, dtype=c.dtype,
    )  # fmt: skip
  processes.barrier('exported, not checked yet')
  return dataclasses.replace(side, network=network, tokenizer=open_tokenizer(folder)), variables


def texts(run):
  """Every text of the run's data, or of the documents that config.export.vocabulary names."""
  from disranker_jax.data import sources

  asked = run.config.export.vocabulary
  if asked != 'data':
    for doc in sources.documents(asked):
      yield from (doc.title, doc.summary)
    return
  for kind in prepare.kinds(run.config):
    records = prepare.records(run, kind)
    for i in range(len(records)):
      record = records[i]
      yield record.query
      for doc in (record,) if kind == 'clicks' else record.docs:
        yield from (doc.title, doc.summary)


def scored(run, side, variables):
  """(groups, the trained model's own scores of them, in fp32)."""
  groups = parity.chosen(held_out(run), run.config.export.parity_pairs, side.prompt())
  exact = dataclasses.replace(side, network=dataclasses.replace(side.network, precision='float32'))
  rows = run.config.evaluate.batch_rows
  # Not roles.scorer, which adds the adapters to the kernels as the writing of the folder did.
  scorer = pointwise.PointwiseRanker(
    exact.network, variables, exact.prompt(), run.mesh, rows, side.settings.row_len, side.scorer
  )
  return groups, parity.reference(scorer, groups, processes.is_first())


def held_out(run):
  """Queries with documents: the run's own if it has any prepared, best of all its test set."""
  for kind in ('test', 'judgements', 'candidates'):
    if 'prepare' in run.config.stages and kind in prepare.kinds(run.config):
      records = prepare.records(run, kind)
      return (records[i] for i in range(len(records)))
  return python_docs.groups('test')


def finish(run, side, unchecked: Path, folder: Path, groups, reference) -> None:
  """Adds formats, asks every reader for its scores, writes the card, and puts all in its place."""
  c = run.config.export
  names = [name for name in c.formats if name in side.network.family.formats]
  if missing := [name for name in c.formats if name not in names]:
    say(f'export: {side.network.config.model_type} models have no format {", ".join(missing)}')
  formats.write(unchecked, names)
  rows = parity.check(unchecked, names, groups, reference, side.prompt(), c.tolerance_factor)
  for row in rows:
    say(f'export: {row.reader}: tau {row.tau:.4f}, largest difference {row.max_difference:.2g}')
  card.write(unchecked, names, rows, facts.read_results(run), card.made(run))
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(unchecked, folder)


SETTINGS = {
  'models': Key(
    ('student',), list_of(one_of(*(r.name for r in ROWS.values() if r.trained_by)), distinct=True),
    'The trained models that are exported.',
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
  'parity_pairs': Key(
    1000, between(2, 10_000_000),
    'Pairs that every reader of the folder scores, at least. nDCG is a mean over their queries: '
    '8 bits once changed it by .034 over ten queries and by .002 over 295.',
  ),
}  # fmt: skip


def needs(config) -> dict[str, tuple[str, ...]]:
  """The student models need the stage that trains them; a teacher may be exported untrained."""
  trained = [
    row for row in ROWS.values() if row.name in config.export.models and row.role == 'student'
  ]
  return {f'export of {row.name}': (row.trained_by,) for row in trained}


def check(config) -> None:
  if 'teacher' in config.export.models and config.teacher.scorer == 'score_head+query_likelihood':
    raise UserError(
      "config.export.models: a teacher with scorer 'score_head+query_likelihood' has two heads, as "
      "no Hugging Face model has; export only 'student', or train with 'score_head' or "
      "'query_likelihood'"
    )


STAGE = Stage(
  'export', 'the student for other programs', run, SETTINGS, check=check,
  opens=('teacher', 'student'), needs=needs,
  after=('prepare', 'cpt', 'sft', 'student_sft', 'distill', 'evaluate'),
)  # fmt: skip
