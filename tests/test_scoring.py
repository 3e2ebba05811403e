"""The pointwise ranker: how scores are computed, and that only the document changes them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.data.records import Document, Group
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import load
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.rankers import pointwise
from disranker_jax.rankers.work import Work

QUERY_LAST = '{title} : {summary} : {query}'
WORDS = [
  'return',
  'the',
  'value',
  'of',
  'an',
  'object',
  'as',
  'string',
  'or',
  'keys',
  'and',
  'items',
]


@pytest.fixture(scope='module', autouse=True)
def cached():
  """One compile and one load of each kind, however many tests use it."""
  yield
  opened.cache_clear()
  run.cache_clear()


@functools.cache
def opened(model, kind='score_head', rows=3):
  """A ranker with a tiny model in float32; 'both' has the heads of the other kinds as well."""
  settings = model_settings(
    model=model, precision='float32', max_len=40, max_query_len=8, row_len=40
  )
  decoder = model == 'tiny-decoder'
  if decoder:
    settings.update({'scorer': kind, 'template': QUERY_LAST})
  side = load.open_model(settings, head='both' if decoder else 'rank')
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  return pointwise.PointwiseRanker(
    side.network, side.pretrained(0, mesh), side.prompt(), mesh, rows, settings.row_len, kind
  )


def make_group(seed, size) -> Group:
  rng = np.random.default_rng(seed)

  def text(most):
    return ' '.join(rng.choice(WORDS, rng.integers(1, most)))

  docs = [Document(str(i), text(4), text(16)) for i in range(size)]
  return Group(f'q{seed}', text(5), tuple(docs))


GROUPS = [make_group(seed, size) for seed, size in enumerate([3, 0, 1, 6, 0, 0, 2, 4, 0])]


@functools.cache
def run(model, kind='score_head', rows=3) -> dict[str, np.ndarray]:
  """All groups' scores by query_id."""
  return {g.query_id: scores for g, scores in opened(model, kind, rows)(GROUPS)}


kinds = pytest.mark.parametrize(
  'model, kind',
  [
    ('tiny-encoder', 'score_head'),
    ('tiny-decoder', 'score_head'),
    ('tiny-decoder', 'query_likelihood'),
  ],
)


@kinds
def test_groups_come_in_order_each_with_one_score_per_document_or_none(model, kind):
  found = list(opened(model, kind)(iter(GROUPS)))
  assert [g.query_id for g, _ in found] == [g.query_id for g in GROUPS]
  assert [len(scores) for _, scores in found] == [len(g.docs) for g in GROUPS]
  assert list(opened(model, kind)([])) == []
  [(group, scores)] = opened(model, kind)([GROUPS[1]])
  assert group is GROUPS[1] and len(scores) == 0


@kinds
def test_a_group_alone_scores_as_among_others(model, kind):
  among = run(model, kind)
  assert len({round(float(x), 6) for scores in among.values() for x in scores}) > 8
  for group in GROUPS:
    [(_, alone)] = opened(model, kind)([group])
    np.testing.assert_allclose(alone, among[group.query_id], atol=1e-5)


@kinds
def test_neither_the_order_of_groups_nor_of_documents_changes_a_score(model, kind):
  turned = [Group(g.query_id, g.query, g.docs[::-1]) for g in GROUPS[::-1]]
  found = {g.query_id: scores[::-1] for g, scores in opened(model, kind)(turned)}
  for query_id, scores in run(model, kind).items():
    np.testing.assert_allclose(found[query_id], scores, atol=1e-5)


@kinds
def test_the_rows_of_a_batch_change_no_score(model, kind):
  other = run(model, kind, rows=8)
  for query_id, scores in run(model, kind).items():
    np.testing.assert_allclose(other[query_id], scores, atol=1e-5)


@functools.cache
def full_logits():
  """ids_T -> logits_TV of one sequence by itself, all positions."""
  scorer = opened('tiny-decoder', 'query_likelihood')
  network = scorer.network

  @jax.jit
  def fn(ids_1T):
    ones = jnp.ones_like(ids_1T)
    batch = {'tokens_BT': ids_1T, 'segments_BT': ones, 'positions_BT': jnp.cumsum(ones, 1) - 1}
    hidden_TD = network.hidden(scorer.variables, batch)[0]
    return network.module.apply(scorer.variables, hidden_TD, method='logits')

  return fn


