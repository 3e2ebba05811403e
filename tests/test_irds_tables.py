"""Datasets of the real ir_datasets library that hold what a test says; no files, no downloads."""

import collections
import contextlib
import io
import sys

import pytest

from disranker_jax.data import sources
from disranker_jax.data.records import BadRows
from disranker_jax.errors import UserError

PAGES = [(f'd{i}', f'page {i}', 'cats ' * (i + 1)) for i in range(6)]


class Text:
  """A file of the library, in memory."""

  def __init__(self, text):
    self._text = text

  def stream(self):
    return contextlib.closing(io.BytesIO(self._text.encode()))


@pytest.fixture
def registered(tmp_path, monkeypatch):
  """A function that makes a dataset known: texts of queries, qrels and scoreddocs -> its id."""
  monkeypatch.setenv('IR_DATASETS_HOME', str(tmp_path))
  for name in [n for n in sys.modules if n.split('.')[0] == 'ir_datasets']:
    monkeypatch.delitem(sys.modules, name)
  library = pytest.importorskip('ir_datasets', reason="needs ir_datasets: pip install -e '.[data]'")
  from ir_datasets.datasets.base import Dataset
  from ir_datasets.formats import BaseDocs, TrecQrels, TrecScoredDocs, TsvQueries

  page = collections.namedtuple('Page', 'doc_id title text')

  class Pages(BaseDocs):
    def docs_iter(self):
      return iter([page(*fields) for fields in PAGES])

  def register(scoreddocs='', qrels='q1 0 d5 1\n', queries='q1\tcats\nq2\tpage\n'):
    rows = queries if not isinstance(queries, str) else TsvQueries(Text(queries))
    scored = TrecScoredDocs(Text(scoreddocs)) if scoreddocs else None
    parts = [Pages(), rows, TrecQrels(Text(qrels), {}), scored]
    library.registry.register('made', Dataset(*parts))
    return 'ir_datasets:made'

  return register


def ranks(address, kind='candidates', **options):
  return {
    group.query_id: [(doc.doc_id, doc.rank) for doc in group.docs]
    for group in sources.read(address, kind, **options)
  }


def pairs(*queries):
  """Lines of MS MARCO's candidates: all pages, without a score."""
  return ''.join(f'{query} {page[0]}\n' for page in PAGES for query in queries)


def test_pairs_without_scores_are_not_a_first_stage(registered):
  address = registered(pairs('q1', 'q2'))
  for kind in ('candidates', 'test'):
    with pytest.raises(UserError, match=r'made/scoreddocs: has no order.* the score 0') as caught:
      ranks(address, kind)
    assert '?run=FILE' in str(caught.value) and '\n' not in str(caught.value)
  assert ranks(f'{address}?run=bm25', depth=2)['q1'] == [('d5', 1), ('d4', 2)]


def test_scores_of_the_dataset_are_its_first_stage(registered):
  address = registered('q1 d2 1\nq1 d4 3\nq2 d1 3\n')
  assert ranks(address) == {'q1': [('d4', 1), ('d2', 2)], 'q2': [('d1', 1)]}


def test_labels_do_not_need_the_first_stage_of_the_dataset(registered):
  address = registered('q1 d5 2\nq1 d4 three\n')  # which cannot be read
  for kind, option in (('judgements', ''), ('test', '?pool=judged')):
    assert ranks(f'{address}{option}', kind) == {'q1': [('d5', 0)]}
  for option in ('?pool=run', '?run=scoreddocs'):
    with pytest.raises(UserError, match=r"cannot be read .*'three'"):
      ranks(f'{address}{option}', 'judgements')


def test_labels_have_the_ranks_of_a_first_stage_that_is_named(registered):
  address = registered('q1 d4 3\nq1 d5 2\n')
  assert ranks(f'{address}?run=scoreddocs', 'judgements') == {'q1': [('d5', 2)]}
  assert ranks(f'{address}?run=bm25', 'judgements') == {'q1': [('d5', 1)]}
  assert ranks(f'{address}?pool=run', 'judgements', depth=2) == {'q1': [('d5', 2)]}


def test_topics_with_several_texts_are_read_by_one_and_a_line_says_so(registered):
  from ir_datasets.formats import BaseQueries

  topic = collections.namedtuple('Topic', 'query_id title description narrative url')
  topics = [
    topic('q1', 'cats', 'What do cats\neat?', 'A page on diets.', 'example.org/1'),
    topic('q2', 'old page', 'old page', ' ', 'example.org/2'),
  ]

  class Topics(BaseQueries):
    def queries_iter(self):
      return iter(topics)

    def queries_cls(self):
      return topic

  def read(address):
    return [group.query for group in sources.read(address, 'candidates', bad_rows=notes)]

  address, notes = registered(queries=Topics()), BadRows()
  assert read(address) == ['cats', 'old page']
  (note,) = notes.notes
  assert notes.notes[note] == 2
  assert note.startswith("queries are 'title' of topics that also have 'description', 'narrative';")
  notes = BadRows('quarantine', '/dev/null')
  assert read(f'{address}?field=description') == ['What do cats eat?', 'old page']
  assert not notes.notes
  assert read(f'{address}?field=narrative') == ['A page on diets.'] and notes.quarantined == 1
  for act in (read, lambda address: sources.open(address).check('test')):
    with pytest.raises(UserError, match='no such field; choose one of title, description'):
      act(f'{address}?field=desc')


def test_queries_of_one_text_need_no_line(registered):
  notes = BadRows()
  assert list(sources.read(registered(), 'candidates', bad_rows=notes)) and not notes.notes


def test_one_document_per_query_needs_no_order(registered):
  assert ranks(registered('q1 d2\nq2 d1\n')) == {'q1': [('d2', 1)], 'q2': [('d1', 1)]}
