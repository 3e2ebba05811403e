"""Fingerprints of what stages take from outside the workdir: source files, local model folders."""

from pathlib import Path

from disranker_jax.data import sources
from disranker_jax.pipeline import manifest
from disranker_jax.stages import prepare

# Stages that open the models of the two sides.
OPENS = {
  'teacher': ('cpt', 'sft', 'score', 'evaluate'),
  'student': ('student_sft', 'distill', 'evaluate', 'export'),
}


def outside(config, stage: str) -> dict[str, str]:
  """{'data.clicks': fingerprint, ...}: changes when a file does; names from a hub do not change."""
  found = {}
  if stage == 'prepare':
    found = {
      f'data.{k}': manifest.digest(sources.fingerprint(prepare.address(config, k)))
      for k in prepare.kinds(config)
    }
    if config.data.teachers:
      prints = [sources.fingerprint(address) for address in config.data.teachers]
      found['data.teachers'] = manifest.digest(prints)
  for side, stages in OPENS.items():
    folder = Path(config[side].model)
    if stage in stages and config[side].model and folder.is_dir():
      found[f'{side}.model'] = files(sorted(folder.iterdir()))
  return found


def files(paths: list[Path]) -> str:
  """By name, size and time of change: contents of any size, at no cost."""
  stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths if p.is_file()]
  return manifest.digest(stats)
