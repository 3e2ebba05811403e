"""Settings shared by all tests."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from absl import flags
from jax import config

flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which pytest never parses.
config.update('jax_numpy_rank_promotion', 'raise')
# Tests compile many small programs and run each a few times.
config.update('jax_disable_most_optimizations', True)

TESTS = Path(__file__).parent
# The tests that `--check` leaves out, those that take longest first.
HEAVY = (
  'pipeline/*',
  'test_sharding.py',
  'test_processes.py',
  'test_reliability.py',
  'launch/*',
  'test_plan*.py',
  'test_opening.py',
  'test_bench_*.py',
  'test_no_backend.py',
  'test_llm_ranker.py',
  'test_llm_rank.py',
  'test_attention*.py',
  'test_network.py',
  'test_hf*.py',
  'test_hostile_*.py',
  'test_train.py',
  'test_validation.py',
  'test_held_out.py',
  'exporting/*',
  'test_decoder.py',
  'test_decoder_parity.py',
  'test_gemma.py',
  'test_modernbert*.py',
  'test_modules.py',
  'serve/test_command.py',
  'serve/test_bench.py',
  'test_api.py',
  'test_fuse.py',
  'test_online.py',
  'test_losses_peers.py',
  'test_python_docs.py',
  'test_rerank.py',
  'test_rerankers.py',
  'test_control_tokens.py',
  'test_rerank_run.py',
  'test_irds.py',
  'test_tiny.py',
  'test_encoder.py',
  'test_eight_bits.py',
  'test_families.py',
  'test_tokenising.py',
  'test_prepare_command.py',
  'test_gguf.py',
  'test_gguf_families.py',
  'test_pool.py',
  'test_generate.py',
  'test_contracts.py',
  'test_label_logits.py',
  'test_shared_collections.py',
)
# Why an optional package may be missing, for the reasons of skipped tests.
WHY_MISSING = {
  'torch': 'the extra test installs it on Python 3.11 only; elsewhere: pip install torch',
  'sentence_transformers': 'the extra test installs it on Python 3.11 only',
  'libtpu': 'the TPU compiler, which make test-all installs',
}


def pytest_addoption(parser):
  parser.addoption('--check', action='store_true', help='leave out the tests of HEAVY')


def pytest_configure(config):
  for pattern in HEAVY:
    if not any(TESTS.glob(pattern)):
      raise pytest.UsageError(f'{__file__}: HEAVY lists {pattern!r}, which matches no file')


def pytest_ignore_collect(collection_path, config):
  if config.getoption('check') and rank(collection_path) < len(HEAVY):
    return True


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
  """Starts the longest files first; a worker that got one last would end alone with it."""
  items.sort(key=lambda item: rank(item.path))


def rank(path: Path) -> int:
  """The index in HEAVY of the first pattern that matches a test file, len(HEAVY) if none does."""
  name = path.relative_to(TESTS).as_posix()
  return next((i for i, pattern in enumerate(HEAVY) if fnmatch(name, pattern)), len(HEAVY))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  """Adds to the reason of a skipped test how to get the package that it needs."""
  report = yield
  if report.skipped and isinstance(report.longrepr, tuple):
    file, line, reason = report.longrepr
    if match := re.search(r"could not import '(\w+)", reason):
      how = WHY_MISSING.get(match[1], "pip install -e '.[test]'")
      report.longrepr = (file, line, f'{reason} ({how})')
  return report


@pytest.fixture
def pipe():
  """Makes the path of a pipe that holds some bytes (less than 64 KiB) and has no writer left."""
  ends = []

  def make(data: bytes) -> str:
    read, write = os.pipe()
    ends.append(read)
    os.write(write, data)
    os.close(write)
    return f'/dev/fd/{read}'

  yield make
  for end in ends:
    os.close(end)
