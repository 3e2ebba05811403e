"""Constrained beam search against enumeration and the plain forward pass."""

import dataclasses
import functools

import hf_reference as reference
import index_texts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from index_texts import END, QUERY, TITLE, Page
from jax.extend.core import jaxprs_in_params

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.generative import decoding
from disranker_jax.generative.beams import Searcher
from disranker_jax.generative.decoding import View
from disranker_jax.generative.suffixes import Suffixes
from disranker_jax.models import generate

BODY, TITLES = View('body', None, 3, 4), View('title', TITLE, 4, 4)
QUERIES = View('query', QUERY, 4, 4)
PROMPTS = reference.sequences((5, 2, 9))


def mesh(**sizes):
  return sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1} | sizes, jax.devices()[:1])


def searcher(pages, views, kind='mistral', *, window=512, rows=2, prompt_len=9, parts=0, **options):
  network, variables = reference.network(kind, 6.0, head='lm', **options)
  index = index_texts.index(pages, window)
  if parts:
    index = index.split(index_texts.text(pages)[1], parts)
  variables = sharding.put(variables, mesh())
  return Searcher(network, variables, index, views, END, mesh(), rows, prompt_len)


@functools.partial(jax.jit, static_argnums=0)
def _every_logprob(network, variables, batch):
  hidden_BTD = network.hidden(variables, batch)
  flat_PD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
  logits_PV = network.module.apply(variables, flat_PD, method='logits')
  return jax.nn.log_softmax(logits_PV, axis=-1).reshape(*hidden_BTD.shape[:2], -1)


def teacher_forced(search, prompt, ngrams):
  """{tokens: log p(tokens | prompt)} by the plain forward pass."""
  out, ngrams = {}, list(ngrams)
  for begin in range(0, len(ngrams), 32):
    some = ngrams[begin : begin + 32]
    filled = [[*prompt, *tokens] for tokens in some] + [[0]] * (32 - len(some))
    logprobs = _every_logprob(search.network, search.variables, reference.rows(filled, length=16))
    for tokens, row in zip(some, np.asarray(logprobs), strict=False):
      at = np.arange(len(prompt) - 1, len(prompt) + len(tokens) - 1)
      out[tokens] = float(row[at, list(tokens)].sum())
  return out


def as_dict(written):
  out = {ngram.tokens: ngram for ngram in written.ngrams}
  assert len(out) == len(written.ngrams), 'each n-gram once'
  return out


def assert_same(written, others, tolerance=1e-5):
  for one, other in zip(written, others, strict=True):
    one, other = as_dict(one), as_dict(other)
    assert {t: (n.lo, n.hi) for t, n in one.items()} == {t: (n.lo, n.hi) for t, n in other.items()}
    for tokens, ngram in one.items():
      assert ngram.logprob == pytest.approx(other[tokens].logprob, abs=tolerance)


@pytest.mark.parametrize('window', [1, 4, 512])
def test_enough_beams_write_every_ngram_of_the_collection_with_its_count_and_logprob(window):
  pages = index_texts.pages(6, letters=4)
  search = searcher(pages, [View('body', None, 3, 64)], window=window)
  counts, whole = index_texts.body_ngrams(pages, 3), index_texts.index(pages)
  for prompt, written in zip(PROMPTS, search('body', PROMPTS), strict=True):
    found = as_dict(written)
    assert {tokens: ngram.count for tokens, ngram in found.items()} == counts
    logprobs = teacher_forced(search, prompt, found)
    for tokens, ngram in found.items():
      assert ngram.logprob == pytest.approx(logprobs[tokens], abs=1e-4)
      assert whole.interval(tokens) == (ngram.lo, ngram.hi)
    assert written.ngrams == sorted(written.ngrams, key=lambda n: -n.logprob)


@pytest.mark.parametrize('window', [1, 3, 512])
def test_enough_beams_write_every_title_and_pseudo_query_and_nothing_else(window):
  pages = index_texts.pages(7, seed=3, letters=3, longest=5)
  views = [View('title', TITLE, 5, 40), View('query', QUERY, 4, 40)]
  search, whole = searcher(pages, views, window=window), index_texts.index(pages)
  expected = {
    'title': index_texts.ended([page.title for page in pages], 5),
    'query': index_texts.ended([query for page in pages for query in page.queries], 4),
  }
  assert len(expected['query']) < len({q for page in pages for q in page.queries}), (
    'one is too long'
  )
  for view, anchor in (('title', TITLE), ('query', QUERY)):
    for prompt, written in zip(PROMPTS, search(view, PROMPTS), strict=True):
      found = as_dict(written)
      assert {tokens: ngram.count for tokens, ngram in found.items()} == expected[view]
      logprobs = teacher_forced(search, prompt, found)
      for tokens, ngram in found.items():
        assert ngram.view == view
        assert whole.interval((anchor, *tokens)) == (ngram.lo, ngram.hi)
        assert ngram.logprob == pytest.approx(logprobs[tokens], abs=1e-4)


