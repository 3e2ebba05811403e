"""Pages by n-grams: weights, candidates, overlaps, coverage, single tokens."""

import types

import numpy as np
import pytest

from disranker_jax.generative import evidence
from disranker_jax.generative.evidence import Evidence, weight
from disranker_jax.generative.records import Ngram
from tests.suffix_reference import PlainSuffixes

VOCAB, END = 7, 0
TITLE, QUERY = VOCAB, VOCAB + 1
SETTINGS = {
  'smoothing': 5.0, 'exponent': 2.0, 'coverage': 0.8, 'unigrams': 1000, 'query_bonus': 14.0,
  'query_form': 'capped', 'most_count': 1500,
}  # fmt: skip


def collection(pages):
  """(suffixes, where pages start) of (title, body, pseudo-query) triples."""
  text, starts = [], []
  for title, body, query in pages:
    starts.append(len(text))
    text += [TITLE, *title, END, *body, END, QUERY, *query, END]
  return PlainSuffixes(text, VOCAB + 2), np.array(starts)


def anchored(view, tokens):
  return {'title': (TITLE, *tokens), 'query': (QUERY, *tokens)}.get(view, tuple(tokens))


def ngram(suffixes, view, tokens, logprob) -> Ngram:
  return Ngram(view, tuple(tokens), logprob, *suffixes.interval(anchored(view, tokens)))


def finder(suffixes, starts, **changes):
  return Evidence(suffixes, starts, types.SimpleNamespace(**(SETTINGS | changes)))


