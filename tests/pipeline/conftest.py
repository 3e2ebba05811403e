"""The one whole run that the tests look at, and a cache of models of their own."""

import helpers
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax.models import weights
from disranker_jax.pipeline import runner


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  """A fresh $DISRANKER_CACHE: no test sees, or leaves, a model in the user's own."""
  folder = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(folder))
    # Larger weights, so that every document gets a score clearly of its own.
    file = weights.find('tiny-encoder') / 'model.safetensors'
    tensors = load_file(file)
    save_file({n: x * 8 if x.ndim == 2 else x for n, x in tensors.items()}, file)
    yield


@pytest.fixture(scope='module')
def done(tmp_path_factory, cache):
  """The workdir of an unbroken run of every stage; tests must not write there."""
  workdir = tmp_path_factory.mktemp('runs') / 'done'
  runner.run(helpers.config(), workdir)
  return workdir
