"""A query that several documents led the model to write: whose it is, and when it is kept."""

import pytest
from test_generated import config, rows

from disranker_jax import config as configs
from disranker_jax.data import query_filters
from disranker_jax.data.records import Document
from disranker_jax.pipeline import runner
from disranker_jax.stages import generate, generated_groups


def kept_of(folder, pages, texts, system='', **changes):
  """What is kept of (number of the page, text) pairs, all of them from sample 0, 1, ..."""
  docs = [Document(**row) for row in pages]
  c = configs.defaults(system) if system else config(folder, pages)
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  run = runner.Run(c, folder, None)
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


def test_every_copy_of_a_page_gets_the_query_that_names_it_in_a_retriever(tmp_path):
  """Nothing ranks the documents of the query there, so it needs no other one."""
  pages = [{'doc_id': f'p{i}', 'title': '', 'summary': 'closes a list'} for i in range(3)]
  options = {'generate__depth': 2, 'generate__found_within': 0, 'system': 'dgr'}
  texts = [(i, 'how to close a list') for i in range(3)]
  [group], filters = kept_of(tmp_path, pages, texts, **options)
  assert generated_groups.own_documents(group) == ['p0', 'p1', 'p2']
  assert filters.by_reason() == {query_filters.DUPLICATE: 2}
  # Another page that led to it is no candidate of BM25, and one whose page is not found gets none.
  pages[1]['summary'] = 'opens sockets'
  [group], _ = kept_of(tmp_path, pages, texts, **options)
  assert set(generated_groups.own_documents(group)) == {'p0', 'p1', 'p2'}
  [group], filters = kept_of(tmp_path, pages, texts, **options | {'generate__found_within': 2})
  assert set(generated_groups.own_documents(group)) == {'p0', 'p2'}
  assert filters.later['p1#1'] == query_filters.NOT_FOUND


@pytest.mark.parametrize(
  ('system', 'stages', 'names'),
  [
    ('dgr', None, True),
    ('dgr', ('prepare', 'generate', 'index', 'score'), False),
    ('disranker', ('prepare', 'generate', 'score', 'distill'), False),
    ('disranker', ('prepare', 'generate'), False),  # for another run
  ],
)
def test_queries_are_names_where_they_are_read_and_no_stage_ranks_their_documents(
  system, stages, names
):
  c = configs.defaults(system)
  c.stages = stages or c.stages
  assert generated_groups.are_names(c) == names
  assert bool(generate.filtering(c).get('names')) == names
