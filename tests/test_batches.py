"""Packed rows: every document once, complete and alone in its segment, scored at its anchor."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax.data import batches, streams
from disranker_jax.data.batches import EncodedGroup, Packer, Shape
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import UNJUDGED, Click, Document, Group
from disranker_jax.errors import UserError

examples = settings(max_examples=60, deadline=None)
# Four queries at most; any group made below fits alone, and few fit together.
SHAPE = Shape(rows=4, row_len=48, docs=3, predicted=24, values=('double', 'unknown'))
MAX_LEN = 30


def sequence(length, *, anchor=-1, predict=(0, 0), seed=0) -> Encoded:
  """Random tokens, also the 0 of padding, so that no test can find a document by its tokens."""
  ids, types = np.random.default_rng(seed).integers(0, [[9], [2]], (2, length)).astype(np.int32)
  return Encoded(ids, types, anchor % length, predict)


def group(*lengths, name='q', predict=(0, 0)) -> EncodedGroup:
  docs = [sequence(n, predict=predict, seed=i) for i, n in enumerate(lengths)]
  return EncodedGroup(docs, np.zeros(len(docs)), np.zeros(len(docs)), name)


@st.composite
def sequences(draw):
  length = draw(st.integers(1, MAX_LEN))
  start, stop = sorted(draw(st.tuples(st.integers(1, length), st.integers(1, length))))
  return sequence(
    length,
    anchor=draw(st.integers(0, length - 1)),
    predict=(start, stop) if start < stop else (0, 0),
    seed=draw(st.integers(0, 1000)),
  )


@st.composite
def groups_of_any_size(draw):
  sizes = draw(st.lists(st.integers(1, SHAPE.docs), max_size=10))
  groups = []
  for g, size in enumerate(sizes):
    docs = [draw(sequences()) for _ in range(size)]
    known = np.arange(size, dtype=np.float32) + 10 * g + 1
    groups.append(EncodedGroup(docs, known, -known, f'q{g}', {'double': 2 * known}))
  return groups


some_groups = groups_of_any_size()


def pack(groups, shape):
  """(number of groups, batch) of each batch: the next starts with the group that did not fit."""
  packer = Packer(shape)
  for member in groups:
    if not packer.add(member):
      yield len(packer.groups), packer.batch()
      packer = Packer(shape)
      assert packer.add(member)
  if packer.groups:
    yield len(packer.groups), packer.batch()


def layout(groups, shape) -> list[tuple[dict, list[EncodedGroup]]]:
  """Every batch with its groups, from the counts of `pack`."""
  out, at = [], 0
  for count, batch in pack(groups, shape):
    out.append((batch, groups[at : at + count]))
    at += count
  assert at == len(groups)
  return out


def documents(members) -> list[tuple[int, int, Encoded]]:
  return [(g, n, doc) for g, group in enumerate(members) for n, doc in enumerate(group.docs)]


def segment_at(batch, flat) -> slice:
  """The piece of the flattened rows with the segment of a flat position."""
  row_len = batch['segments_BT'].shape[1]
  row, at = divmod(int(flat), row_len)
  segment = batch['segments_BT'][row, at]
  assert segment > 0
  where = np.flatnonzero(batch['segments_BT'][row] == segment)
  assert (np.diff(where) == 1).all(), 'a segment is one piece'
  return slice(row * row_len + where[0], row * row_len + where[-1] + 1)


def check_documents(batch, members) -> None:
  taken = np.zeros(batch['tokens_BT'].size, int)
  for g, n, doc in documents(members):
    flat = batch['index_AX'][0, g * batch['mask_GN'].shape[1] + n]
    here = segment_at(batch, flat)
    taken[here] += 1
    expected = {'tokens_BT': doc.ids, 'types_BT': doc.types, 'positions_BT': np.arange(len(doc))}
    for key, values in expected.items():
      np.testing.assert_array_equal(batch[key].reshape(-1)[here], values, key)
    assert flat == here.start + doc.anchor
  # No document twice, and padding everywhere else.
  np.testing.assert_array_equal(taken, batch['segments_BT'].reshape(-1) > 0)
  for key in ('tokens_BT', 'types_BT', 'positions_BT'):
    assert not batch[key].reshape(-1)[taken == 0].any()


# Layout


@examples
@given(groups=some_groups)
def test_every_document_is_in_one_batch_once_complete_and_read_at_its_anchor(groups):
  for batch, members in layout(groups, SHAPE):
    check_documents(batch, members)


@examples
@given(groups=some_groups)
def test_segments_of_a_row_count_its_documents_from_one(groups):
  for batch, members in layout(groups, SHAPE):
    rows = [np.unique(row[row > 0]).tolist() for row in batch['segments_BT']]
    assert all(row == list(range(1, len(row) + 1)) for row in rows)
    assert sum(map(len, rows)) == len(documents(members))


@examples
@given(groups=some_groups)
def test_labels_and_scores_are_those_of_their_document_and_neutral_elsewhere(groups):
  for batch, members in layout(groups, SHAPE):
    for g, member in enumerate(members):
      n = len(member.docs)
      assert batch['mask_GN'][g].tolist() == [True] * n + [False] * (SHAPE.docs - n)
      np.testing.assert_array_equal(batch['labels_GN'][g, :n], member.labels)
      np.testing.assert_array_equal(batch['teacher_GN'][g, :n], member.teacher)
      np.testing.assert_array_equal(batch['double_GN'][g, :n], 2 * member.labels)
    absent = ~batch['mask_GN']
    assert absent[len(members) :].all()
    assert (batch['labels_GN'][absent] == UNJUDGED).all()
    assert not batch['teacher_GN'][absent].any() and not batch['double_GN'][absent].any()
    assert not batch['unknown_GN'].any()
    assert not batch['index_AX'][0][absent.reshape(-1)].any()


@examples
@given(groups=some_groups)
def test_a_predicted_token_follows_its_index_in_its_owners_document(groups):
  for batch, members in layout(groups, SHAPE):
    tokens = batch['tokens_BT'].reshape(-1)
    index, targets, owner = (batch[key][0] for key in ('index_AP', 'targets_AP', 'owner_AP'))
    real = owner >= 0
    np.testing.assert_array_equal(tokens[index[real] + 1], targets[real])
    for g, n, doc in documents(members):
      here = segment_at(batch, batch['index_AX'][0, g * batch['mask_GN'].shape[1] + n])
      mine = index[owner == g * SHAPE.docs + n]
      assert mine.tolist() == [here.start + at - 1 for at in range(*doc.predict)]
    assert real.sum() == sum(len(range(*doc.predict)) for _, _, doc in documents(members))


@examples
@given(groups=some_groups)
def test_pack_keeps_the_order_and_ends_a_batch_only_where_the_next_does_not_fit(groups):
  batched = layout(groups, SHAPE)
  assert len({str([(k, v.shape, v.dtype) for k, v in batch.items()]) for batch, _ in batched}) <= 1
  for (_, members), (_, following) in itertools.pairwise(batched):
    packer = Packer(SHAPE)
    assert all(packer.add(g) for g in members)
    assert not packer.add(following[0])


@examples
@given(cuts=st.lists(st.integers(1, 11), min_size=1, max_size=5), order=st.randoms())
def test_rows_cut_in_two_are_all_filled_again(cuts, order):
  lengths = [n for cut in cuts for n in (cut, 12 - cut)]
  order.shuffle(lengths)
  [(count, batch)] = pack([group(*lengths)], Shape(len(cuts), 12, len(lengths)))
  assert count == 1 and (batch['segments_BT'] > 0).all()


def test_sequences_of_a_whole_row_fill_a_batch_and_the_next_starts_another():
  groups = [group(32, 32, name=str(i)) for i in range(5)]
  found = layout(groups, Shape(rows=4, row_len=32, docs=2))
  assert [len(members) for _, members in found] == [2, 2, 1]
  for batch, members in found:
    check_documents(batch, members)


def test_a_group_that_needs_the_others_moved_is_taken():
  # 15 and 20 are in one row; 35 and 30 leave exactly their room, in one row each.
  groups = [group(15), group(20), group(35, 30)]
  [(batch, members)] = layout(groups, Shape(rows=2, row_len=50, docs=2))
  assert len(members) == 3 and (batch['segments_BT'] > 0).all()
  check_documents(batch, members)


def test_predicted_tokens_bound_a_batch_too():
  groups = [group(12, predict=(1, 11)) for _ in range(4)]
  shapes = Shape(2, 32, 1), Shape(2, 32, 1, predicted=10), Shape(2, 32, 1, predicted=5)
  counts = [[count for count, _ in pack(groups, shape)] for shape in shapes]
  assert counts == [[4], [2, 2], [1, 1, 1, 1]]


def test_without_predicted_tokens_there_are_no_targets():
  [(_, batch)] = pack([group(12, predict=(1, 11))], Shape(2, 32, 1))
  assert not [key for key in batch if key.endswith('_P')]


@pytest.mark.parametrize(
  'lengths, predict',
  [((33,), (0, 0)), ((17,) * 5, (0, 0)), ((20, 20), (1, 20))],
  ids=['a document longer than a row', 'more than the rows hold', 'more predicted than allowed'],
)
@pytest.mark.parametrize('before', [0, 1])
def test_a_query_that_cannot_fit_is_named(lengths, predict, before):
  shape = Shape(rows=4, row_len=32, docs=5, predicted=8)
  groups = [group(3, name='small')] * before + [group(*lengths, name='Q7', predict=predict)]
  said = '1 document' if len(lengths) == 1 else f'{len(lengths)} documents'
  with pytest.raises(UserError, match=f"'Q7': its {said} .* not fit .*raise batch_rows"):
    list(pack(groups, shape))


# Endless batches


def encode(record) -> EncodedGroup:
  """Records are (number, documents chosen); the number comes back as the teacher's score."""
  number, chosen = record
  docs = [sequence(5 + (7 * number + n) % 20, seed=number) for n in chosen]
  return EncodedGroup(docs, np.zeros(len(docs)), np.full(len(docs), number), str(number))


