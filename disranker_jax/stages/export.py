"""Exports trained models as Hugging Face folders that give the same scores in other libraries.

A system names its models in an `Exports`, from which `stage` makes its stage.
"""

import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax.config.settings import (
  Check,
  Key,
  Section,
  above,
  between,
  list_of,
  one_of,
)
from disranker_jax.data import lines, python_docs, sources
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.exporting import card, formats, licence, parity, vocabulary
from disranker_jax.exporting.licence import Origin
from disranker_jax.models import hf, weights
from disranker_jax.models.load import TextModel, open_tokenizer
from disranker_jax.models.recorded import KEY
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import say
from disranker_jax.rankers import pointwise
from disranker_jax.report import facts
from disranker_jax.stages import prepare, result_table, run_texts
from disranker_jax.stages.result_table import Row, Table

READERS = 3  # libraries that read a folder, if all are installed
Loaded = tuple[TextModel, dict, str]  # what Row.load gives


@dataclasses.dataclass(frozen=True)
class Choice:
  """A model, by its row of the result table, and why it was chosen; '': the setting names it."""

  row: str
  why: str = ''


@dataclasses.dataclass(frozen=True)
class Exports:
  """The models of a system that can be exported.

  title       of the stage
  table       the result table, whose rows are the models
  rows        the names of those that can be exported
  automatic   the name in config.export.models by which `choose` decides; what it is, in words
  folder      the folder of this model below export/
  candidates  config -> the rows of which it is one, the likeliest first
  choose      run -> which of them; by default the first one
  needs       the stage that trains one, which an error names where there is none
  untrained   the rows whose model may be exported without training
  purpose     what a folder is for, for its card
  records     (run, row, what Row.load gives) -> what config.json records beside the lengths
  prompt      model -> how it reads the texts by which readers are compared
  complete    (model, folder, run) -> adds the files that only this system has
  teachers    (config, row) -> the models that taught the row's
  measured    (run, row, folder) -> what requests to the finished folder get, for the report
  settings    more keys of the stage's section
  check       config -> tests relations between settings; raises UserError
  """

  title: str
  table: Table
  rows: tuple[str, ...]
  automatic: str
  what: str
  folder: str
  candidates: Callable[[ConfigDict], Sequence[Row]]
  needs: str
  choose: Callable[[Run], Choice] | None = None
  untrained: tuple[str, ...] = ()
  purpose: card.Purpose = card.RANKING
  records: Callable[[Run, str, Loaded], Mapping] = lambda run, row, loaded: {}
  prompt: Callable[[TextModel], object] = lambda model: model.prompt()
  complete: Callable[[TextModel, Path, Run], None] = lambda model, folder, run: None
  teachers: Callable[[ConfigDict, str], tuple[str, ...]] = lambda config, row: ()
  measured: Callable[[Run, str, Path], list[dict]] = lambda run, row, folder: []
  settings: Section = dataclasses.field(default_factory=dict)
  check: Callable[[ConfigDict], None] = lambda config: None

  def folder_of(self, name: str) -> str:
    """The folder of an entry of config.export.models."""
    return self.folder if name == self.automatic else name

  def chosen(self, run: Run, name: str) -> Choice:
    """The model of an entry of config.export.models."""
    if name != self.automatic:
      return Choice(name)
    return self.choose(run) if self.choose else Choice(self.candidates(run.config)[0].name)


def execute(exports: Exports, run: Run) -> dict:
  """Writes a folder below export/ for each model in config.export.models, with adapters merged.

  A folder gets its final name only after every installed reader gave the model's scores.
  """
  folders, served, best = {}, {}, {}
  for name in run.config.export.models:
    choice = exports.chosen(run, name)
    row, folder = choice.row, run.folder('export') / exports.folder_of(name)
    if choice.why:
      best = {'row': row, 'why': choice.why}
      say(f'export: {folder.name}/ is the {described(exports, choice)}')
    loaded = exports.table.rows[row].load(run)
    recorded = exports.records(run, row, loaded)
    folders[folder.name] = str(folder.relative_to(run.workdir))
    unchecked = folder.with_name(f'.{folder.name}')
    model, variables = save(run, *loaded[:2], unchecked, recorded)
    groups, reference = scored(exports, run, model, variables)
    finishing = functools.partial(
      finish, exports, run, model, unchecked, folder, groups, reference, choice
    )
    processes.first_alone(f'export of {row}', finishing)
    if found := exports.measured(run, row, folder):
      served[row] = found
  return {'folders': folders, 'served': served, 'best': best}


