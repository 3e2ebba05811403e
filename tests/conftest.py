"""Settings shared by all tests."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pytest
from absl import flags
from jax import config

flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which pytest never parses.
config.update('jax_numpy_rank_promotion', 'raise')
# Tests compile many small programs and run each a few times.
config.update('jax_disable_most_optimizations', True)

LONG = ('test_pipeline.py', 'test_sharding.py', 'test_processes.py', 'test_other_teachers.py')


@pytest.fixture(scope='session')
def model(tmp_path_factory):
  """The folder of an exported student of random weights, with scores far apart."""
  import jax
  import numpy as np

  from disranker_jax.models import hf, tiny
  from disranker_jax.models.network import from_hf

  base = tmp_path_factory.mktemp('base') / 'tiny-encoder'
  tiny.make('tiny-encoder', base)
  network = from_hf(base)
  variables = jax.tree.map(
    lambda x: np.asarray(x) * (8 if x.std() > 0 else 1), network.init(jax.random.key(3))
  )
  folder = tmp_path_factory.mktemp('export') / 'student'
  extra = {'disranker_jax': {'max_len': 64, 'max_query_len': 16}}
  hf.save(folder, network, variables, tokenizer_folder=base, extra_config=extra)
  return folder


def pytest_collection_modifyitems(items):
  """The files that take longest begin first, or a worker would end alone with one of them."""
  items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
