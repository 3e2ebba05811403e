"""Queries that share judgements are found, and the pattern of their ids; others are not."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from disranker_jax.evaluation import shared_judgements
from disranker_jax.evaluation.runs import read_qrels

SESSIONS = Path(__file__).parents[2] / 'shared' / 'data' / 'trec-session-2012'
needs_sessions = pytest.mark.skipif(not SESSIONS.exists(), reason=f'{SESSIONS} is not there')


def topic(name, documents=10):
  """Judgements of a topic: grades 0, 1, 2, 0, 1, 2, ... of its documents."""
  return {f'{name}{i}': i % 3 for i in range(documents)}


def test_queries_with_the_same_judgements_are_one_group_whatever_their_ids():
  a, b = topic('a'), topic('b')
  found = shared_judgements.find({'x': a, 'y': b, 'z': dict(reversed(a.items())), 'w': topic('c')})
  assert found.groups == (('x', 'z'),)
  assert not found.pattern
  assert found.clusters(['x', 'y', 'z', 'new']) == ['x', 'y', 'x', 'new']


@pytest.mark.parametrize(
  ('ids', 'pattern'),
  [
    (('12-1', '12-3', '7-1', '7-2', '8'), '^[^-]+'),
    (('t_1', 't_2', 'u_1', 'u_2', 'v_1'), '^[^_]+'),
    (('1.1', '1.2', '2.1', '2.2', '3.1'), '^[^.]+'),
    (('c-12-1', 'c-12-2', 'c-7-1', 'c-7-2', 'c-8-1'), '^.*(?=-)'),
    (('12a', '12b', '7a', '7b', '8a'), r'^\d+'),
    (('cat1', 'cat2', 'dog1', 'dog2', 'cow1'), r'^\D+'),
    (('1', '2', '3', '4', '5'), ''),
    (('1-1', '1-2', '1-3', '1-4', '2-1'), ''),  # one topic's ids, two topics' judgements
  ],
)
def test_the_pattern_that_gives_the_groups_is_suggested(ids, pattern):
  a, b = topic('a'), topic('b')
  found = shared_judgements.find(dict(zip(ids, (a, a, b, b, topic('c')), strict=True)))
  assert found.groups == (ids[:2], ids[2:4])
  assert found.pattern == pattern


def test_four_of_five_judgements_are_enough_in_all_and_in_the_relevant_documents():
  nine = topic('a', 9)
  # 9 in common of 10: .9 of all, 6 of 6 or 7 relevant ones.
  assert shared_judgements.find({'x': nine, 'y': nine | {'new': 0}}).groups
  assert shared_judgements.find({'x': nine, 'y': nine | {'new': 1}}).groups
  # A changed grade: 8 in common of 10 different ones, 5 of 7 relevant ones.
  assert not shared_judgements.find({'x': nine, 'y': nine | {'a1': 2}}).groups
  # 5 in common of 9.
  assert not shared_judgements.find({'x': nine, 'y': dict(list(nine.items())[:5])}).groups


def test_many_judgements_as_not_relevant_in_common_are_no_topic():
  """Every document of a small collection is judged for every query."""
  every = {f'd{i}': 0 for i in range(100)}
  qrels = {f'q{i}': every | {f'd{i}': 1, f'd{i + 1}': 1} for i in range(50)}
  assert shared_judgements.find(qrels).groups == ()


def test_one_or_two_judgements_in_common_may_be_chance():
  assert shared_judgements.find({'x': {'a': 1, 'b': 0}, 'y': {'a': 1, 'b': 0}}).groups == ()
  three = {'a': 1, 'b': 0, 'c': 0}
  assert shared_judgements.find({'x': three, 'y': three}).groups == (('x', 'y'),)


def test_similar_pairs_are_those_of_a_plain_double_loop():
  rng = np.random.default_rng(0)
  base = [{f'd{d}': int(rng.integers(3)) for d in rng.choice(40, 12, False)} for _ in range(12)]
  qrels = {}
  for i in range(120):
    docs = list(base[rng.integers(12)].items())
    keep = rng.random(len(docs)) > 0.06
    qrels[f'q{i}'] = dict(pair for pair, is_kept in zip(docs, keep, strict=True) if is_kept)
  found = shared_judgements.find(qrels)
  clusters = dict(zip(qrels, found.clusters(qrels), strict=True))

  def alike(a, b, least=0):
    a, b = ({pair for pair in each.items() if pair[1] >= least} for each in (a, b))
    return len(a & b) >= 0.8 * len(a | b) > 0

  # Transitive closure by relabelling until nothing changes.
  expected = {query: query for query in qrels}
  pairs = [
    (x, y) for x in qrels for y in qrels
    if alike(qrels[x], qrels[y]) and (qrels[x] == qrels[y] or alike(qrels[x], qrels[y], 1))
  ]  # fmt: skip
  while changed := [(x, y) for x, y in pairs if expected[x] != expected[y]]:
    for x, y in changed:
      expected[x] = expected[y] = min(expected[x], expected[y])
  together = [(x, y) for x in qrels for y in qrels]
  assert len(set(expected.values())) < 60
  assert all((clusters[x] == clusters[y]) == (expected[x] == expected[y]) for x, y in together)


def test_a_pattern_that_separates_queries_of_one_group_is_counted():
  a, b = topic('a'), topic('b')
  found = shared_judgements.find({'1-1': a, '1-2': a, '2-1': b, '3-1': b, '4-1': topic('c')})
  queries = ['1-1', '1-2', '2-1', '3-1', '4-1']
  assert found.split_by(['1', '1', '2', '3', '4'], queries) == 1
  assert found.split_by(queries, queries) == 2
  assert found.split_by(['x'] * 5, queries) == 0
  assert found.split_by(['1', '2', '3'], ['1-1', '2-1', '4-1']) == 0  # one query of each


def test_related_queries_with_judgements_of_their_own_documents_are_found_by_their_ids():
  """Query i of a topic has judgements of 5 of its 20 documents, from the (2 i)-th on."""
  qrels = {
    f't{t}-{i}': {f'{t}:{d}': 1 + d % 2 for d in range(2 * i, 2 * i + 5)}
    for t in range(8)
    for i in range(4)
  }
  assert shared_judgements.find(qrels).groups == ()
  found = shared_judgements.related(qrels)
  assert found == ('^[^-]+', 1.0, 0.0)
  # The same judgements with ids that say nothing, and ids that are not of the judgements.
  assert shared_judgements.related({f'q{i}': docs for i, docs in enumerate(qrels.values())}) is None
  mixed = [qrels[f't{t}-{i}'] for i in range(4) for t in range(8)]
  assert shared_judgements.related(dict(zip(qrels, mixed, strict=True))) is None


@needs_sessions
def test_topics_of_the_session_track_are_found():
  qrels = read_qrels(SESSIONS / 'qrels.txt')
  found = shared_judgements.find(qrels)
  topics = {query.split('-')[0] for query in qrels}
  assert found.pattern == '^[^-]+'
  assert len(set(found.clusters(qrels))) == len(topics) == 48


@needs_sessions
def test_sessions_judged_by_what_each_query_showed_are_found_by_their_ids():
  qrels = {}
  with gzip.open(SESSIONS / 'impressions.jsonl.gz', 'rt') as f:
    for row in map(json.loads, f):
      if row['grade'] is not None:
        qrels.setdefault(row['query_id'], {})[row['doc_id']] = row['grade']
  assert shared_judgements.find(qrels).pattern == ''
  assert shared_judgements.related(qrels).pattern == '^[^-]+'