def described(exports: Exports, choice: Choice) -> str:
  """The model in words, and why it was chosen."""
  title = exports.table.rows[choice.row].title
  return f'{title}: {choice.why}' if choice.why else title


def save(run, model, variables, folder: Path, recorded: Mapping):
  """Writes tensors, config and tokenizer; returns (model, variables) as written.

  config.json records `recorded`, beside lengths and where the model comes from.
  They differ from the arguments if config.export.vocabulary reduces the vocabulary.
  """
  c = run.config.export
  s = model.settings
  extra = {'max_len': s.max_len, 'max_query_len': s.max_query_len}
  network = model.network
  family, kept = network.family, c.get('vocabulary')
  extra |= {'from': weights.origin(model.folder), **recorded}
  extra |= {name: s[name] for name in family.prompt_settings if name in s}
  with tempfile.TemporaryDirectory() as scratch:
    tokenizer = model.folder
    if kept and not family.vocabulary_tables:
      say(f'export: {network.config.model_type} models keep their whole vocabulary')
    elif kept:
      tokenizer = Path(scratch) / 'tokenizer'
      ids = vocabulary.used(model.folder, texts(run))
      network, variables = vocabulary.trim(network, variables, model.folder, tokenizer, ids)
      say(f'export: {network.config.vocab} of {model.network.config.vocab} tokens are kept')
    hf.save(
      folder, network, variables, tokenizer_folder=tokenizer,
      extra_config={KEY: extra}, dtype=c.dtype,
      typed=getattr(model.prompt(), 'typed', True),
    )  # fmt: skip
  processes.barrier('exported, not checked yet')
  return dataclasses.replace(model, network=network, tokenizer=open_tokenizer(folder)), variables


def texts(run):
  """Yields every text whose tokens config.export.vocabulary keeps."""
  from disranker_jax.data import sources

  source = run.config.export.vocabulary
  if source == 'data':
    run_texts.say_missing(run)
    yield from run_texts.every(run)
    return
  for doc in sources.documents(source):
    yield from (doc.title, doc.summary)


