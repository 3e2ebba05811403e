"""BRIGHT's format: queries with judgements and excluded documents, on a made-up copy."""

import json

import pytest
from bright_copy import DOCUMENTS, EXAMPLES, make, write_table

from disranker_jax.data import sources
from disranker_jax.data.records import UNJUDGED
from disranker_jax.errors import UserError
from disranker_jax.rewriting import queries


@pytest.fixture
def folder(tmp_path):
  return make(tmp_path)


def read(folder, kind, options='', **more):
  return list(sources.read(f'bright:{folder}?task=biology{options}', kind, **more))


def test_judgements_are_the_gold_documents(folder):
  first, second = read(folder, 'judgements')
  assert (first.query_id, first.query) == ('0', EXAMPLES[0]['query'])
  # White space separates the columns of TREC files.
  assert first.grades == {'moths/a.txt': 1, 'moths/b_c.txt': 1}
  assert first.docs[1].summary == 'moths and light'
  assert second.grades == {'bulb/3.txt': 1}


def test_excluded_documents_are_removed_before_the_ranking_is_cut(folder):
  (second,) = read(folder, 'candidates', depth=2)[1:]
  assert [doc.doc_id for doc in second.docs] == ['bulb/3.txt', 'bulb/4.txt']
  assert [doc.rank for doc in second.docs] == [1, 2]
  (test,) = read(folder, 'test', depth=1)[1:]
  assert [(doc.doc_id, doc.label, doc.in_pool) for doc in test.docs] == [('bulb/3.txt', 1, True)]
  deep = read(folder, 'test', depth=100)[1].docs
  assert [doc.doc_id for doc in deep] == ['bulb/3.txt', 'bulb/4.txt', 'bulb/5.txt', 'moths/b_c.txt']
  assert [doc.label for doc in deep] == [1] + [UNJUDGED] * 3


def test_a_ready_made_rewrite_is_read_in_the_place_of_the_query(folder):
  first, second = read(folder, 'judgements', '&queries=gpt4_reason')
  assert [first.query, second.query] == ['rewritten 0', 'rewritten 1']
  assert second.grades == {'bulb/3.txt': 1}


def test_the_long_setting_has_whole_pages(folder):
  (only,) = read(folder, 'judgements', '&long=yes')
  assert only.grades == {'moths': 1} and only.docs[0].summary == 'moths'
  assert len(sources.documents(f'bright:{folder}?task=biology&long=yes')) == 1
  assert len(sources.documents(f'bright:{folder}?task=biology')) == len(DOCUMENTS)


def test_queries_know_what_is_excluded(folder):
  tables = sources.open(f'bright:{folder}?task=biology')
  assert tables.excluded() == {'0': frozenset(), '1': frozenset({'bulb/1.txt', 'bulb/2.txt'})}
  query = queries.of_group(read(folder, 'judgements')[1], excluded=tables.excluded()['1'])
  assert 'bulb/2.txt' in query.excluded


def test_the_fingerprint_follows_the_files(folder):
  address = f'bright:{folder}?task=biology'
  before = sources.fingerprint(address)
  assert sources.fingerprint(address) == before
  write_table(folder / 'documents' / 'biology-00001-of-00001.parquet', DOCUMENTS[4:5])
  assert sources.fingerprint(address) != before


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('', 'names no task; write bright:.*task=biology'),
    ('?task=chemistry', "has no file of the task 'chemistry'"),
    ('?task=biology&long=1', 'long=1: write yes or no'),
    ('?task=biology&queries=gpt5_reason', 'gpt5_reason: has no file'),
    ('?task=biology&run=bm25', "cannot use the option 'run=bm25'"),
  ],
)
def test_wrong_addresses(folder, options, message):
  with pytest.raises(UserError, match=message):
    list(sources.read(f'bright:{folder}{options}', 'judgements'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'excluded_ids': ['moths/a.txt']}, r'jsonl:1:excluded_ids: has the gold document'),
    ({'gold_ids': 'moths/a.txt'}, r'jsonl:1:gold_ids: is not a list of texts'),
    ({'query': ' '}, r'jsonl:1:query: is blank'),
    ({'gold_ids': ['elsewhere']}, r"'elsewhere' is not in bright:"),
  ],
)
def test_wrong_rows_name_their_place(folder, change, message):
  for file in (folder / 'examples').iterdir():
    file.unlink()
  (folder / 'examples' / 'biology.jsonl').write_text(json.dumps(EXAMPLES[0] | change) + '\n')
  with pytest.raises(UserError, match=message):
    read(folder, 'judgements')
