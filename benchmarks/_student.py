"""A student of a config's sizes with random weights, for measurements without any file of weights.

Its tokenizer has a small vocabulary, so that texts have more tokens than with the model's own one.
"""

import concurrent.futures
import multiprocessing
from pathlib import Path


def write(config, folder: Path) -> Path:
  """Writes the student as `export` would; a process of its own does it, on the CPU."""
  settings = config.student.copy_and_resolve_references()
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    pool.submit(_write, settings.to_dict(), folder.absolute()).result()
  return folder


def _write(settings: dict, folder: Path) -> None:
  import jax
  from ml_collections import ConfigDict

  from disranker_jax.commands.plan import stages
  from disranker_jax.models import hf, load, tiny

  jax.config.update('jax_platforms', 'cpu')
  settings = ConfigDict(settings)
  scratch = folder.with_name(f'{folder.name}.config')
  scratch.mkdir(parents=True, exist_ok=True)
  network = load.open_network(stages.config_folder(settings.model, scratch), settings)
  tiny.write_tokenizer(scratch, bert=not network.family.causal)
  extra = {'disranker_jax': {k: settings[k] for k in ('max_len', 'max_query_len')}}
  variables = network.init(jax.random.key(0))
  hf.save(folder, network, variables, tokenizer_folder=scratch, extra_config=extra)
