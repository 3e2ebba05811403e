"""What was retrieved, on disk and back."""

import json

import pytest

from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.generative import retrieved
from disranker_jax.generative.records import Found, Match, Ngram
from disranker_jax.rankers.shards import Shards

NGRAM = Ngram('title', (5, 6, 2), -1.5, 10, 13)
PAGE = Found(
  7, 320.5, (Match(NGRAM, 300.0, 1.0), Match(Ngram('body', (9,), -2.25, 0, 4), 41.0, 0.5))
)
ITEMS = (('q1', [('a', PAGE), ('b', Found(8, 1.0, ()))]), ('q2', []), ('q3', [('a', PAGE)]))


def opened(tmp_path, made=None):
  return Shards(tmp_path, len(ITEMS), made or {'model': 'm'}, retrieved.FORMAT)


def test_pages_and_matches_are_read_as_they_were_written(tmp_path):
  shards = opened(tmp_path)
  shards.write(range(0, 2), ITEMS[:2])
  shards.write(range(2, 3), ITEMS[2:])
  found = list(retrieved.read(shards))
  assert [one.query_id for one in found] == ['q1', 'q2', 'q3']
  assert [one.pages for one in found] == [tuple(pages) for _, pages in ITEMS]
  assert found[0].pages[0][1].matches[0].ngram.count == 3


def test_a_shard_of_another_retriever_is_refused_and_a_broken_one_made_again(tmp_path, capsys):
  shards = opened(tmp_path)
  shards.write(range(0, 3), ITEMS)
  with pytest.raises(UserError, match='made with another model; do the pages again'):
    opened(tmp_path, {'model': 'other'}).missing()
  [file] = tmp_path.glob('*.parquet')
  file.write_bytes(file.read_bytes()[:-1] + b'x')
  assert shards.missing() == [range(0, 3)]
  assert 'its pages are computed again' in capsys.readouterr().err


def test_queries_without_pages_stay_apart(tmp_path):
  shards = Shards(tmp_path, 2, {'model': 'm'}, retrieved.FORMAT)
  shards.write(range(0, 2), [('q1', []), ('q2', [])])
  assert [one.query_id for one in retrieved.read(shards)] == ['q1', 'q2']
  assert json.loads(next(tmp_path.glob('_*.json')).read_text())['rows'] == 2


def test_relevant_pages_that_were_not_found_come_last_if_the_collection_has_them():
  labels = {'a': 0, 'lost': 1, 'elsewhere': 2, 'other': 0}
  group = Group('q1', 'q', tuple(Document(d, '', 'text', label) for d, label in labels.items()))
  one = retrieved.Retrieved('q1', (('a', PAGE), ('new', PAGE)))
  found = retrieved.example(group, one, {'a': 0.5}, {'a', 'new', 'lost', 'other'})
  assert [page.doc_id for page in found.pages] == ['a', 'new', 'lost']
  assert [page.label for page in found.pages] == [0, UNJUDGED, 1]
  assert found.pages[0].target == 0.5 and not found.pages[2].matches
