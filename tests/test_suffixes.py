"""The order of suffixes and what is looked up in it, against brute force on random texts."""

import json
import tracemalloc

import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.generative import suffixes
from disranker_jax.generative.suffixes import LIGHT, Suffixes


def text(length, symbols, seed):
  return np.random.default_rng(seed).integers(0, symbols, length, dtype=np.int32)


def slow_order(text_N, depth):
  tokens = text_N.tolist()
  return sorted(range(len(tokens)), key=lambda i: (tokens[i : i + depth], i))


def occurrences(text_N, ngram):
  windows = np.lib.stride_tricks.sliding_window_view(text_N, len(ngram))
  return np.flatnonzero((windows == ngram).all(-1))


def ngrams(text_N, length):
  if length == 0:
    return {()}
  windows = np.lib.stride_tricks.sliding_window_view(text_N, length)
  return set(map(tuple, windows.tolist()))


# One symbol, and so many that a key holds few tokens; depths that are no power of two.
SHAPES = [(1, 1, 4), (40, 1, 5), (60, 2, 1), (90, 2, 7), (200, 3, 6), (50, 2**20, 16), (80, 30, 21)]


@pytest.mark.parametrize('length, symbols, depth', SHAPES)
def test_the_order_is_that_of_sorting_the_first_tokens_and_then_positions(length, symbols, depth):
  for seed in range(3):
    text_N = text(length, symbols, seed)
    order_N = Suffixes.build(text_N, symbols, depth).order_N
    assert order_N.dtype == np.int32 and order_N.tolist() == slow_order(text_N, depth)


@pytest.mark.parametrize('window', [1, 3, 1000])
@pytest.mark.parametrize('symbols', [2, 3, 6])
def test_intervals_positions_and_counts_are_those_of_scanning_the_text(window, symbols):
  text_N = text(120, symbols, seed=symbols)
  index = Suffixes.build(text_N, symbols, depth=5, window=window)
  rng = np.random.default_rng(0)
  tried = [rng.integers(0, symbols, n).tolist() for n in (1, 2, 3, 4, 5) for _ in range(40)]
  found = 0
  for ngram in tried:
    lo, hi = index.interval(ngram)
    expected = occurrences(text_N, ngram)
    assert index.positions(lo, hi).tolist() == expected.tolist()
    found += bool(len(expected))
  assert found > 50
  assert index.interval([]) == (0, 120)
  assert index.interval([symbols + 4]) == (120, 120)


@pytest.mark.parametrize('window', [1, 7, 1000])
def test_followers_are_those_of_scanning_the_text_for_light_and_heavy_prefixes(window):
  text_N = text(150, 3, seed=1)
  index = Suffixes.build(text_N, 3, depth=5, window=window)
  heavy = 0
  for prefix in [p for n in range(5) for p in sorted(ngrams(text_N, n))]:
    longer = sorted(n for n in ngrams(text_N, len(prefix) + 1) if n[:-1] == prefix)
    expected = [(ngram[-1], *index.interval(ngram)) for ngram in longer]
    assert index.followers(prefix) == expected
    lo, hi = index.interval(prefix)
    assert (index.number(prefix) != LIGHT) == (hi - lo > window or not prefix)
    heavy += index.number(prefix) != LIGHT
  assert heavy == len(index.heavy.first) - 1
  assert index.followers([0, 3]) == []


def test_the_end_of_the_text_follows_nothing():
  index = Suffixes.build(np.array([1, 1, 1, 1]), 2, depth=3, window=1)
  assert index.followers([]) == [(1, 0, 4)]
  assert index.followers([1]) == [(1, 1, 4)]  # the last position's suffix is row 0
  assert index.followers([1, 1]) == [(1, 2, 4)]


def test_longer_ngrams_than_the_order_compares_are_refused():
  index = Suffixes.build(text(30, 2, 0), 2, depth=3)
  index.interval([0, 1, 0])
  with pytest.raises(UserError, match='4 tokens, and the index is sorted by 3'):
    index.interval([0, 1, 0, 1])
  with pytest.raises(UserError, match='larger depth'):
    index.followers([0, 1, 0])


@pytest.mark.parametrize(
  'tokens, message',
  [
    ([], 'the collection is empty'),
    ([0, 5, 9, 2], 'token 9 at position 2 .* 9 symbols'),
    ([0, -1], 'token -1 at position 1'),
  ],
)
def test_texts_that_cannot_be_indexed_are_refused(tokens, message):
  with pytest.raises(UserError, match=message):
    Suffixes.build(np.array(tokens, np.int32), 9)