def scored(exports: Exports, run, model, variables):
  """(groups, the trained model's own scores of them, in fp32)."""
  prompt = exports.prompt(model)
  groups = parity.chosen(held_out(run), run.config.export.parity_pairs, prompt)
  exact = dataclasses.replace(
    model, network=dataclasses.replace(model.network, precision='float32')
  )
  # Two rows have room for the tokens of any document, where they are predicted.
  rows = max(2 * sharding.parts(run.mesh), result_table.settings_of(run.config).batch_rows)
  # Not roles.scorer, which merges the adapters: the reference must not share that step.
  scorer = pointwise.PointwiseRanker(
    exact.network, variables, prompt, run.mesh, rows, model.settings.row_len, model.scorer
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


def teacher_origin(name: str) -> Origin:
  """The origin of a teacher, also of one whose weights are no longer there."""
  try:
    folder = weights.find(name)
  except UserError:
    folder = Path(name)
  return licence.of(name, folder)


def finish(
  exports: Exports, run, model, unchecked: Path, folder: Path, groups, reference, choice: Choice
) -> None:
  """Adds formats, compares every reader's scores, writes the card, and renames the folder."""
  c = run.config.export
  wanted = c.get('formats', ())
  names = [name for name in wanted if name in model.network.family.formats]
  if missing := [name for name in wanted if name not in names]:
    say(f'export: {model.network.config.model_type} models have no format {", ".join(missing)}')
  formats.write(unchecked, names)
  exports.complete(model, unchecked, run)
  prompt = exports.prompt(model)
  rows = parity.check(unchecked, names, groups, reference, prompt, c.tolerance_factor)
  for row in rows:
    say(f'export: {row.reader}: tau {row.tau:.4f}, largest difference {row.max_difference:.2g}')
  base = licence.of(model.settings.model, model.folder)
  teachers = [teacher_origin(name) for name in exports.teachers(run.config, choice.row)]
  if not (c.license or base.license):
    say(
      f'export: the folder of {base.name} states no licence, so the card says "{licence.UNKNOWN}"; '
      'set config.export.license to the licence of your model'
    )
  results, made = facts.read_results(run), card.made(run)
  card.write(
    unchecked, names, rows, exports.table, results, made, base, teachers, c.license,
    described(exports, choice), exports.purpose,
  )  # fmt: skip
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(unchecked, folder)


def settings_of(exports: Exports) -> Section:
  """The keys of the stage's section."""
  names = (exports.automatic, *exports.rows)
  return {
    'models': Key(
      (exports.automatic,), list_of(one_of(*names), distinct=True),
      f'The trained models that are exported: {exports.automatic!r} is {exports.what}, in '
      f'export/{exports.folder}; the others are rows of the result table.',
    ),
    'dtype': Key(
      'float32', one_of('float32', 'bfloat16', 'float16'),
      'Type of the tensors; the 16-bit ones halve the folder.',
    ),
    'tolerance_factor': Key(
      1.0, above(0),
      "How many times the usual differences a reader's scores may have; random weights, whose "
      'scores hardly differ from each other, need more than 1.',
    ),
    'license': Key(
      '', Check("an identifier of the hub, such as apache-2.0, or ''", licence.ID.fullmatch),
      "The licence in the model card, such as 'apache-2.0'; '': the one that the base model's "
      'folder states (README.md, origin.json).',
    ),
    'parity_pairs': Key(
      1000, between(2, 10_000_000), 'Pairs that every reader of the folder scores, at least.'
    ),
    **exports.settings,
  }  # fmt: skip


def uses(exports: Exports, config) -> tuple[Use, ...]:
  """The models that are exported. Each one and all its readers score the pairs of the check."""
  c = config.export
  kind = held_out_kind(config)
  work = {
    'kinds': (kind,) if kind else (), 'pairs': c.parity_pairs, 'tokens': None,
    'times': 1 + READERS + len(c.get('formats', ())),
    'rows': result_table.settings_of(config).batch_rows,
  }  # fmt: skip
  # The candidates of a run are equally large, so the first may stand for the chosen one.
  first = [row.name for row in exports.candidates(config)[:1]]
  names = [n for name in c.models for n in (first if name == exports.automatic else [name])]
  return tuple(dataclasses.replace(exports.table.rows[n].use(config), **work) for n in names)


def requires(exports: Exports, config) -> dict[str, tuple[str, ...]]:
  """The stages that train what is exported."""
  names, found = config.export.models, {}
  if exports.automatic in names and not exports.candidates(config):
    found[f'export of {exports.what}'] = (exports.needs,)
  available = {*exports.untrained, *(row.name for row in exports.candidates(config))}
  for row in (exports.table.rows[name] for name in names if name in exports.rows):
    if row.name not in available and row.trained_by not in config.stages:
      found[f'export of {row.name}'] = (row.trained_by,)
  return found


def check(exports: Exports, config) -> None:
  folders = list(map(exports.folder_of, config.export.models))
  if len(set(folders)) < len(folders):
    raise UserError(
      f'config.export.models: {exports.automatic!r} and {exports.folder!r} are both written to '
      f'export/{exports.folder}; list one of them'
    )
  source = config.export.get('vocabulary', '')
  is_known = source in ('', 'data') or sources.is_address(source)
  if not is_known and not any(file.exists() for file in lines.found(source)):
    raise UserError(
      f"config.export.vocabulary={source!r}: no such file; name a file of documents, 'data', or ''"
    )
  exports.check(config)


# A model that writes reads all its texts for a comparison, and its logits are large.
OF_WRITERS: Section = {
  'parity_pairs': Key(
    200, between(2, 10_000_000),
    'Queries with documents by which every reader of the folder is compared, at least.',
  )
}  # fmt: skip


def last_trained(table: Table, names: Sequence[str]) -> Callable[[ConfigDict], list[Row]]:
  """Candidates for Exports: the rows of these names that a run has trained, the last one first.

  What an earlier run has trained counts too, if the config starts from it (`init_from`).
  """

  def candidates(config: ConfigDict) -> list[Row]:
    rows = [table.rows[name] for name in reversed(names)]
    return [
      row
      for row in rows
      if row.trained_by in config.stages
      or (config[row.role].init_from and row.is_available(config))
    ]

  return candidates


def write_generation(folder: Path, model: TextModel, ends: Collection[int], max_new: int) -> None:
  """generation_config.json, by which transformers' `generate` ends a text where we do."""
  tokenizer = model.tokenizer
  pad = min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
  values = {
    'bos_token_id': tokenizer.bos_token_id, 'eos_token_id': sorted(ends), 'pad_token_id': pad,
    'do_sample': False, 'max_new_tokens': max_new,
  }  # fmt: skip
  file = folder / 'generation_config.json'
  file.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


def stage(exports: Exports, **declared) -> Stage:
  """The stage that exports the models of a system.

  Args:
    declared: more of what Stage has: the models that it opens, and the stages that it reads.
  """

  def of(function: Callable) -> Callable:
    return functools.partial(function, exports)

  return Stage(
    'export', exports.title, of(execute), settings_of(exports), check=of(check),
    requires=of(requires), uses=of(uses), any_records=True, **declared,
  )  # fmt: skip
