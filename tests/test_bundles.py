"""Texts that share their first tokens in a row: the fewest tokens, the layout, the same scores."""

import dataclasses
import itertools

import attention_reference as reference
import jax
import llm_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_llm_ranker import make_groups, opened, results

from disranker_jax.data import bundles, pool
from disranker_jax.data.batches import EncodedGroup, Packer, Shape
from disranker_jax.data.bundles import Bundle, Limits
from disranker_jax.data.encoded import Encoded
from disranker_jax.devices import sharding
from disranker_jax.models import attention, families, load, network, tiny
from disranker_jax.models.kinds import Kind
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.rankers import pointwise

examples = settings(max_examples=60, deadline=None)
WIDE = Limits(1000, 100)


def text(ids, predict=(0, 0)) -> Encoded:
  ids = np.array(ids, np.int32)
  return Encoded(ids, np.zeros_like(ids), len(ids) - 1, predict)


def texts_of(shared: int, *lengths, seed=0) -> list[Encoded]:
  """Texts of random tokens that begin with the same `shared` ones, and differ in the next."""
  rng = np.random.default_rng(seed)
  start = rng.integers(10, 99, shared)
  return [
    text([*start, i, *rng.integers(10, 99, n - shared - 1)]) for i, n in enumerate(lengths)
  ]  # fmt: skip


def tokens(found) -> int:
  return sum(len(bundle) for bundle, _ in found)


def cheapest(docs, limits) -> int:
  """The fewest tokens of all partitions of a few texts."""

  def cost(part):
    if len(part) == 1:
      return len(part[0])
    most = min(map(len, part)) - 1
    rows = np.array([doc.ids[:most] for doc in part])
    differ = np.flatnonzero((rows != rows[0]).any(0))
    shared = differ[0] if len(differ) else most
    total = sum(map(len, part)) - (len(part) - 1) * shared
    return total if total <= limits.tokens and len(part) <= limits.docs else np.inf

  def best(rest):
    if not rest:
      return 0
    first, *others = rest
    parts = itertools.chain.from_iterable(
      itertools.combinations(range(len(others)), k) for k in range(len(others) + 1)
    )
    return min(
      cost([first, *(others[i] for i in chosen)])
      + best([other for i, other in enumerate(others) if i not in chosen])
      for chosen in parts
    )

  return best(docs)


small_texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=5)


@examples
@given(rows=small_texts, room=st.integers(9, 20), most=st.integers(1, 4))
def test_bundles_have_the_fewest_tokens_that_are_possible(rows, room, most):
  docs, limits = list(map(text, rows)), Limits(room, most)
  found = bundles.bundles(docs, limits)
  assert sorted(i for _, numbers in found for i in numbers) == list(range(len(docs)))
  plain, best = sum(map(len, docs)), cheapest(docs, limits)
  assert tokens(found) == (best if best <= (1 - bundles.LEAST_SAVED) * plain else plain)
  for bundle, numbers in found:
    assert [doc.ids.tolist() for doc in bundle.docs] == [rows[i] for i in numbers]
    assert len(bundle) <= room
    starts = {tuple(doc.ids[: bundle.shared].tolist()) for doc in bundle.docs}
    assert len(starts) == 1 and all(bundle.shared < len(doc) for doc in bundle.docs)


def test_small_savings_leave_texts_alone():
  assert [len(b.docs) for b, _ in bundles.bundles(texts_of(4, 100, 100), WIDE)] == [1, 1]
  [(bundle, numbers)] = bundles.bundles(texts_of(12, 100, 100), WIDE)
  assert (bundle.shared, len(bundle), numbers) == (12, 188, [0, 1])


def test_prompts_of_pairs_share_their_first_document_too():
  # (a, b), (a, c), ...: 30 tokens of frame, 20 of each document.
  frame, of = range(100, 130), [range(200 + 20 * i, 220 + 20 * i) for i in range(4)]
  docs = [text([*frame, *of[a], *of[b]]) for a, b in itertools.permutations(range(4), 2)]
  found = bundles.bundles(docs, Limits(120, 100))
  assert sorted(len(bundle) for bundle, _ in found) == [110] * 4  # 50 + 3 * 20