def draw(record, rng):
  number, docs = record
  return number, np.sort(rng.permutation(docs)[:2])


def endless(seed=3, block=0, blocks=1):
  """A stream of blocks, all of which have the same shape however many there are."""
  source = [(i, 3) for i in range(7)]
  shape = dataclasses.replace(SHAPE, rows=SHAPE.rows * blocks)
  data = streams.training(source, encode, shape, seed=seed, draw=draw, blocks=blocks)
  return data.stream(block)


def same(ours, theirs) -> bool:
  assert ours.keys() == theirs.keys()
  return all(np.array_equal(ours[k], theirs[k]) for k in ours)


def take(stream, count) -> list[dict]:
  return [stream.next()[0] for _ in range(count)]


def test_one_seed_gives_one_order_and_another_seed_another():
  once, again, other = (take(endless(seed), 6) for seed in (3, 3, 4))
  assert all(map(same, once, again))
  assert not any(map(same, once, other))


def test_an_epoch_is_every_record_once_and_the_next_epoch_is_shuffled_again():
  numbers = []
  for batch in take(endless(), 12):
    count = batch['mask_GN'].any(1).sum()
    assert count > 1
    numbers += batch['teacher_GN'][:count, 0].astype(int).tolist()
  first, second = numbers[:7], numbers[7:14]
  assert sorted(first) == sorted(second) == list(range(7))
  assert first != second


