"""Fingerprints of a stage's inputs outside the workdir: source files, models, prompts.

A model is fingerprinted by its files where the config gives a path, and by its version where it
gives a name: the same name may be other weights on another machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.data import sources
from disranker_jax.errors import UserError
from disranker_jax.models import hf, rerankers, weights
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import earlier

MODELS = ('model', 'embedder')  # keys that name a model, in whatever section
VERSION = ' version'  # ends the input that tells the version of the model of a config key
# What is read of a model's folder beside its weights. Others may lie there: notes, a README.
READ = (*rerankers.FILES, 'modules.json', *hf.TOKENIZER_FILES, '*.model', 'tekken.json')
HEADS = ('[0-9]_*/config.json', '[0-9]_*/model.safetensors')  # of modules.json


def outside(config: ConfigDict, stage: Stage, workdir: Path) -> dict[str, str | None]:
  """{'data.clicks': fingerprint, ...}. It changes with a file, and with the version of a name.

  None for an earlier run (`teacher.init_from`, ...) that does not exist any more.
  """
  found = dict(stage.outside(config, workdir))
  for role in stage.models:
    if config[role].model:
      found |= of_model(f'{role}.model', config[role].model)
    if config[role].init_from and not stage.ignores_init_from:
      found[f'{role}.init_from'] = earlier.fingerprint(config, workdir, role)
  return found


def check(config, stages: Sequence[Stage]) -> None:
  """Looks for the files of all addresses that stages read. Raises: UserError that names the key."""
  for key, kind, address in dict.fromkeys(one for s in stages for one in s.addresses(config)):
    try:
      sources.open(address, kind).check(kind)
    except UserError as e:
      raise UserError(f'config.{key}={address!r}: {e}') from e


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


def versions(found: Mapping[str, str | None]) -> dict[str, str | None]:
  """The inputs that tell the version of a model."""
  return {key: value for key, value in found.items() if key.endswith(VERSION)}


def model_files(path: Path) -> list[Path]:
  """What a local model is read from: files of its folder with heads in it, or a llama.cpp file."""
  if not path.is_dir():
    return [path]
  names = {file for pattern in READ for file in path.glob(pattern)}
  parts = [file for pattern in HEADS for file in path.glob(pattern)]
  return [*sorted(names | {*hf.weight_files(path)}), *sorted(parts)]


def every_file(path: Path) -> list[Path]:
  """What was counted before `model_files` left out what is not read."""
  if not path.is_dir():
    return [path]
  return [*sorted(path.iterdir()), *sorted(path.glob('[0-9]_*/model.safetensors'))]


def as_before(
  config: ConfigDict, before: Mapping[str, str | None], now: Mapping[str, str | None]
) -> dict[str, str | None]:
  """The inputs `now`, by the fingerprints of a manifest where these are of the same.

  A version that only one side has is not compared: earlier programs recorded none, and a model may
  have left this machine since. Nor did they record every file of llama.cpp and folder below `~`.
  """
  flat = configs.flatten(config)
  unrecorded = (k for k in now if k.endswith(VERSION) or is_file_or_below_home(flat, k))
  new = set(unrecorded) - before.keys()
  found = {k: v for k, v in now.items() if k not in new}
  found |= {k: v for k, v in before.items() if k not in now and k.endswith(VERSION)}
  for key in found:
    differs = before.get(key) not in (None, found[key])
    path = weights.path_of(flat[key]) if differs and isinstance(flat.get(key), str) else None
    if path and manifest.files(every_file(path)) == before[key]:
      found[key] = before[key]
  return found


def is_file_or_below_home(flat: Mapping, key: str) -> bool:
  """Whether a key of the config names a model by a file, or by a folder that begins with `~`."""
  if key.rpartition('.')[2] not in MODELS:
    return False
  name = flat.get(key)
  return bool(name and weights.path_of(name)) and not Path(name).is_dir()
