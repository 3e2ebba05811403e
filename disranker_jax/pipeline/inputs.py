"""Fingerprints of a stage's inputs outside the workdir: source files, model folders, prompts."""

from collections.abc import Sequence
from pathlib import Path

from disranker_jax.data import presence
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import earlier


def outside(config, stage: Stage, workdir: Path) -> dict[str, str | None]:
  """{'data.clicks': fingerprint, ...}. A file's change changes it; a name on the hub never does.

  None for an earlier run (`teacher.init_from`, ...) that does not exist any more.
  """
  found = dict(stage.outside(config, workdir))
  for role in stage.models:
    if config[role].model and (paths := model_files(Path(config[role].model).expanduser())):
      found[f'{role}.model'] = manifest.files(paths)
    if config[role].init_from and not stage.ignores_init_from:
      found[f'{role}.init_from'] = earlier.fingerprint(config, workdir, role)
  return found


def check(config, stages: Sequence[Stage]) -> None:
  """Looks for the files of all addresses that stages read. Raises: UserError that names the key."""
  for key, kind, address in dict.fromkeys(one for s in stages for one in s.addresses(config)):
    try:
      presence.check(address, kind)
    except UserError as e:
      raise UserError(f'config.{key}={address!r}: {e}') from e


def model_files(path: Path) -> list[Path]:
  """What a local model is read from: its folder, with the heads in it, or a llama.cpp file."""
  if path.suffix == weights.GGUF and path.is_file():
    return [path]
  if not path.is_dir():
    return []
  return [*sorted(path.iterdir()), *sorted(path.glob('[0-9]_*/model.safetensors'))]
