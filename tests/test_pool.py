"""The packing pool: no document is lost, repeated or starved, and there is little padding."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import check_documents, sequence

from benchmarks import batches as bench
from disranker_jax.data import pool
from disranker_jax.data.batches import Shape
from disranker_jax.data.bundles import Bundle
from disranker_jax.errors import UserError

examples = settings(max_examples=60, deadline=None)
SHAPE = Shape(rows=3, row_len=32, docs=1)


def documents(lengths, predict=lambda n: (0, 0)) -> list[Bundle]:
  made = [sequence(n, predict=predict(n), seed=i) for i, n in enumerate(lengths)]
  return [Bundle.alone(doc, str(i)) for i, doc in enumerate(made)]


def packed(groups, shape=SHAPE) -> list[tuple[list[int], dict]]:
  return list(pool.pack(((bundle, [i]) for i, bundle in enumerate(groups)), shape))


def drawn(count, seed=0, low=10, high=48) -> list[int]:
  return np.random.default_rng(seed).integers(low, high + 1, count).tolist()


def first_fit_decreasing(lengths, row_len) -> int:
  """The number of rows to place all at once, longest first, each in the first row with room."""
  free = []
  for length in sorted(lengths, reverse=True):
    row = next((i for i, room in enumerate(free) if room >= length), None)
    if row is None:
      free.append(row_len - length)
    else:
      free[row] -= length
  return len(free)


@examples
@given(lengths=st.lists(st.integers(1, SHAPE.row_len), max_size=60))
def test_every_document_is_in_one_batch_once_and_complete(lengths):
  groups = documents(lengths)
  blocks = packed(groups)
  assert sorted(itertools.chain(*(keys for keys, _ in blocks))) == list(range(len(groups)))
  for keys, block in blocks:
    check_documents(block, [groups[i] for i in keys])
    rows = [np.unique(row[row > 0]).tolist() for row in block['segments_BT']]
    assert all(row == list(range(1, len(row) + 1)) for row in rows)


@examples
@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=60), most=st.integers(7, 12))
def test_a_batch_has_no_more_predicted_tokens_and_documents_than_it_may(lengths, most):
  shape = Shape(rows=3, row_len=32, docs=1, predicted=most)
  groups = documents(lengths, predict=lambda n: (1, n))
  blocks = packed(groups, shape)
  assert sum(len(keys) for keys, _ in blocks) == len(groups)
  for keys, block in blocks:
    check_documents(block, [groups[i] for i in keys])
    assert len(keys) <= shape.groups
    assert sum(groups[i].predicted for i in keys) == (block['owner_AP'] >= 0).sum()
    assert (block['owner_AP'] >= 0).sum() <= 3 * most


@pytest.mark.parametrize(
  'rows, row_len, low, high',
  [(40, 96, 10, 48), (8, 96, 20, 48), (16, 256, 30, 256), (2, 1024, 40, 256), (4, 128, 60, 64)],
)
def test_rows_are_as_full_as_if_all_documents_were_known_from_the_start(rows, row_len, low, high):
  lengths = drawn(3000, low=low, high=high)
  blocks = packed(documents(lengths), Shape(rows, row_len, docs=1))
  needed = first_fit_decreasing(lengths, row_len)
  assert len(blocks) <= 1.035 * needed / rows + 1
  # If several short ones fit a row, there are enough documents to fill it.
  if row_len >= 2 * high and low < high / 2:
    assert np.mean([(block['segments_BT'] > 0).mean() for _, block in blocks[:-1]]) > 0.98


def test_lengths_that_fill_rows_exactly_fill_them_in_any_order():
  # Halves of 48; pairs that add up to it; triples.
  cuts = [(24, 24), (40, 8), (31, 17), (16, 16, 16)] * 30
  lengths = [n for cut in cuts for n in cut]
  for seed in range(5):
    np.random.default_rng(seed).shuffle(lengths)
    blocks = packed(documents(lengths), Shape(8, 48, 1))
    assert len(blocks) <= len(cuts) / 8 + 1


def test_no_document_waits_forever():
  # 30 leaves 18 free, which no other fills; without ageing, documents that fill rows go first.
  lengths = [30] + [24, 24] * 2000
  shape = Shape(4, 48, 1)
  blocks = packed(documents(lengths), shape)
  assert 0 in blocks[0][0]
  # In general, a document leaves when all earlier ones could have filled the rows.
  lengths = drawn(3000)
  place = {key: b for b, (keys, _) in enumerate(packed(documents(lengths), shape)) for key in keys}
  most = 2 * (shape.rows + pool.CHOICE) / shape.rows
  best = np.cumsum(lengths) / (shape.rows * shape.row_len)
  assert all(place[i] <= best[i] * 1.1 + most for i in range(len(lengths)))


def test_the_pool_holds_at_most_a_batch_and_its_reserve():
  taken = []

  def watched():
    for i, one in enumerate(documents(drawn(2000))):
      taken.append(i)
      yield one, [i]

  shape, out = Shape(4, 96, 1), 0
  for keys, _ in pool.pack(watched(), shape):
    out += len(keys)
    assert (len(taken) - out) * 10 <= (shape.rows + pool.CHOICE) * shape.row_len + 48


def test_the_same_documents_are_packed_in_the_same_way():
  once, again = (packed(documents(drawn(300)), Shape(4, 96, 1)) for _ in range(2))
  assert len(once) == len(again) > 5
  for (keys, block), (other_keys, other) in zip(once, again, strict=True):
    assert keys == other_keys
    assert all(np.array_equal(block[k], other[k]) for k in block)


@pytest.mark.parametrize('length, predict', [(33, (0, 0)), (30, (1, 30))])
def test_a_document_for_which_no_batch_has_room_is_named_by_its_query(length, predict):
  shape = Shape(rows=2, row_len=32, docs=1, predicted=14)
  long = sequence(length, predict=predict)
  groups = [Bundle.alone(sequence(20), 'small'), Bundle.alone(long, 'Q7')]
  with pytest.raises(UserError, match=f"'Q7': its 1 document .{length} tokens"):
    packed(groups, shape)


def test_the_bench_of_batches_counts_every_stage(capsys):
  bench.main(['padding', f'--config={Path(__file__).parents[1]}/configs/tiny.py'])
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert [' '.join(row[1:-2]) for row in rows] == [
    'cpt', 'sft', 'student_sft', 'distill', 'score', 'evaluate teacher', 'evaluate student'
  ]  # fmt: skip
  assert all(0.3 < float(row[-2]) <= 1 and int(row[-1]) > 0 for row in rows)