# One of each type of decoder, in fp32 and the other precisions.
KINDS = [
  'mistral',
  'llama',
  'local_global',
  'gemma3',
  'smollm3',
  'ministral3',
  'phi3',
  'qwen3',
  'gemma',
]


@pytest.mark.parametrize('kind', KINDS)
def test_few_beams_find_what_a_beam_search_by_the_plain_forward_pass_finds(kind):
  pages = index_texts.pages(12, seed=1)
  search = searcher(pages, [BODY], kind, window=5)
  for prompt, written in zip(PROMPTS, search('body', PROMPTS), strict=True):
    expected = plain_search(search, pages, prompt)
    found = as_dict(written)
    assert set(found) == set(expected)
    for tokens, ngram in found.items():
      assert ngram.logprob == pytest.approx(expected[tokens], abs=1e-4)


def plain_search(search, pages, prompt):
  """{tokens: logprob} of all beams, without a cache or an index."""
  counts, frontier, out = index_texts.body_ngrams(pages, BODY.length), {(): 0.0}, {}
  for length in range(1, BODY.length + 1):
    longer = [n for n in counts if len(n) == length and n[:-1] in frontier]
    scores = teacher_forced(search, prompt, longer)
    best = sorted(longer, key=lambda n: -scores[n])[: BODY.beams]
    frontier = {n: scores[n] for n in best}
    out |= frontier
  return out


def test_lora_counts_and_bf16_scores_are_those_of_the_forward_pass_in_bf16():
  pages = index_texts.pages(6)
  search = searcher(pages, [BODY], precision='bfloat16', lora_rank=2)
  rng = np.random.default_rng(0)
  lora = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), search.variables['lora']
  )
  plain = search('body', PROMPTS[:1])
  search.variables = search.variables | {'lora': lora}
  [written] = search('body', PROMPTS[:1])
  assert plain[0].ngrams[0].logprob != pytest.approx(written.ngrams[0].logprob, abs=0.1)
  expected = teacher_forced(search, PROMPTS[0], as_dict(written))
  for ngram in written.ngrams:
    assert ngram.logprob == pytest.approx(expected[ngram.tokens], rel=0.02, abs=0.1)


def test_a_prompt_gets_what_it_gets_alone_in_any_batch_with_any_padding():
  pages = index_texts.pages(12, seed=2)
  search = searcher(pages, [BODY, TITLES])
  for view in ('body', 'title'):
    together = search(view, PROMPTS)
    assert together == [search(view, [prompt])[0] for prompt in PROMPTS]
    assert together == search(view, PROMPTS[::-1])[::-1]
  longer = searcher(pages, [BODY], rows=4, prompt_len=30)
  assert_same(search('body', PROMPTS), longer('body', PROMPTS), 1e-4)


def test_neither_the_window_nor_parts_change_results():
  pages = index_texts.pages(12, seed=2)
  views = [dataclasses.replace(view, unigrams=4) for view in (BODY, TITLES)]
  search = searcher(pages, views)
  others = [searcher(pages, views, window=2), searcher(pages, views, window=3, parts=3)]
  for other in others:
    for view in ('body', 'title'):
      one, two = search(view, PROMPTS), other(view, PROMPTS)
      assert_same(one, two)
      for a, b in zip(one, two, strict=True):
        assert [t for t, _ in a.unigrams] == [t for t, _ in b.unigrams]
        assert len(a.unigrams) == (4 if view == 'body' else 0)  # those of a text alone


def test_unigrams_are_the_likeliest_tokens_of_the_collection():
  pages = index_texts.pages(5, letters=6)
  search = searcher(pages, [View('body', None, 1, 2, unigrams=50)])
  [written] = search('body', PROMPTS[:1])
  logprobs = teacher_forced(search, PROMPTS[0], index_texts.body_ngrams(pages, 1))
  expected = sorted(((t, p) for (t,), p in logprobs.items()), key=lambda pair: -pair[1])
  assert [token for token, _ in written.unigrams] == [token for token, _ in expected]
  np.testing.assert_allclose([p for _, p in written.unigrams], [p for _, p in expected], atol=1e-4)
  assert [n.tokens for n in written.ngrams] == [(token,) for token, _ in expected[:2]]


