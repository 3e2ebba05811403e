"""Constrained beam search on several devices: queries sharded over data, an index over model."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import hf_reference as reference
import index_texts
import jax
import numpy as np
import pytest
from index_texts import END, TITLE

from disranker_jax.devices import memory, sharding
from disranker_jax.errors import UserError
from disranker_jax.generative.beams import Searcher
from disranker_jax.generative.decoding import View

VIEWS = [View('body', None, 3, 4, unigrams=5), View('title', TITLE, 4, 4)]
PROMPTS = reference.sequences((5, 2, 9, 7, 3))
PAGES = index_texts.pages(16, seed=5)
# Sizes of (data, fsdp, model), and the parts of the index.
RUNS = [((2, 1, 1), 1), ((4, 1, 1), 1), ((1, 2, 2), 1), ((1, 1, 2), 2), ((2, 1, 2), 2)]


def open_on(sizes, parts) -> Searcher:
  sizes = dict(zip(sharding.AXES, sizes, strict=True))
  mesh = sharding.make_mesh(sizes, jax.devices()[: np.prod([*sizes.values()])])
  network, variables = reference.network('mistral', 6.0, head='lm')
  index = index_texts.index(PAGES, window=3)
  if parts > 1:
    index = index.split(index_texts.text(PAGES)[1], parts)
  return Searcher(network, sharding.put(variables, mesh), index, VIEWS, END, mesh, 4, 9)


def found(search: Searcher) -> dict:
  return {v.name: [dataclasses.asdict(w) for w in search(v.name, PROMPTS)] for v in VIEWS}


def on_four_devices(file: Path) -> None:
  """What the subprocess runs."""
  out = {}
  for sizes, parts in RUNS:
    search = open_on(sizes, parts)
    index = memory.per_device(search.index)
    out[str(sizes)] = {'found': found(search), 'index': index, 'whole': _bytes(search.index)}
  file.write_text(json.dumps(out))


def _bytes(index) -> int:
  return sum(x.nbytes for x in index)


@pytest.fixture(scope='module')
def four(tmp_path_factory) -> dict:
  file = tmp_path_factory.mktemp('four') / 'found.json'
  program = (
    'import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import conftest; '
    'import test_beams_devices; test_beams_devices.on_four_devices(Path(sys.argv[2]))'
  )
  flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', program, str(Path(__file__).parent), str(file)]
  done = subprocess.run(
    command, env=os.environ | flags, capture_output=True, text=True, timeout=900
  )
  assert file.exists(), done.stderr[-2000:]
  return json.loads(file.read_text())


@pytest.fixture(scope='module')
def one() -> dict:
  return json.loads(json.dumps(found(open_on((1, 1, 1), 1))))


@pytest.mark.parametrize('sizes, parts', RUNS)
def test_devices_and_a_sharded_index_find_what_one_device_finds(four, one, sizes, parts):
  there = four[str(sizes)]['found']
  for view, results in one.items():
    for ours, theirs in zip(results, there[view], strict=True):
      key = [(tuple(n['tokens']), n['lo'], n['hi']) for n in ours['ngrams']]
      assert key == [(tuple(n['tokens']), n['lo'], n['hi']) for n in theirs['ngrams']]
      for name in ('ngrams', 'unigrams'):
        a, b = (
          [n['logprob'] if name == 'ngrams' else n[1] for n in x[name]] for x in (ours, theirs)
        )
        np.testing.assert_allclose(a, b, atol=1e-4)
      assert [t for t, _ in ours['unigrams']] == [t for t, _ in theirs['unigrams']]


def test_a_device_holds_its_part_of_a_sharded_index_only(four):
  for sizes, parts in RUNS:
    assert four[str(sizes)]['index'] * parts == four[str(sizes)]['whole']


def test_queries_that_do_not_divide_are_refused():
  network, variables = reference.network('mistral', 6.0, head='lm')
  mesh = jax.sharding.AbstractMesh((4, 1, 1), sharding.AXES)
  with pytest.raises(UserError, match='6 queries at a time: must be a multiple'):
    Searcher(network, variables, index_texts.index(PAGES), VIEWS, END, mesh, 6, 9)
