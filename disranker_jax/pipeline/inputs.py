"""Fingerprints of what stages take from outside the workdir: source files, local model folders."""

from pathlib import Path

from disranker_jax.data import sources
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import prepare


def outside(config, stage: Stage) -> dict[str, str]:
  """{'data.clicks': fingerprint, ...}: changes when a file does; names from a hub do not change."""
  found = {}
  if stage.name == 'prepare':
    found = {
      f'data.{k}': manifest.digest(sources.fingerprint(prepare.address(config, k)))
      for k in prepare.kinds(config)
    }
    if config.data.teachers:
      prints = [sources.fingerprint(address) for address in config.data.teachers]
      found['data.teachers'] = manifest.digest(prints)
  for role in stage.opens:
    folder = Path(config[role].model)
    if config[role].model and folder.is_dir():
      found[f'{role}.model'] = files(sorted(folder.iterdir()))
  return found


def files(paths: list[Path]) -> str:
  """By name, size and time of change: contents of any size, at no cost."""
  stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths if p.is_file()]
  return manifest.digest(stats)