def test_from_any_position_the_later_batches_are_the_same():
  stream, positions, found = endless(), [], []
  for _ in range(6):
    positions.append(stream.position)
    found += take(stream, 1)
  assert positions[0] == 0 and len(set(positions)) == 6
  for k, position in enumerate(positions):
    fresh = endless()
    fresh.seek(position)
    assert fresh.position == position
    assert all(map(same, take(fresh, 2), found[k:]))
  # A stream that has advanced holds a query back, which is discarded.
  stream.seek(positions[2])
  assert all(map(same, take(stream, 4), found[2:]))


def queries(stream, count) -> list[str]:
  return [name for _ in range(count) for name in stream.next()[1]]


def test_blocks_share_out_the_queries_of_one_order():
  whole = queries(endless(), 12)
  parts = [queries(endless(block=b, blocks=3), 6) for b in range(3)]
  assert min(map(len, parts)) >= 6
  for b, part in enumerate(parts):
    assert part[:6] == whole[b::3][:6]


def test_names_are_those_of_the_queries_in_the_block():
  stream = endless()
  for _ in range(5):
    block, names = stream.next()
    assert block['mask_GN'].any(1).sum() == len(names) > 0


def test_joined_blocks_count_from_their_own_start():
  one, two = take(endless(), 2)
  both = batches.join([one, two])
  for key in one:
    half = len(both[key]) // 2
    np.testing.assert_array_equal(both[key][:half], one[key])
    np.testing.assert_array_equal(both[key][half:], two[key])
  assert both['index_AX'].shape == (2, SHAPE.groups * SHAPE.docs)


def test_rows_that_do_not_divide_into_blocks_are_an_error():
  with pytest.raises(UserError, match='batch_rows=3 must be a multiple of data_shards=2'):
    batches.Shape(3, 16, 2).block(2)


def test_filling_has_no_document():
  empty = SHAPE.zeros(2)
  real = batches.join(take(endless(), 2))
  assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {
    k: (v.shape, v.dtype) for k, v in real.items()
  }
  assert not empty['mask_GN'].any() and not empty['segments_BT'].any()
  assert (empty['owner_AP'] == -1).all() and (empty['labels_GN'] == UNJUDGED).all()


def test_a_query_that_cannot_fit_is_named_while_training_too():
  data = streams.training([9], lambda i: group(60, name=str(i)), SHAPE, seed=0)
  with pytest.raises(UserError, match="query '9'"):
    data.stream(0).next()


# Encoding


class Lengths:
  """A prompt with one token per character of the title."""

  def encode(self, query, docs):
    return [sequence(len(query + d.title)) for d in docs]


def test_encoding_keeps_labels_teacher_scores_and_the_name_with_their_documents():
  docs = (Document('a', 'xx', '', 2), Document('b', 'x', ''))
  found = batches.encode_group(Lengths(), Group('q1', 'abc', docs), np.array([0.5, -1.5]))
  assert [len(d) for d in found.docs] == [5, 4] and found.name == 'q1'
  assert found.labels.tolist() == [2, UNJUDGED] and found.teacher.tolist() == [0.5, -1.5]
  assert batches.encode_group(Lengths(), Group('q1', 'abc', docs)).teacher.tolist() == [0, 0]


def test_a_click_is_a_query_with_the_one_document():
  found = batches.encode_click(Lengths(), Click('how to', 'title', 'summary', 3))
  assert [len(d) for d in found.docs] == [11] and found.name == 'how to'