def test_likelihood_is_the_mean_log_probability_of_the_querys_tokens():
  scorer = opened('tiny-decoder', 'query_likelihood')
  tokenizer = scorer.prompt.tokenizer
  group = make_group(11, 4)
  [(_, scores)] = scorer([group])
  assert len(set(scores.tolist())) == 4
  for doc, score in zip(group.docs, scores, strict=True):
    before = f'{doc.title} : {doc.summary} :'
    query = tokenizer(f' {group.query}', add_special_tokens=False)['input_ids']
    text = tokenizer(before, add_special_tokens=False)['input_ids']
    ids = [tokenizer.bos_token_id, *text, *query, tokenizer.eos_token_id]
    assert len(ids) <= 40 and len(query) <= 8, 'nothing may be cut here'
    logits = np.asarray(full_logits()(jnp.array([ids + [0] * (40 - len(ids))])), np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    first = 1 + len(text)
    expected = np.mean([logprobs[first + i - 1, token] for i, token in enumerate(query)])
    np.testing.assert_allclose(score, expected, atol=1e-5)


def test_the_sum_of_both_kinds_is_their_sum():
  both, eos, likelihood = (
    run('tiny-decoder', kind)
    for kind in ('score_head+query_likelihood', 'score_head', 'query_likelihood')
  )
  for query_id, scores in both.items():
    np.testing.assert_allclose(scores, eos[query_id] + likelihood[query_id], atol=1e-5)


@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused(broken):
  good = opened('tiny-encoder')
  variables = jax.tree.map(lambda x: x, good.variables)
  kernel = variables['params']['classifier']['kernel']
  variables['params']['classifier']['kernel'] = jnp.full_like(kernel, broken)
  bad = pointwise.PointwiseRanker(good.network, variables, good.prompt, good.mesh, 3, 40)
  with pytest.raises(UserError, match='not finite'):
    list(bad(GROUPS))


@pytest.mark.parametrize('when', ['compile', 'step'])
def test_without_enough_memory_one_line_has_the_estimate_and_what_lowers_it(when):
  class Exhausted(pointwise.PointwiseRanker):
    def lower(self, *arguments):
      self.step = super().lower(*arguments).compile()
      return self

    def compile(self):
      return self if when == 'step' else self()

    def memory_analysis(self):
      return self.step.memory_analysis()

    def __call__(self, *_):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.\nForty lines')

  good = opened('tiny-encoder')
  bad = Exhausted(good.network, good.variables, good.prompt, good.mesh, 3, 40)
  with pytest.raises(UserError) as caught:
    list(bad.parts([(None, GROUPS)]))
  message = str(caught.value)
  assert message.startswith('scoring: out of device memory: needs parameters ')
  assert ('activations ' in message.partition(' in all')[0]) == (when == 'step')
  assert '\n' not in message and 'batch_rows (now 3)' in message and 'fsdp' in message


def test_pairs_are_counted_once_and_padding_is_not():
  scorer = opened('tiny-encoder', rows=5)
  before = scorer.work.scored
  scorer.work._ready = -1e9  # an earlier pass ended long ago
  for _ in scorer(GROUPS):
    pass
  assert scorer.work.scored - before == sum(len(g.docs) for g in GROUPS)
  assert scorer.work.seconds > 0 and scorer.work.idle < 1e8


def test_an_error_for_a_document_that_does_not_fit_names_its_query():
  good = opened('tiny-encoder')
  short = pointwise.PointwiseRanker(good.network, good.variables, good.prompt, good.mesh, 3, 16)
  long = Group('Q9', 'value', (Document('d', 'title', ' '.join(WORDS * 4)),))
  with pytest.raises(UserError, match="'Q9'"):
    list(short([long]))


def scores_of(scorer, parts) -> dict[int, bytes]:
  """The bits of every part's scores."""
  found = {}
  for part, _, scores in scorer.parts(parts):
    found[part] = found.get(part, b'') + scores.tobytes()
  return found


@kinds
def test_a_part_scores_the_same_to_the_last_bit_whatever_comes_before_it(model, kind):
  scorer = opened(model, kind)
  parts = [(i, [make_group(10 * i + j, 5) for j in range(4 + 3 * i)]) for i in range(3)]
  together = scores_of(scorer, parts)
  assert [len(together[i]) for i, _ in parts] == [4 * 5 * len(groups) for i, groups in parts]
  assert scores_of(scorer, parts[1:]) == {i: together[i] for i in (1, 2)}
  assert scores_of(scorer, [parts[2], parts[0]]) == {i: together[i] for i in (0, 2)}


def test_processes_that_tokenise_change_nothing():
  scorer = opened('tiny-encoder')
  parts = [(0, GROUPS), (1, [make_group(20, 300)])]
  alone = scores_of(scorer, parts)
  assert scores_of(dataclasses.replace(scorer, workers=2), parts) == alone


def test_a_batch_is_with_the_device_while_the_next_is_made(monkeypatch):
  scorer, calls = opened('tiny-encoder'), []

  def watch(name):
    method = getattr(pointwise.PointwiseRanker, name)

    def watched(self, *args):
      calls.append(name)
      return method(self, *args)

    monkeypatch.setattr(pointwise.PointwiseRanker, name, watched)

  watch('_begin')
  watch('_end')
  for _ in scorer([make_group(1, 40)]):
    pass
  count = len(calls) // 2
  assert count > 4
  assert calls == ['_begin', *['_begin', '_end'] * (count - 1), '_end']


def test_the_first_scores_of_a_long_part_come_before_it_is_read_to_its_end():
  read = []

  def source():
    for i in range(400):
      read.append(i)
      yield make_group(i, 12)

  found = opened('tiny-encoder')(source())
  next(found)
  assert len(read) < 200
  found.close()


def test_batches_are_full():
  scorer = opened('tiny-encoder', rows=5)
  scorer.work = Work()
  for _ in scorer([make_group(i, 10) for i in range(60)]):
    pass
  assert 0 < scorer.work.padding < 0.07
