"""Fingerprints of a stage's inputs outside the workdir: source files and local model folders."""

from pathlib import Path

from disranker_jax.data import contents, sources
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import prepare


def outside(config, stage: Stage) -> dict[str, str]:
  """{'data.clicks': fingerprint, ...}. A file's change changes it; a name on the hub never does."""
  found = {}
  if stage.name == 'prepare':
    found = {
      f'data.{k}': manifest.digest(sources.fingerprint(prepare.address(config, k)))
      for k in prepare.kinds(config)
    }
    if config.data.teachers:
      prints = [sources.fingerprint(address) for address in config.data.teachers]
      found['data.teachers'] = manifest.digest(prints)
  for role in stage.models:
    folder = Path(config[role].model)
    if config[role].model and folder.is_dir():
      found[f'{role}.model'] = files(sorted(folder.iterdir()))
  return found


def files(paths: list[Path]) -> str:
  """A fingerprint of names and contents."""
  return manifest.digest([(p.name, contents.digest(p)) for p in paths if p.is_file()])
