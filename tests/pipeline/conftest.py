"""The one whole run that the tests look at, and caches of their own."""

import helpers
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file, save_file

from disranker_jax.models import weights
from disranker_jax.pipeline import runner


@pytest.fixture(scope='module', autouse=True)
def caches(tmp_path_factory):
  """A fresh $DISRANKER_CACHE: no test sees, or leaves, a model in the user's own.

  And one of compiled programs, since the same few are needed in run after run.
  """
  folder = tmp_path_factory.mktemp('cache')
  settings = {
    'jax_compilation_cache_dir': str(folder / 'compiled'),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(folder))
    for name, value in settings.items():
      patch.setenv(name.upper(), str(value))  # for commands
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    # Larger weights, so that every document gets a score clearly of its own.
    file = weights.find('tiny-encoder') / 'model.safetensors'
    tensors = load_file(file)
    save_file({n: x * 8 if x.ndim == 2 else x for n, x in tensors.items()}, file)
    yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def done(tmp_path_factory, caches):
  """The workdir of an unbroken run of every stage; tests must not write there."""
  workdir = tmp_path_factory.mktemp('runs') / 'done'
  runner.run(helpers.config(), workdir)
  return workdir
