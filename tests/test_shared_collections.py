"""The collections beside the project, where they are: their counts, splits and ranks."""

import collections
import gzip
import pathlib

import pytest

from disranker_jax.data.records import UNJUDGED
from disranker_jax.data.sources import read

SHARED = pathlib.Path(__file__).parents[1].parent / 'shared' / 'data'


def shared(name):
  path = SHARED / name
  if not path.is_dir():
    pytest.skip(
      f'needs the collection {name} in ../shared/data, which is not part of the repository'
    )
  return f'trec:{path}'


class TestSharedCollections:
  @pytest.mark.parametrize(
    ('name', 'queries', 'labels'),
    [
      ('cranfield', 225, {1: 363, 2: 734, 3: 387, 4: 128}),
      ('chorus-ecommerce', 135, {0: 1853, 1: 238, 2: 105, 3: 1472}),
      ('trec-session-2012', 187, {0: 5300, 1: 1790, 2: 1020, 3: 346, 4: 8}),
    ],
  )
  def test_counts_of_the_readme(self, name, queries, labels):
    for kind, options in (('judgements', ''), ('test', '?pool=judged'), ('test', '')):
      groups = list(read(shared(name) + options, kind, depth=100))
      found = collections.Counter(doc.label for group in groups for doc in group.docs)
      del found[UNJUDGED]
      assert (len(groups), dict(found)) == (queries, labels)

  @pytest.mark.slow
  def test_candidates_of_nfcorpus_keep_clear_of_its_test_queries(self):
    address = shared('nfcorpus')
    test = {group.query_id for group in read(address, 'test', depth=10)}
    train = list(read(f'{address}?exclude=qrels.txt,qrels.dev.txt', 'candidates', depth=10))
    assert len(test) == 323 and len(train) > 2400
    assert not test & {group.query_id for group in train}
    assert max(len(group.docs) for group in train) == 10

  def test_ranks_are_those_of_the_run(self):
    address = shared('cranfield')
    run = gzip.decompress((SHARED / 'cranfield' / 'bm25.run.gz').read_bytes()).decode()
    ranks = {(c[0], c[2]): int(c[3]) for c in map(str.split, run.splitlines())}
    for group in read(address, 'candidates', depth=100):
      assert all(doc.rank == ranks[group.query_id, doc.doc_id] for doc in group.docs)

  def test_clicks(self):
    assert len(list(read(shared('trec-session-2012'), 'clicks'))) == 259
