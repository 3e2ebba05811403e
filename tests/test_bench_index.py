"""The benches of the index of n-grams and of the search in it, as commands, on small sizes."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import _collection
from disranker_jax.errors import UserError
from disranker_jax.generative.suffixes import Suffixes


def answer(capsys, *argv) -> dict:
  command.main([*argv, '--json'])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_random_collection_has_the_fields_of_pages():
  text = _collection.text(30, 200)
  assert text.min() >= _collection.END and text.max() == 201
  index = Suffixes.build(text, _collection.symbols(200), 3)
  for anchor in (200, 201):
    assert np.subtract(*index.interval([anchor])) == -30
    assert not np.subtract(*index.interval([anchor, _collection.END])), 'no empty field'
  assert np.subtract(*index.interval([_collection.END])) == -90


def test_the_index_grows_with_the_collection(capsys, tmp_path):
  plot = tmp_path / 'plot.svg'
  sizes = ['--documents=20,200', '--vocab=200', '--window=8', '--queries=2', '--beams=3']
  found = answer(capsys, 'suffixes', *sizes, f'--plot={plot}')
  small, large = found['points']
  assert (small['documents'], large['documents']) == (20, 200)
  assert large['tokens'] == 10 * small['tokens'] == 200 * 59
  assert large['bytes'] > 8 * large['tokens'] and large['heavy'] > small['heavy']
  assert 0.8 < found['slopes']['bytes'] < 1.2
  assert plot.read_text().startswith('<?xml')


def test_beams_beside_free_text(capsys):
  sizes = ['--queries=2', '--beams=3', '--length=3', '--prompt-len=5', '--documents=20']
  found = answer(capsys, 'beams', '--model=tiny-decoder', *sizes, '--rounds=1')
  sides = found['sides']
  assert set(sides) == {'beams, body', 'beams, title', 'free, greedy'}
  assert sides['free, greedy']['of_free']['median'] == 1
  for side in sides.values():
    assert side['tokens_per_s'] == pytest.approx(9 * side['queries_per_s'], rel=1e-4)


@pytest.mark.parametrize(
  'argv', [['--documents=few'], ['--documents=0,5'], ['--length=16'], ['--vocab=3']]
)
def test_sizes_that_cannot_be_measured_are_refused(argv):
  with pytest.raises(UserError, match='--documents'):
    command.main(['suffixes', *argv])