def test_no_bundle_predicts_more_tokens_than_a_row_may():
  docs = [text([*range(20), 50 + i, 1, 2, 3], predict=(21, 24)) for i in range(6)]
  found = bundles.bundles(docs, Limits(200, 100, predicted=7))
  assert [len(bundle.docs) for bundle, _ in found] == [2, 2, 2]


# Layout


def check_text(batch, slot, doc) -> None:
  """The scored token's segment, and before it the parent's, are the text."""
  flat = {k: batch[f'{k}_BT'].reshape(-1) for k in ('tokens', 'positions', 'segments', 'parents')}
  rows = np.repeat(np.arange(len(batch['tokens_BT'])), batch['tokens_BT'].shape[1])
  last = batch['index_AX'][0, slot]
  own = (flat['segments'] == flat['segments'][last]) & (rows == rows[last])
  parent = flat['parents'][last]
  prefix = (flat['segments'] == parent) & (rows == rows[last]) & (parent > 0)
  read = [*flat['tokens'][prefix], *flat['tokens'][own]]
  places = [*np.flatnonzero(prefix), *np.flatnonzero(own)]
  assert read == doc.ids.tolist()
  assert flat['positions'][places].tolist() == list(range(len(doc)))
  assert places[doc.anchor] == last
  owned = batch['owner_AP'][0] == slot
  start, stop = doc.predict
  assert batch['index_AP'][0][owned].tolist() == places[start - 1 : stop - 1]
  assert batch['targets_AP'][0][owned].tolist() == doc.ids[start:stop].tolist()


@examples
@given(
  shared=st.integers(0, 12),
  sizes=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), min_size=1, max_size=5),
  span=st.tuples(st.integers(0, 4), st.integers(0, 12)),
)
def test_every_text_can_be_read_from_the_rows(shared, sizes, span):
  shape = Shape(3, 48, 1, predicted=40, shares=True)
  texts, todo, count = {}, [], itertools.count()
  for seed, size in enumerate(sizes):
    docs = texts_of(shared, *(shared + n for n in size), seed=seed)
    spans = [sorted(1 + n % len(d) for n in span) for d in docs]  # some begin in what is shared
    docs = [text(d.ids, tuple(s)) for d, s in zip(docs, spans, strict=True)]
    keys = list(itertools.islice(count, len(docs)))
    texts |= dict(zip(keys, docs, strict=True))
    todo.append((Bundle(tuple(docs), shared if len(docs) > 1 else 0), keys))
  for keys, batch in pool.pack(todo, shape):
    for slot, key in enumerate(keys):
      assert batch['mask_GN'][slot, 0]
      check_text(batch, slot, texts.pop(key))
  assert not texts


def test_training_shares_first_tokens_within_a_query_only():
  docs = texts_of(12, 20, 18, 25, 14, 14)
  groups = [EncodedGroup(docs[i:], *np.zeros((2, 5 - i)), f'q{i}') for i in (0, 2, 3)]
  shape = Shape(2, 64, 5, predicted=8, shares=True, shortest=4)
  packer = Packer(shape)
  assert all(packer.add(group) for group in groups)  # 178 tokens without sharing, and 128 places
  batch = packer.batch()
  for g, group in enumerate(groups):
    for n, doc in enumerate(group.docs):
      check_text(batch, 5 * g + n, doc)
  assert (batch['segments_BT'] > 0).sum() == (91 - 4 * 12) + (53 - 2 * 12) + (28 - 12)


# Attention


TREE = attention.Tree(
  np.array([[1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 0, 0], [1] * 5 + [2, 2, 3, 3, 3, 4, 0]]),
  np.array([[0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0], [0] * 5 + [1, 1, 1, 1, 1, 0, 0]]),
)


