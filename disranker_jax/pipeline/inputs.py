"""Fingerprints of a stage's inputs outside the workdir: source files, model folders, prompts."""

from pathlib import Path

from disranker_jax.data import contents, sources
from disranker_jax.models import weights
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import documents, earlier, prepare, prompting


def outside(config, stage: Stage, workdir: Path) -> dict[str, str | None]:
  """{'data.clicks': fingerprint, ...}. A file's change changes it; a name on the hub never does.

  None for an earlier run (`teacher.init_from`, ...) that does not exist any more.
  """
  found: dict[str, str | None] = {}
  if stage.name == 'prepare':
    found = {
      f'data.{k}': manifest.digest(sources.fingerprint(prepare.address(config, k)))
      for k in prepare.kinds(config)
    }
    if config.data.teachers:
      prints = [sources.fingerprint(address) for address in config.data.teachers]
      found['data.teachers'] = manifest.digest(prints)
    if data := earlier.data_fingerprint(config, workdir):
      found[earlier.DATA] = data
  if stage.name == 'generate':
    addresses = {'data.documents': documents.address(config)}
    if config.generate.examples and config.generate.shots:
      addresses['generate.examples'] = config.generate.examples
    found |= {k: manifest.digest(sources.fingerprint(a)) for k, a in addresses.items()}
    if Path(config.generate.model).is_dir() and config.generate.model:
      found['generate.model'] = files(sorted(Path(config.generate.model).iterdir()))
  for role in stage.models:
    if config[role].model and (paths := model_files(Path(config[role].model).expanduser())):
      found[f'{role}.model'] = files(paths)
    if config[role].init_from and not stage.ignores_init_from:
      found[f'{role}.init_from'] = earlier.fingerprint(config, workdir, role)
  if stage.name == 'score' and config.score.method:
    # With the text of the contract, which may be in a file.
    plan = prompting.plan(config, 'score', config.score.method)
    found['score.method'] = manifest.digest(plan.to_dict())
  if stage.name == 'score' and config.score.quantize:
    found['score.quantize'] = config.score.quantize
  if stage.name == 'distill' and config.distill.earlier_runs:
    found['distill.earlier_runs'] = earlier.scores_fingerprint(config)
  return found


def model_files(path: Path) -> list[Path]:
  """What a local model is read from: its folder, with the heads in it, or a llama.cpp file."""
  if path.suffix == weights.GGUF and path.is_file():
    return [path]
  if not path.is_dir():
    return []
  return [*sorted(path.iterdir()), *sorted(path.glob('[0-9]_*/model.safetensors'))]


def files(paths: list[Path]) -> str:
  """A fingerprint of names and contents."""
  return manifest.digest([(p.name, contents.digest(p)) for p in paths if p.is_file()])