EQUAL = [Page((5, 6), (9, 9)), Page((5, 6), (8,)), Page((5, 6, 7), (5, 6)), Page((5,), (7, 5))]


def test_titles_that_begin_alike_or_are_equal_are_told_apart_from_texts():
  search = searcher(EQUAL, [View('title', TITLE, 4, 3)])
  for written in search('title', PROMPTS[:1]):
    counts = {ngram.tokens: ngram.count for ngram in written.ngrams}
    assert counts == {(5, 6, END): 2, (5, 6, 7, END): 1, (5, END): 1}
    [twice] = [ngram for ngram in written.ngrams if ngram.count == 2]
    positions = search_positions(twice)
    assert positions == [0, 7], 'where the anchors of the two titles are'


def search_positions(ngram):
  return index_texts.index(EQUAL).positions(ngram.lo, ngram.hi).tolist()


def test_a_title_that_ends_leaves_its_place_to_longer_ones():
  """With one beam the title that ends at once must not be the end of the search."""
  search = searcher([Page((5, 6), (9,)), Page((5,), (9,))], [View('title', TITLE, 3, 1)])
  [written] = search('title', PROMPTS[:1])
  assert set(as_dict(written)) == {(5, END), (5, 6, END)}


def test_titles_that_are_too_long_are_no_results():
  search = searcher([Page((5, 6, 7), (9,)), Page((8,), (9,))], [View('title', TITLE, 3, 4)])
  [written] = search('title', PROMPTS[:1])
  assert [ngram.tokens for ngram in written.ngrams] == [(8, END)]


def test_a_collection_of_one_page_has_fewer_ngrams_than_beams():
  search = searcher([Page((5,), (6, 7))], [View('body', None, 4, 30, unigrams=9), TITLES])
  [body] = search('body', PROMPTS[:1])
  assert set(as_dict(body)) == {(5,), (6,), (7,), (6, 7)}
  assert {token for token, _ in body.unigrams} == {5, 6, 7}
  assert [ngram.tokens for ngram in search('title', PROMPTS[:1])[0].ngrams] == [(5, END)]


def test_equal_scores_have_a_fixed_order():
  pages = index_texts.pages(6)
  search = searcher(pages, [BODY])
  kernel = search.variables['params']['lm_head']['kernel']
  params = search.variables['params'] | {'lm_head': {'kernel': np.zeros_like(kernel)}}
  search.variables = search.variables | {'params': params}
  [written] = search('body', PROMPTS[:1])
  best = [n.tokens for n in written.ngrams if len(n.tokens) == 1]
  assert best == sorted(n for n in index_texts.body_ngrams(pages, 1))[: BODY.beams]
  assert written.ngrams[0].logprob == pytest.approx(-np.log(index_texts.VOCAB))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'views': [View('query', QUERY, 4, 4)]}, "view 'query': no page of the collection has one"),
    ({'views': [View('title', TITLE, 16, 4)]}, "view 'title': n-grams of 17 tokens, .* by 16"),
    ({'views': [View('body', None, 3, 0)]}, 'beams=0'),
    ({'prompt_len': 10**6}, 'prompts of 1000000 tokens with 3 written ones'),
    ({'end': 61}, 'end=61 is not a token'),
    ({'rows': 0}, '0 queries at a time'),
    ({'suffixes': Suffixes.build(np.array([3, 99]), 100)}, 'a vocabulary of 98, and the model 61'),
  ],
)
def test_what_does_not_go_together_is_refused_before_a_search(changes, message):
  network, variables = reference.network('mistral', 6.0, head='lm')
  arguments = {
    'suffixes': index_texts.index([Page((5,), (6, 7))]), 'views': [BODY], 'end': END,
    'mesh': mesh(), 'rows': 2, 'prompt_len': 9,
  }  # fmt: skip
  with pytest.raises(UserError, match=message):
    Searcher(network, variables, **arguments | changes)


def test_an_index_that_does_not_fit_the_device_is_told_with_the_key_that_divides_it(monkeypatch):
  place = sharding.place

  def full(x, where):
    if isinstance(x, np.ndarray) and x.dtype == np.int32:  # of the index, no parameters
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.\nForty lines')
    return place(x, where)

  monkeypatch.setattr(sharding, 'place', full)
  with pytest.raises(
    UserError, match=r'the index: out of device memory: .*index \d.* config\.mesh\.model'
  ):
    searcher(EQUAL, [BODY])