def may_see(tree) -> np.ndarray:
  """Position by position: earlier ones of the own segment, and the parent's."""
  own, parents = tree
  seen = reference.may_see(own, True, None)
  for row, t, s in np.ndindex(*seen.shape):
    seen[row, t, s] |= parents[row, t] > 0 and parents[row, t] == own[row, s]
  return seen


def test_a_segment_sees_its_parent_and_no_other_child():
  seen = attention.attention_mask(TREE, TREE.segments_BT, causal=True, window=3)
  np.testing.assert_array_equal(seen, may_see(TREE))


def test_splash_gives_the_values_of_xla(monkeypatch):
  monkeypatch.setattr(attention, 'MAX_BLOCK', 128)
  qkv = reference.qkv(2, 200, 4, 2, 64)
  own = np.repeat([[1, 2, 3, 4, 5, 0], [1, 1, 2, 3, 4, 5]], [70, 20, 50, 30, 20, 10], axis=1)
  parents = np.where(own > 1, np.where(own == 5, 0, 1), 0)
  tree = attention.Tree(own, parents)
  splash, xla = (
    reference.attend(qkv, tree, causal=True, kernel=kernel)
    for kernel in ('splash_interpret', 'xla')
  )
  real = own > 0
  np.testing.assert_allclose(splash[real], xla[real], atol=2e-6)


# Scores


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return llm_models.write(tmp_path_factory.mktemp('llm') / 'model')


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])


@pytest.mark.parametrize(
  'name', ['yes_no', 'query_likelihood', 'qwen3_reranker', 'prp_allpair', 'listwise']
)
def test_an_llm_ranker_scores_as_without_sharing(folder, mesh, monkeypatch, name):
  groups = make_groups((6, 1, 0, 9), seed=3)
  shared = opened(folder, mesh, name)
  ours = results(shared.ranked([(None, groups)]))
  monkeypatch.setattr(network.Network, 'shares', lambda self, longest: False)
  plain = opened(folder, mesh, name)
  theirs = results(plain.ranked([(None, groups)]))
  for query, ranked in ours.items():
    np.testing.assert_allclose(ranked.scores, theirs[query].scores, atol=1e-5)
    assert ranked.counts == theirs[query].counts
  assert shared.work.tokens <= plain.work.tokens
  assert name == 'listwise' or shared.work.tokens < plain.work.tokens


JUDGE = 'Say whether the page answers the question. Question: {query} Page: {title} {summary}'


@pytest.mark.parametrize('kind', ['score_head', 'query_likelihood', 'score_head+query_likelihood'])
@pytest.mark.parametrize('attention', ['xla', 'splash_interpret'])
def test_a_teacher_scores_as_without_sharing(kind, attention):
  everywhere = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})

  def scored(share):
    made = model_settings(
      model='tiny-decoder', precision='float32', max_len=80, max_query_len=16, row_len=200,
      share_prefixes=share,
    )  # fmt: skip
    made.update({'scorer': kind, 'template': JUDGE})
    side = load.open_model(made)
    network = dataclasses.replace(side.network, attention=attention)
    ranker = pointwise.PointwiseRanker(
      network, side.pretrained(0, everywhere), side.prompt(), everywhere, 4, 200, kind
    )
    found = {group.query_id: scores for group, scores in ranker(make_groups((9, 1, 0, 4, 12)))}
    assert ranker.work.tokens == sum(map(ranker.tokens_of, make_groups((9, 1, 0, 4, 12))))
    return found, ranker.work.tokens

  (ours, few), (theirs, many) = scored(True), scored(False)
  assert few < 0.8 * many
  for query, scores in theirs.items():
    np.testing.assert_allclose(ours[query], scores, atol=1e-5)


def test_what_can_share():
  decoder = families.find('mistral').from_hf(tiny.CONFIGS['tiny-decoder'])
  assert network.Network(decoder).shares(400)
  assert not network.Network(decoder, share_prefixes=False).shares(400)
  short = dataclasses.replace(decoder, kinds=(Kind(), Kind(window=128)))
  assert network.Network(short).shares(128) and not network.Network(short).shares(129)