# log p, count, weight in a collection of 2.2e9 tokens.
TABLE = [
  (-2, 1, 319.2), (-2, 1000, 162.4), (-5, 1, 216.9), (-5, 1000, 92.3), (-5, 1e6, 7.3),
  (-10, 1, 94.5), (-15, 1, 22.3), (-15, 1000, 0.0), (-10, 1e6, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(('logprob', 'count', 'expected'), TABLE)
def test_weights_of_the_published_defaults(logprob, count, expected):
  assert weight(logprob, count, 2_200_000_000) == pytest.approx(expected, abs=0.05)


def test_weights_are_finite_everywhere():
  logprobs = np.array([0.0, -1e-12, -1.0, -80.0, -np.inf])
  for count in (1, 100, 1000):
    found = weight(logprobs, count, 1000)
    assert np.isfinite(found).all() and (np.diff(found) <= 0).all()
  assert weight(-np.inf, 1, 1000) == 0
  assert weight(0.0, 1000, 1000) == 0  # it is all that the collection has


def reference(text, starts, ngrams, unigrams=(), **changes) -> dict:
  """{page: (score, [(view, tokens, coverage)])} by loops over pages, places and tokens."""
  c = SETTINGS | changes
  weights = {}
  for view, tokens, logprob in ngrams:
    found = occurrences(text, anchored(view, tokens))
    if view == 'query' and c['query_form'] == 'mean':
      logprob *= 4 / len(tokens)
    elif view == 'query' and c['query_bonus']:
      logprob = min(logprob + c['query_bonus'], -1.0)
    w = weight(logprob, len(found), len(text), exponent=c['exponent'])
    if found and w > 0:
      offset = 0 if view == 'body' else 1
      weights[view, tokens] = w, [at + offset for at in found]
  ordered = sorted(weights.items(), key=lambda item: (-item[1][0], item[0][1], item[0][0]))
  ends = [*starts[1:], len(text)]
  results = {}
  for page, (start, end) in enumerate(zip(starts, ends, strict=True)):
    rare = [
      places for _, (_, places) in ordered
      if len(places) <= c['most_count'] and any(start <= at < end for at in places)
    ]  # fmt: skip
    if not rare:
      continue
    taken, seen, score, matches = set(), set(), 0.0, []
    for (view, tokens), (w, places) in ordered:
      free = 0
      for at in places:
        span = range(at, at + len(tokens))
        if start <= at < end and not taken & set(span):
          taken |= set(span)
          free += 1
      if free:
        new = len(set(tokens) - seen) / len(set(tokens))
        share = 1 - c['coverage'] + c['coverage'] * new
        score += w * share
        matches.append((view, tokens, round(share, 9)))
        seen |= set(tokens)
    left = {text[at] for at in range(start, end) if at not in taken}
    for token, logprob in unigrams:
      if token in left:
        w = weight(logprob, occurrence_count(text, token), len(text), exponent=1.0)
        score += w * (1 - c['coverage'] if token in seen else 1.0)
    results[page] = score, matches
  return results


def occurrences(text, tokens):
  n = len(tokens)
  return [i for i in range(len(text) - n + 1) if tuple(text[i : i + n]) == tuple(tokens)]


def occurrence_count(text, token):
  return sum(t == token for t in text)


def random_case(seed):
  rng = np.random.default_rng(seed)

  def words(least, most):
    return rng.integers(1, VOCAB, rng.integers(least, most)).tolist()

  suffixes, starts = collection(
    [(words(1, 4), words(3, 12), words(2, 6)) for _ in range(rng.integers(1, 9))]
  )
  text, grams = suffixes.text_N.tolist(), {}
  for _ in range(30):
    at = int(rng.integers(len(text)))
    if text[at] in (TITLE, QUERY):
      view, first = ('title', 'query')[text[at] - TITLE], at + 1
      tokens = tuple(text[first : text.index(END, first) + 1])
    elif text[at] != END:
      view, tokens = 'body', tuple(text[at : min(at + rng.integers(1, 4), text.index(END, at))])
    else:
      continue
    grams[view, tokens] = float(-rng.exponential(4))
  ngrams = [(*key, logprob) for key, logprob in grams.items()]
  unigrams = [(t, float(-rng.exponential(2))) for t in range(1, VOCAB) if rng.random() < 0.6]
  return suffixes, starts, ngrams, unigrams


@pytest.mark.parametrize(
  'changes', [{}, {'most_count': 4}, {'coverage': 0.3, 'query_bonus': 0.0}, {'query_form': 'mean'}]
)
def test_pages_as_by_loops(changes):
  for seed in range(40):
    suffixes, starts, ngrams, unigrams = random_case(seed)
    expected = reference(suffixes.text_N.tolist(), starts, ngrams, unigrams, **changes)
    given = [ngram(suffixes, *one) for one in ngrams]
    found = finder(suffixes, starts, **changes)(given, unigrams)
    if not expected:  # no n-gram has a weight: the pages are in the order of log p
      assert all(f.matches[0].weight == 0 and f.score == f.matches[0].ngram.logprob for f in found)
      continue
    assert {f.page for f in found} == set(expected)
    assert [f.page for f in found] == [
      f.page for f in sorted(found, key=lambda f: (-f.score, f.page))
    ]
    for f in found:
      score, matches = expected[f.page]
      assert f.score == pytest.approx(score, rel=1e-9)
      assert [(m.ngram.view, m.ngram.tokens, round(m.coverage, 9)) for m in f.matches] == matches


def test_the_order_of_ngrams_and_repeated_ones_change_nothing():
  suffixes, starts, ngrams, unigrams = random_case(3)
  given = [ngram(suffixes, *one) for one in ngrams]
  find = finder(suffixes, starts)
  worse = [Ngram(g.view, g.tokens, g.logprob - 1, g.lo, g.hi) for g in given[:4]]
  expected = find(given, unigrams)
  assert expected == find(worse + given[::-1] + worse, unigrams[::-1])


def test_single_tokens_that_are_given_twice_have_the_better_logprob_and_take_one_place():
  counted = 0
  for seed in range(20):
    suffixes, starts, ngrams, unigrams = random_case(seed)
    given = [ngram(suffixes, *one) for one in ngrams]
    worse = [(token, logprob - 3) for token, logprob in unigrams]
    for most in (1000, 2):
      find = finder(suffixes, starts, unigrams=most)
      assert find(given, unigrams + worse) == find(given, unigrams) == find(given, worse + unigrams)
      counted += find(given, unigrams) != find(given, worse)
  assert counted > 10  # the better ones make another score


def test_only_the_best_candidates_are_scored_in_full(monkeypatch):
  for seed in range(20):
    suffixes, starts, ngrams, _ = random_case(seed)
    given = [ngram(suffixes, *one) for one in ngrams]
    every = finder(suffixes, starts, coverage=0.0)(given)
    monkeypatch.setattr(evidence, 'PAGES', 2)
    some = finder(suffixes, starts, coverage=0.0)(given)
    monkeypatch.undo()
    assert some == every[:2]  # without coverage and single tokens the two scores are equal


def test_a_page_that_holds_only_single_tokens_is_not_found():
  suffixes, starts = collection([((1,), (2, 3), (4,)), ((5,), (2, 6), (4,))])
  found = finder(suffixes, starts)([ngram(suffixes, 'title', (5, END), -0.1)], [(2, -0.1)])
  assert [f.page for f in found] == [1]
  assert found[0].score > found[0].matches[0].weight


def test_an_anchored_title_is_not_found_in_a_body():
  suffixes, starts = collection([((1, 2), (3,), (4,)), ((5,), (1, 2), (4,))])
  found = finder(suffixes, starts)([ngram(suffixes, 'title', (1, 2, END), -1.0)])
  assert [f.page for f in found] == [0]


def test_nothing_found():
  suffixes, starts = collection([((1,), (2, 3), (4,))])
  find = finder(suffixes, starts)
  assert find([]) == [] and find([], [(2, -0.1)]) == []
  assert find([ngram(suffixes, 'body', (2,), -np.inf)]) == []
  assert find([ngram(suffixes, 'body', (6, 6), -0.1)]) == []  # it does not occur


def test_a_query_with_equal_scores_takes_the_first_pages():
  suffixes, starts = collection([((1,), (2, 3), (4,))] * 5)
  found = finder(suffixes, starts)([ngram(suffixes, 'body', (2, 3), -0.5)], hits=3)
  assert [f.page for f in found] == [0, 1, 2]