def test_a_network_that_cannot_write_is_refused():
  network, variables = reference.network('mistral', 6.0)
  with pytest.raises(UserError, match="head='lm'"):
    Searcher(network, variables, index_texts.index(EQUAL), [BODY], END, mesh(), 2, 9)


def test_prompts_that_do_not_fit_and_broken_models_are_refused():
  search = searcher(EQUAL, [BODY])
  with pytest.raises(UserError, match='prompt 1 has 0 tokens'):
    search('body', [[3], []])
  with pytest.raises(UserError, match='prompt 0 has 10 tokens, and the search is made for 1 to 9'):
    search('body', [[3] * 10])
  assert search('body', []) == []
  search.variables = jax.tree.map(lambda x: np.full_like(x, np.nan), search.variables)
  with pytest.raises(UserError, match='log-probabilities are not numbers'):
    search('body', PROMPTS[:1])


def test_the_bytes_on_a_device_are_those_of_the_arrays():
  search = searcher(EQUAL, [BODY, TITLES])
  needs = search.needs()
  assert needs['index'] == sum(x.nbytes for x in search.index)
  c = search.network.config
  slots = 16 + 4 - 1  # a padded prompt and a title
  assert needs['cache'] == 2 * 4 * slots * 2 * c.layers * c.kv_heads * c.head_dim * 4


def equations(jaxpr):
  """All equations of a traced program, those of loops, branches and calls included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner)


def traced(search, view):
  """What the device computes in a search: every step, from the prompts' cache on."""
  plan, B = search.plans[view], search.rows
  tokens_BT, segments_BT = generate.left_pad([[3]] * B, plan.prompt)
  with jax.set_mesh(search.mesh):
    last_RD, caches = jax.eval_shape(
      functools.partial(generate.prefill, search.network, plan.slots, plan.view.beams),
      search.variables, tokens_BT, segments_BT,
    )  # fmt: skip
    segments_RS = generate.with_room(np.repeat(segments_BT, plan.view.beams, axis=0), plan.slots)
    last_BD = jax.ShapeDtypeStruct((B, last_RD.shape[-1]), last_RD.dtype)
    return decoding.search.trace(
      search.network, plan, search.variables, search.index, search.starts[view], caches, last_BD,
      segments_RS,
    ).jaxpr.jaxpr  # fmt: skip


def test_no_step_leaves_the_device_or_has_the_vocabulary_for_every_place():
  """The largest array of the vocabulary is that of a step's logits, or of a table of the model."""
  B, M, L, V = 8, 4, 13, index_texts.VOCAB
  views = [View('body', None, L, M, unigrams=5), View('title', TITLE, L, M)]
  search = searcher(index_texts.pages(12, seed=2), views, window=3, rows=B)
  most = max(B * M, search.network.config.width)
  assert most < B * (L - 1)  # an array for every place would be larger
  for view in ('body', 'title'):
    found = list(equations(traced(search, view)))
    names = {equation.primitive.name for equation in found}
    assert {'scan', 'cond', 'dot_general'} <= names  # the walk sees loops and branches
    assert not [n for n in names if 'callback' in n or n in ('infeed', 'outfeed', 'debug_print')]
    shapes = [v.aval.shape for e in found for v in (*e.invars, *e.outvars)]
    with_words = [shape for shape in shapes if V in shape]
    assert any(shape[-1] == V and np.prod(shape) == B * M * V for shape in with_words)
    assert not [shape for shape in with_words if np.prod(shape) > most * V or L in shape]


def test_the_walk_sees_callbacks_and_large_arrays_in_loops():
  def step(carry, _):
    jax.debug.callback(lambda x: None, carry[0, 0])
    return jax.lax.cond(carry[0, 0] > 0, lambda x: x + 1, lambda x: x * jnp.ones((2, 3)), carry), 0

  program = jax.make_jaxpr(lambda x: jax.jit(lambda x: jax.lax.scan(step, x, length=2))(x))
  found = list(equations(program(jnp.zeros((2, 3))).jaxpr))
  assert 'debug_callback' in {equation.primitive.name for equation in found}
  assert any(e.primitive.name == 'mul' and e.outvars[0].aval.shape == (2, 3) for e in found)
