"""Fingerprints of a stage's inputs outside the workdir: source files, models, prompts.

A model is fingerprinted by its files where the config gives a path, and by its version where it
gives a name: the same name may be other weights on another machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax.data import sources
from disranker_jax.errors import UserError
from disranker_jax.models import hf, rerankers, weights
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Stage
from disranker_jax.progress import say
from disranker_jax.report import tables
from disranker_jax.stages import earlier

VERSION = ' version'  # ends the input that tells the version of the model of a config key
# What is read of a model's folder beside its weights. Others may lie there: notes, a README.
READ = (*rerankers.FILES, 'modules.json', *hf.TOKENIZER_FILES, '*.model', 'tekken.json')
HEADS = ('[0-9]_*/config.json', '[0-9]_*/model.safetensors')  # of modules.json
ONNX = ('onnx/*.onnx*',)  # with the files of their tensors


def outside(config: ConfigDict, stage: Stage, workdir: Path) -> dict[str, str | None]:
  """{'data.clicks': fingerprint, ...}. It changes with a file, and with the version of a name.

  None for an earlier run (`teacher.init_from`, ...) that does not exist any more.
  """
  found, sections = dict(stage.outside(config, workdir)), stage.sections(config)
  for role in stage.models:
    model, start = (
      config[role][name] if role in sections or f'{role}.{name}' in sections else ''
      for name in ('model', 'init_from')
    )
    if model:
      found |= of_model(f'{role}.model', model)
    if start and not stage.ignores_init_from:
      found[f'{role}.init_from'] = earlier.fingerprint(config, workdir, role)
  return found


def check(config, stages: Sequence[Stage]) -> None:
  """Looks for the files of all addresses that stages read. Raises: UserError that names the key."""
  whose: dict[str, str] = {}
  for key, kind, address in dict.fromkeys(one for s in stages for one in s.addresses(config)):
    named = f'config.{key}={address!r}'
    try:
      source = sources.open(address, kind)
      source.check(kind)
    except UserError as e:
      raise UserError(f'{named}: {e}') from e
    if kind != sources.SCORES:
      whose[named] = source.built_in
  say_mixed(whose)


def say_mixed(whose: Mapping[str, str]) -> None:
  """Says which addresses are of built-in data where others are not: they may be left by mistake.

  Args:
    whose: `Source.built_in` of the address of each key.
  """
  own = [named for named, built_in in whose.items() if not built_in]
  for data in dict.fromkeys(filter(None, whose.values())) if own else ():
    given = [named for named, built_in in whose.items() if built_in == data]
    are, are_not = ('is' if len(names) == 1 else 'are' for names in (given, own))
    say(
      f'data: {tables.joined(given)} {are} {data}, and {tables.joined(own)} {are_not} not; if they '
      'do not belong together, give the address of your own data (docs/data.md says what to do '
      'where you have none)'
    )


def of_model(key: str, name: str) -> dict[str, str]:
  """The input of a model that the config names `name` at `key`.

  {} for a name whose weights are not on this machine yet.
  """
  if path := weights.path_of(name):
    return {key: manifest.files(model_files(path))}
  version = weights.version(name)
  return {key + VERSION: version} if version else {}


def noted(name: str) -> dict[str, str]:
  """{'version': ...} of a model, for notes of what it made; {} where it is not known."""
  return {'version': value for value in of_model('', name).values()}  # noqa: B035, at most one


def model_files(path: Path, onnx: bool = False) -> list[Path]:
  """What a local model is read from: files of its folder with heads in it, or a llama.cpp file.

  Args:
    onnx: also the files that ONNX Runtime reads, where the folder may be opened as a ranker.
  """
  if not path.is_dir():
    return [path]
  names = {file for pattern in READ for file in path.glob(pattern)}
  parts = [file for pattern in (*HEADS, *ONNX * onnx) for file in path.glob(pattern)]
  return [*sorted(names | {*hf.weight_files(path)}), *sorted(parts)]


def changes(before: dict, wanted: dict, now: Mapping[str, str | None]) -> list[str]:
  """What has changed since a stage was started, as text.

  Args:
    before: its manifest.
    wanted: the settings that its result depends on.
    now: its inputs.
  """
  return manifest.changes(before, wanted, as_before(before['inputs'], now))


def changed_files(before: dict, wanted: dict, now: Mapping[str, str | None]) -> list[str]:
  """What has changed outside the workdir, as text, where all settings are the same; else [].

  The arguments are those of `changes`.
  """

  def named(inputs: Mapping) -> dict:
    return {key: value for key, value in inputs.items() if is_outside(key)}

  found = changes(before | {'inputs': named(before['inputs'])}, wanted, named(now))
  return [] if manifest.changes(before, wanted, before['inputs']) else found


def of_unknown_version(before: Mapping[str, str], now: Mapping[str, str | None]) -> list[str]:
  """The config keys of the models whose version only one of two stages tells; see `as_before`."""
  return sorted(key.removesuffix(VERSION) for key in before.keys() ^ now.keys()
                if key.endswith(VERSION))  # fmt: skip


def is_outside(name: str) -> bool:
  """Whether an input is a key of the config rather than an earlier stage."""
  return '.' in name


def as_before(
  before: Mapping[str, str | None], now: Mapping[str, str | None]
) -> dict[str, str | None]:
  """The inputs `now`, with a model's version as `before` where only one of them tells it.

  Such a version is not compared: the model may have come to this machine since, or left it.
  """
  found = {k: v for k, v in now.items() if k in before or not k.endswith(VERSION)}
  return found | {k: v for k, v in before.items() if k not in now and k.endswith(VERSION)}
