"""TREC folders as sources: queries, documents, judgements, runs, and their mistakes."""

import gzip
import math

import pytest
from source_files import error, jsonl, table, trec_folder

from disranker_jax.commands import prepare
from disranker_jax.data import sources
from disranker_jax.data.collection import OWN
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import NEGATIVE, REPEATED, UNJUDGED, BadRows
from disranker_jax.data.sources import read
from disranker_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  return trec_folder(tmp_path)


class TestTrec:
  def test_judgements_know_the_first_stage(self, folder):
    assert table(f'trec:{folder}', 'judgements') == {
      'q1': [('d1', 2, 3, True), ('d4', 1, 0, True)],
      'q2': [('d2', 0, 0, True)],
    }
    group = next(read(f'trec:{folder}', 'judgements'))
    assert group.query == 'red fox' and group.docs[0].score == 7 and math.isnan(group.docs[1].score)

  def test_candidates_are_the_top_of_the_run(self, folder):
    # The score decides, then the rank in the file: d3 before d1.
    everything = table(f'trec:{folder}', 'candidates', depth=2)
    assert everything['q1'] == [('d2', UNJUDGED, 1, True), ('d3', UNJUDGED, 2, True)]
    assert list(everything) == ['q1', 'q2', 'q3']
    assert list(table(f'trec:{folder}?exclude=qrels.txt', 'candidates')) == ['q3']
    assert list(table(f'trec:{folder}?only=qrels.dev.txt', 'candidates')) == ['q3']
    assert not table(f'trec:{folder}?exclude=qrels.txt,qrels.dev.txt', 'candidates')

  def test_pairs_can_be_left_out(self, folder):
    (folder / 'no.txt').write_text('q1 0 d2 0\nq1 0 d4 0\nq2 0 d2 0\n')
    address = f'trec:{folder}?without=no.txt'
    assert table(address, 'judgements') == {'q1': [('d1', 2, 2, True)]}
    assert [doc[0::2] for doc in table(address, 'candidates', depth=2)['q1']] == [
      ('d3', 1), ('d1', 2),
    ]  # fmt: skip

  def test_judgements_can_be_those_that_the_run_finds(self, folder, capsys):
    address = f'trec:{folder}?pool=run'
    assert table(address, 'judgements', depth=3) == {'q1': [('d1', 2, 3, True)]}
    assert 'left out 2 judged pairs' in capsys.readouterr().err
    pooled = table(address, 'pooled', depth=3)['q1']
    assert [(doc[0], doc[1]) for doc in pooled] == [('d2', -1), ('d3', -1), ('d1', 2)]

  def test_test_pools(self, folder):
    assert table(f'trec:{folder}', 'test', depth=2) == {
      'q1': [
        ('d2', UNJUDGED, 1, True), ('d3', UNJUDGED, 2, True), ('d1', 2, 3, False),
        ('d4', 1, 0, False),
      ],
      'q2': [('d1', UNJUDGED, 1, True), ('d2', 0, 0, False)],
    }  # fmt: skip
    assert table(f'trec:{folder}', 'test', depth=3)['q1'][2] == ('d1', 2, 3, True)
    assert table(f'trec:{folder}?pool=judged', 'test', depth=1) == {
      'q1': [('d1', 2, 3, True), ('d4', 1, 0, True)],
      'q2': [('d2', 0, 0, True)],
    }
    assert list(table(f'trec:{folder}?qrels=qrels.dev.txt', 'test')) == ['q3']
    assert 'unknown pool' in error(f'trec:{folder}?pool=all', 'test')

  def test_queries_without_judgements_are_counted_where_some_are_needed(self, folder, capsys):
    (folder / 'no.txt').write_text('q2 0 d2 0\n')
    for kind, options, count in (
      ('test', '', '1 query'), ('judgements', '', '1 query'),
      ('test', '?without=no.txt', '2 queries'), ('test', '?exclude=qrels.dev.txt', ''),
      ('candidates', '', ''),
    ):  # fmt: skip
      table(f'trec:{folder}{options}', kind)
      said = capsys.readouterr().err
      assert ('without judgements' in said) == bool(count), (kind, said)
      assert f'left out {count} without judgements' in said or not count

  def test_a_run_is_needed_only_where_it_is_used(self, folder):
    (folder / 'bm25.run.gz').unlink()
    assert table(f'trec:{folder}', 'judgements')['q1'][0] == ('d1', 2, 0, True)
    assert table(f'trec:{folder}?pool=judged', 'test')['q1'][0] == ('d1', 2, 0, True)
    assert 'bm25.run: does not exist' in error(f'trec:{folder}', 'test')
    assert 'other.run: does not exist' in error(f'trec:{folder}?run=other.run', 'judgements')
    assert 'is not a folder' in error(f'trec:{folder}/nowhere', 'test')

  def test_a_run_without_an_order_that_nobody_named_ranks_judged_documents(self, folder):
    (folder / 'bm25.run').write_text('q1 d1 1\nq1 d2 1\nq2 d1 1\n')
    assert error(f'trec:{folder}', 'candidates').startswith(f'{folder}/bm25.run: has no order')
    assert table(f'trec:{folder}', 'judgements')

  def test_runs_of_three_columns_and_margin_files(self, folder, monkeypatch):
    (folder / 'short.run').write_text('q1 d1 3\nq1\td2\t4.5\nq2 d1 1\n')
    found = table(f'trec:{folder}?run=short.run', 'candidates')
    assert found['q1'] == [('d2', UNJUDGED, 1, True), ('d1', UNJUDGED, 2, True)]
    # positive score, negative score, query, positive, negative; positives repeat.
    rows = ('9 1 q1 d1 d2', '9 -2.5 q1 d1 d3', '4 5 q2 d1 d2')
    (folder / 'margins.tsv').write_text('\n'.join(rows).replace(' ', '\t'))
    groups = list(read(f'trec:{folder}?run=margins.tsv', 'candidates'))
    assert [[(d.doc_id, d.score) for d in g.docs] for g in groups] == [
      [('d1', 9), ('d2', 1), ('d3', -2.5)],
      [('d2', 5), ('d1', 4)],
    ]
    # Without ranks and scores that differ, there is no order to cut by.
    (folder / 'flat.run').write_text('q1 d1 1\nq1 d2 1\nq2 d1 1\n')
    for kind in ('candidates', 'judgements'):
      said = error(f'trec:{folder}?run=flat.run', kind)
      assert said.startswith(f'{folder}/flat.run: has no order') and 'the score 1' in said
    (folder / 'flat.run').write_text('q1 Q0 d1 2 1 x\nq1 Q0 d2 1 1 x\n')
    assert [doc[0] for doc in table(f'trec:{folder}?run=flat.run', 'candidates')['q1']] == [
      'd2', 'd1',
    ]  # fmt: skip
    (folder / 'bad.run').write_text('q1 d1\n')
    monkeypatch.chdir(folder.parent)  # a file in another folder is found from the current directory
    (folder.parent / 'here.run').write_text('q1 d3 3\n')
    address = f'trec:{folder}?run=here.run'
    assert table(address, 'candidates') == {'q1': [('d3', UNJUDGED, 1, True)]}
    assert 'here.run' in str(sources.fingerprint(address))
    # But not one that only has a default name.
    (folder / 'bm25.run.gz').rename(folder.parent / 'bm25.run.gz')
    assert 'bm25.run: does not exist' in error(f'trec:{folder}', 'candidates')
    assert 'bad.run:1:row: has 2 columns' in error(f'trec:{folder}?run=bad.run', 'candidates')

  def test_bm25_makes_a_run_of_the_documents_file(self, folder):
    docs = [{'doc_id': f'd{i}', 'title': t, 'summary': ''} for i, t in ((1, 'red fox'), (2, 'dog'))]
    (folder / 'docs.jsonl.gz').write_bytes(gzip.compress(jsonl(*docs)))
    groups = list(read(f'trec:{folder}?run=bm25', 'candidates'))
    assert [(g.query_id, [(d.doc_id, d.rank) for d in g.docs]) for g in groups] == [
      ('q1', [('d1', 1)]), ('q2', [('d2', 1)]),
    ]  # fmt: skip
    assert all(doc.score > 0 for group in groups for doc in group.docs)

  def test_bm25_ranks_for_the_queries_that_are_read(self, folder, monkeypatch):
    docs = [{'doc_id': f'd{i}', 'title': f'fox dog cat {i}', 'summary': ''} for i in range(1, 5)]
    (folder / 'docs.jsonl.gz').write_bytes(gzip.compress(jsonl(*docs)))
    (folder / 'bm25.run.gz').unlink()
    asked, each = [], BM25.each

    def spied(index, queries, depth):
      asked.append(list(queries))
      return each(index, asked[-1], depth)

    monkeypatch.setattr(BM25, 'each', spied)
    every = {
      q: [doc[2] for doc in docs]
      for q, docs in table(f'trec:{folder}?run=bm25', 'candidates').items()
    }
    texts = {'q1': 'red fox', 'q2': 'blue dog', 'q3': 'green cat'}
    assert asked.pop() == list(texts.values())
    for kind, options, queries in [
      ('candidates', '&only=qrels.dev.txt', ('q3',)),
      ('candidates', '&exclude=qrels.txt', ('q3',)),
      ('judgements', '', ('q1', 'q2')),
      ('test', '', ('q1', 'q2')),
      ('pooled', '&exclude=qrels.dev.txt', ('q1', 'q2')),
      ('test', '&qrels=qrels.dev.txt&only=qrels.dev.txt,qrels.txt', ('q3',)),
    ]:
      found = table(f'trec:{folder}?run=bm25{options}', kind)
      assert asked.pop() == [texts[query] for query in queries], (kind, options)
      assert tuple(found) == queries
      if kind == 'candidates':
        assert [doc[2] for doc in found['q3']] == every['q3']

  def test_queries_that_are_documents_rank_themselves_unless_told_otherwise(self, folder):
    texts = {'q1': 'red fox', 'd2': 'red fox den', 'd3': 'den of a fox', 'q2': 'a tree'}
    docs = [{'doc_id': name, 'title': 'x', 'summary': text} for name, text in texts.items()]
    (folder / 'docs.jsonl.gz').write_bytes(gzip.compress(jsonl(*docs)))
    (folder / 'queries.tsv').write_text('q1\tRed  fox\nq2\tden\n')  # q2 is another text
    (folder / 'qrels.txt').write_text('q1 0 d3 1\nq1 0 q1 0\n')
    (folder / 'pairs.txt').write_text('q1 0 d2 0\n')
    (folder / 'own.run').write_text('q1 q1 9\nq1 d2 8\nq1 d3 7\nq2 q2 3\nq2 d3 2\nq2 d2 1\n')
    for run in ('bm25', 'own.run'):
      address, notes = f'trec:{folder}?run={run}', BadRows()
      found = table(address, 'candidates', depth=2, bad_rows=notes)
      assert [doc[0] for doc in found['q1']] == ['q1', 'd2'] and notes.notes == {OWN: 1}
      address, notes = f'{address}&own=exclude', BadRows()
      found = table(address, 'candidates', depth=2, bad_rows=notes)
      assert [doc[0::2] for doc in found['q1']] == [('d2', 1), ('d3', 2)] and not notes.notes
      assert [doc[0] for doc in found['q2']] == ['d3', 'd2']
      assert [doc[0] for doc in table(address, 'judgements')['q1']] == ['d3']
      # What is taken out does not make the ranking shorter.
      found = table(f'{address}&without=pairs.txt', 'candidates', depth=1)
      assert [doc[0::2] for doc in found['q1']] == [('d3', 1)]

  def test_a_search_of_the_whole_collection_knows_the_documents_that_are_queries(self, folder):
    address = f'trec:{folder}?own=exclude'
    assert sources.open(address).excluded() == {q: {q} for q in ('q1', 'q2', 'q3')}
    assert sources.open(f'trec:{folder}').excluded() == {}
    (folder / 'exclude').write_text('no file of the address')
    assert str(folder / 'exclude') not in str(sources.fingerprint(address))
    with pytest.raises(UserError, match="unknown own 'yes'; choose one of exclude"):
      sources.open(f'trec:{folder}?own=yes').check('test')

  def test_clicks_can_hold_out_queries(self, folder):
    clicks = [{'query': q, 'title': 't', 'summary': ''} for q in ('red fox', 'green cat', 'other')]
    (folder / 'clicks.jsonl').write_bytes(jsonl(*clicks))
    queries = [click.query for click in read(f'trec:{folder}', 'clicks')]
    assert queries == ['red fox', 'green cat', 'other']
    queries = [click.query for click in read(f'trec:{folder}?exclude=qrels.txt', 'clicks')]
    assert queries == ['green cat', 'other']
    queries = [click.query for click in read(f'trec:{folder}?only=qrels.txt', 'clicks')]
    assert queries == ['red fox']

  @pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
      ('qrels.txt', 'q1 0 d1 1\nq1 0 d9 1\n', "2:doc_id: 'd9' is not in"),
      ('qrels.txt', 'q1 0 d1 1\nq9 0 d1 1\n', "2:query_id: 'q9' is not among the queries"),
      ('qrels.txt', 'q1 0 d1 1\nq1 0 d1 2\n', "2:doc_id: 'd1' appears twice"),
      ('qrels.txt', f'q1 0 d1 1\nq1 0 d2 -{10**12}\n', '2:label: is -1'),
      ('qrels.txt', 'q1 0 d1 1\nq1 0 d2 1.0\n', "2:label: is '1.0', not an integer"),
      ('qrels.txt', 'q1 0 d1 1\nq1 d2 1\n', '2:row: has 3 columns, not 4'),
      ('bm25.run', 'q1 Q0 d1 1 1 x\nq1 Q0 d9 2 1 x\n', "2:doc_id: 'd9' is not in"),
      ('bm25.run', 'q1 Q0 d1 1 1 x\nq9 Q0 d1 2 1 x\n', "2:query_id: 'q9' is not among"),
      ('bm25.run', 'q1 Q0 d1 1 1 x\nq1 Q0 d2 2 nan x\n', '2:score: is nan'),
      ('bm25.run', 'q1 Q0 d1 1 1 x\nq1 Q0 d2 two 1 x\n', "2:rank: is 'two'"),
      ('bm25.run', 'q1 Q0 d1 1 1 x\nq1 Q0 d1 2 1 x\n', "2:doc_id: 'd1' appears twice"),
      ('queries.tsv', 'q1\tred fox\nq2 blue dog\n', '2:query: is missing'),
      ('queries.tsv', 'q1\tred fox\nq1\tblue dog\n', "2:query_id: 'q1' appears twice"),
      ('queries.tsv', 'q1\tred fox\nq2\t \n', '2:query: is blank'),
    ],
  )
  def test_bad_rows(self, folder, tmp_path, name, text, says):
    (folder / 'bm25.run.gz').unlink()
    (folder / 'bm25.run').write_text('q1 Q0 d1 1 1 x\n')
    if name == 'queries.tsv':
      (folder / 'qrels.txt').write_text('q1 0 d1 1\n')
    (folder / name).write_text(text)
    assert error(f'trec:{folder}', 'test').startswith(f'{folder / name}:{says}')
    bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
    groups = list(read(f'trec:{folder}', 'test', bad_rows=bad_rows))
    assert [group.query_id for group in groups] == (['q1', 'q2'] if 'bm25' in name else ['q1'])
    assert bad_rows.quarantined == len(bad_rows.path.read_text().splitlines()) == 1

  def test_negative_grades_are_not_relevant_and_counted(self, folder, capsys):
    (folder / 'qrels.txt').write_text('q1 0 d1 -1\nq1 0 d4 2\nq2 0 d2 -2\n')
    for kind in ('judgements', 'test'):
      bad_rows = BadRows()
      groups = table(f'trec:{folder}', kind, bad_rows=bad_rows)
      labels = {(q, doc): label for q in groups for doc, label, *_ in groups[q]}
      assert {**labels, ('q1', 'd1'): 0, ('q1', 'd4'): 2, ('q2', 'd2'): 0} == labels
      assert bad_rows.notes == {NEGATIVE: 2}
    prepare.main([
      '--source', f'trec:{folder}', '--kind', 'judgements', '--out', str(folder / 'prepared')
    ])  # fmt: skip
    assert f'2 {NEGATIVE}' in capsys.readouterr().out

  def test_rows_that_are_repeated_unchanged_are_dropped_and_counted(self, folder):
    (folder / 'bm25.run').write_bytes(gzip.decompress((folder / 'bm25.run.gz').read_bytes()))
    (folder / 'docs.jsonl').write_bytes(gzip.decompress((folder / 'docs.jsonl.gz').read_bytes()))
    before = table(f'trec:{folder}', 'test')
    for name in ('qrels.txt', 'bm25.run', 'queries.tsv', 'docs.jsonl'):
      text = (folder / name).read_text()
      (folder / name).write_text(text + text.lstrip().splitlines()[0] + '\n')
    bad_rows = BadRows()
    assert table(f'trec:{folder}', 'test', bad_rows=bad_rows) == before
    assert bad_rows.notes == {REPEATED: 4}

  def test_a_bad_document(self, folder):
    (folder / 'docs.jsonl.gz').unlink()
    (folder / 'docs.jsonl').write_bytes(jsonl({'doc_id': 'd1', 'title': 3, 'summary': ''}))
    assert f'{folder}/docs.jsonl:1:title: ' in error(f'trec:{folder}', 'test')