def test_more_tokens_than_int32_counts_are_refused_before_anything_is_read():
  many = np.lib.stride_tricks.as_strided(np.zeros(1, np.int32), (2**31,), (0,))
  with pytest.raises(UserError, match='2,147,483,648 tokens'):
    Suffixes.build(many, 9)


@pytest.mark.parametrize('name', ['depth', 'window'])
def test_sizes_below_one_are_refused(name):
  with pytest.raises(UserError, match=f'{name}=0'):
    Suffixes.build(text(5, 2, 0), 2, **{name: 0})


def test_saved_and_loaded_it_is_the_same(tmp_path):
  index = Suffixes.build(text(200, 4, 0), 4, depth=6, window=9)
  index.save(tmp_path / 'index')
  index.save(tmp_path / 'index')  # replaces
  loaded = Suffixes.load(tmp_path / 'index')
  assert (loaded.symbols, loaded.depth, loaded.window) == (4, 6, 9)
  np.testing.assert_array_equal(loaded.text_N, index.text_N)
  np.testing.assert_array_equal(loaded.order_N, index.order_N)
  for prefix in [(), (1,), (2, 3), (0, 1, 2)]:
    assert loaded.followers(prefix) == index.followers(prefix)
    assert loaded.interval(prefix) == index.interval(prefix)


@pytest.mark.parametrize('file', ['order.npy', 'token.npy', 'suffixes.json'])
def test_a_damaged_index_is_refused(tmp_path, file):
  index = Suffixes.build(text(50, 4, 0), 4)
  index.save(tmp_path / 'index')
  path = tmp_path / 'index' / file
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(UserError, match='index: is not an index, or damaged; make it again'):
    Suffixes.load(tmp_path / 'index')
  path.unlink()
  with pytest.raises(UserError, match='make it again'):
    Suffixes.load(tmp_path / 'index')


def test_an_index_of_another_version_is_refused(tmp_path):
  Suffixes.build(text(50, 4, 0), 4).save(tmp_path / 'index')
  note = tmp_path / 'index' / suffixes.NOTE
  note.write_text(json.dumps(json.loads(note.read_text()) | {'version': 0}))
  with pytest.raises(UserError, match='version 0, and this code reads 1; make it again'):
    Suffixes.load(tmp_path / 'index')


def test_memory_is_that_of_the_arrays():
  index = Suffixes.build(text(1000, 4, 0), 4, window=20)
  plain, tables = index.sizes()
  assert suffixes.memory(1000)[0] == plain == index.text_N.nbytes + index.order_N.nbytes
  heavy = index.heavy
  assert len(heavy.first) > 5  # several frequent prefixes
  assert tables == 4 * (len(heavy.first) + 4 * len(heavy.token))


@pytest.mark.parametrize('period', [0, 100, 50_000])
def test_building_holds_no_more_than_is_said_before(period):
  """Also in the rounds after the first: repeated texts differ late, if at all."""
  text_N = text(200_000, 2**15, seed=0)
  if period:
    text_N = np.tile(text_N[:period], 200_000 // period)
  tracemalloc.start()
  Suffixes.build(text_N, 2**15)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  _, host = suffixes.memory(len(text_N))
  assert peak + text_N.nbytes < 1.05 * host


@pytest.mark.parametrize('parts', [1, 2, 3, 5])
@pytest.mark.parametrize('window', [2, 512])
def test_rows_in_parts_add_up_to_those_in_the_whole(parts, window):
  text_N = text(160, 3, seed=2)
  starts_P = np.array([0, 1, 2, 100, 150])  # one page has most of the tokens
  whole = Suffixes.build(text_N, 3, depth=4, window=window)
  split = whole.split(starts_P, parts)
  assert len(split) == parts and sum(map(len, split)) == 160 and all(map(len, split))
  for ngram in [n for length in range(5) for n in ngrams(text_N, length)] + [(0, 7), (7,)]:
    assert whole.interval(ngram) == tuple(
      map(sum, zip(*(p.interval(ngram) for p in split), strict=True))
    )
  for part in split:
    for prefix in [(), (1,), (2, 2), (0, 1, 2)]:
      expected = [(t, *part.interval((*prefix, t))) for t in range(3)]
      assert part.followers(prefix) == [(t, lo, hi) for t, lo, hi in expected if hi > lo]


def test_parts_have_about_as_many_tokens():
  index = Suffixes.build(text(1000, 3, 0), 3)
  assert [len(part) for part in index.split(np.arange(0, 1000, 10), 4)] == [250] * 4


def test_more_parts_than_pages_are_refused():
  with pytest.raises(UserError, match='2 pages cannot be split into 3 parts'):
    Suffixes.build(text(10, 3, 0), 3).split(np.array([0, 4]), 3)
