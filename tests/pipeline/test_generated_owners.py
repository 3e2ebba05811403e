"""A query that several documents led the model to write: whose it is, and when it is kept."""

from test_generated import config, rows

from disranker_jax.data import query_filters
from disranker_jax.data.records import Document, Group
from disranker_jax.pipeline import runner
from disranker_jax.stages import generated_groups


def kept_of(folder, pages, texts, **changes) -> tuple[list[Group], query_filters.Filters]:
  """What is kept of (number of the page, text) pairs, all of them from sample 0, 1, ..."""
  docs = [Document(**row) for row in pages]
  run = runner.Run(config(folder, pages, **changes), folder, None)
  filters = query_filters.Filters([], 20)
  found = [
    (docs[i], n, text, filters.reason(docs[i], text, True)) for n, (i, text) in enumerate(texts)
  ]
  return list(generated_groups.grouped(run, filters, docs, found)), filters


def test_all_documents_that_a_query_was_written_from_are_its_own(tmp_path):
  pages = rows()
  query = 'closes a list in a list'
  texts = [(3, query), (13, query), (5, query), (23, query.upper()), (3, query)]
  every, filters = kept_of(tmp_path, pages, texts, generate__found_within=0, generate__depth=24)
  assert [group.query_id for group in every] == ['p3#0']
  assert {doc.doc_id for doc in every[0].docs if doc.label} == {'p3', 'p13', 'p5', 'p23'}
  assert generated_groups.own_documents(every[0])[0] == 'p3'
  assert set(generated_groups.own_documents(every[0])) == {'p3', 'p13', 'p5', 'p23'}
  assert filters.by_reason() == {query_filters.DUPLICATE: 4}


def test_only_candidates_have_labels_and_one_of_them_is_another_document(tmp_path):
  pages = [
    {'doc_id': f'p{i}', 'title': 'return item', 'summary': f'word{i} ' * i} for i in range(6)
  ]
  query, options = 'how to return item', {'generate__depth': 3, 'generate__found_within': 0}
  texts = [(i, query) for i in (5, 0)]
  [group], filters = kept_of(tmp_path, pages, texts, **options)
  assert {doc.doc_id: doc.label for doc in group.docs} == {'p5': 1, 'p0': 1, 'p1': 0}
  assert filters.by_reason() == {query_filters.DUPLICATE: 1}
  # With one more owner than candidates, the last ones have no place among these.
  groups, filters = kept_of(tmp_path, pages, [(i, query) for i in (5, 0, 1, 2)], **options)
  assert not groups
  assert filters.later['p5#0'] == query_filters.NO_OTHER
  assert filters.by_reason() == {query_filters.DUPLICATE: 3, query_filters.NO_OTHER: 1}


def test_a_query_whose_first_document_is_not_found_is_kept_of_the_second(tmp_path):
  pages = rows()
  query = pages[7]['summary']
  texts = [(2, query), (7, query), (2, query)]
  groups, filters = kept_of(tmp_path, pages, texts, generate__found_within=1)
  assert [group.query_id for group in groups] == ['p7#1']
  assert filters.later == dict.fromkeys(['p2#0', 'p2#2'], query_filters.NOT_FOUND)
