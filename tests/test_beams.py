"""Constrained beam search against enumeration and the plain forward pass."""

import functools

import hf_reference as reference
import index_texts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from index_texts import END, QUERY, TITLE, Page

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.generative.beams import Searcher
from disranker_jax.generative.decoding import View
from disranker_jax.models.network import Network

BODY, TITLES = View('body', None, 3, 4), View('title', TITLE, 4, 4)
QUERIES = View('query', QUERY, 4, 4)
PROMPTS = reference.sequences((5, 2, 9))


def mesh(**sizes):
  return sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1} | sizes, jax.devices()[:1])


def searcher(
  pages, views, kind='mistral', *, window=512, rows=2, prompt_len=9, depth=16, **options
):
  network, variables = reference.network(kind, 6.0, head='lm', **options)
  index = index_texts.index(pages, window, depth)
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
