"""Settings shared by all tests."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

from absl import flags
from jax import config

flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which pytest never parses.
config.update('jax_numpy_rank_promotion', 'raise')
# Tests compile many small programs and run each a few times.
config.update('jax_disable_most_optimizations', True)

LONG = ('test_pipeline.py', 'test_sharding.py', 'test_processes.py', 'test_other_teachers.py')


def pytest_collection_modifyitems(items):
  """The files that take longest begin first, or a worker would end alone with one of them."""
  items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
