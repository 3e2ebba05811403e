"""What training and test share is counted exactly, and a test of what is learned is refused."""

import json

import pytest

from disranker_jax import config
from disranker_jax.data import collection, overlap, trec
from disranker_jax.data.records import BadRows, Click, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import prepare

QUERIES = 40


def group(query_id, query, *doc_ids):
  return Group(query_id, query, tuple(Document(d, 't', 's') for d in doc_ids))


class TestCounts:
  TEST = overlap.Test(
    [group('q1', 'red fox', 'a', 'b'), group('q2', 'Blue  Dog', 'a', 'c'), group('q3', 'cow', 'd')]
  )

  def shared(self, *records):
    counts = self.TEST.shared(records)
    assert counts.pop('of_queries') == 3 and counts.pop('of_pairs') == 5
    return tuple(counts.values())  # queries, query_texts, query_ids, pairs, records

  def test_nothing_in_common(self):
    assert self.shared(group('x', 'red foxes', 'a', 'b'), Click('green', 't', 's')) == (0,) * 5

  def test_texts_are_the_same_up_to_case_and_white_space(self):
    assert self.shared(group('x', ' blue dog\n', 'z')) == (1, 1, 0, 0, 1)
    assert self.shared(Click('RED fox', 't', 's'), Click('red fox ', 't', 's')) == (1, 1, 0, 0, 2)

  def test_a_pair_is_a_document_of_the_same_text_or_id(self):
    assert self.shared(group('x', 'red fox', 'b', 'c')) == (1, 1, 0, 1, 1)
    assert self.shared(group('q1', 'a fox that is red', 'a', 'b')) == (1, 0, 1, 2, 0)

  def test_files_that_both_number_their_queries_share_ids_but_no_queries(self):
    assert self.shared(group('q1', 'stars', 'x'), group('q2', 'moons', 'y')) == (0, 0, 2, 0, 0)

  def test_a_query_or_pair_counts_once(self):
    twice = [group('q1', 'red fox', 'a'), group('x', 'red  fox', 'a', 'b')]
    assert self.shared(*twice, *twice) == (1, 1, 1, 2, 4)

  def test_test_queries_of_one_text_all_count(self):
    test = overlap.Test([group('q1', 'fox', 'a'), group('q2', 'Fox', 'a'), group('q3', 'dog', 'a')])
    counts = test.shared([group('x', 'fox', 'a')])
    assert (counts['queries'], counts['pairs'], counts['records']) == (2, 2, 1)


def rows(first, last, prefix='q', **more):
  return [
    {'query_id': f'{prefix}{i}', 'query': f'Query {i}', 'doc_id': f'd{i % 7}-{j}', 'title': 't',
     'summary': 's', 'label': j} | more
    for i in range(first, last) for j in (0, 1)
  ]  # fmt: skip


def prepared(tmp_path, capsys, judged, tests, clicks=(), **changes):
  """(results of prepare, what it printed)."""
  c = config.defaults()
  c.stages = ('prepare', *(('cpt',) if clicks else ()), 'sft', 'score', 'evaluate')
  of_kind = {'judgements': judged, 'candidates': judged, 'test': tests, 'clicks': clicks}
  for kind, written in of_kind.items():
    (tmp_path / f'{kind}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in written))
    c.data[kind] = f'jsonl:{tmp_path}/{kind}.jsonl'
  c.data.update(changes)
  results = prepare.prepare(Run(c, tmp_path / 'run', None))
  return results['overlap'], capsys.readouterr().err


def test_a_test_of_the_judged_queries_is_refused_before_any_training(tmp_path, capsys):
  with pytest.raises(UserError) as caught:
    prepared(tmp_path, capsys, rows(0, QUERIES), rows(0, QUERIES))
  message = str(caught.value)
  assert 'config.data.test' in message and '40 of its 40 queries (100%)' in message
  assert 'config.data.holdout' in message and 'config.data.allow_overlap=0.05' in message
  assert 'judgements: 40 of 40 test queries' in capsys.readouterr().err


def test_what_is_allowed_is_counted(tmp_path, capsys):
  found, said = prepared(tmp_path, capsys, rows(0, 40), rows(0, 40), allow_overlap=1.0)
  assert found['judgements']['queries'] == 40 and found['judgements']['pairs'] == 80
  assert '40 by text and 40 by id, with 80 of 80 test pairs' in said


def test_a_few_queries_pass_with_a_line(tmp_path, capsys):
  found, said = prepared(tmp_path, capsys, rows(0, 42, 'x'), rows(40, 80))  # 2 of 40: 5 %
  assert found['judgements']['query_texts'] == 2 and found['judgements']['query_ids'] == 0
  assert 'judgements: 2 of 40 test queries are here too, 2 by text and 0 by id, with 4' in said
  with pytest.raises(UserError, match=r'3 of its 40 queries \(8%\)'):
    prepared(tmp_path, capsys, rows(0, 43, 'x'), rows(40, 80))


def test_nothing_is_said_about_data_apart(tmp_path, capsys):
  found, said = prepared(tmp_path, capsys, rows(0, 40), rows(40, 80))
  assert found['judgements']['queries'] == found['candidates']['queries'] == 0
  assert 'test queries' not in said


def test_test_queries_in_clicks_and_candidates_are_counted_not_refused(tmp_path, capsys):
  clicks = [{'query': f'query  {i}', 'title': 't', 'summary': 's'} for i in (*range(80), 79)]
  candidates = tmp_path / 'more.jsonl'
  candidates.write_text(''.join(json.dumps(row) + '\n' for row in rows(30, 60)))
  found, said = prepared(
    tmp_path, capsys, rows(0, 40), rows(40, 80), clicks, candidates=f'jsonl:{candidates}'
  )
  assert found['clicks'] == {
    'queries': 40, 'query_texts': 40, 'query_ids': 0, 'pairs': 0, 'records': 41, 'of_queries': 40,
    'of_pairs': 80,
  }  # fmt: skip
  assert found['candidates']['queries'] == 20 and found['candidates']['pairs'] == 40
  assert 'clicks: 40 of 40 test queries are here too, in 41 clicks of the same text' in said
  assert 'candidates: 20 of 40 test queries are here too' in said


def test_clicks_that_are_made_of_labels_are_refused_like_labels(tmp_path, capsys):
  c = config.defaults()
  c.stages = ('prepare', 'cpt', 'evaluate')  # no stage reads the judgements themselves
  (tmp_path / 'all.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows(0, 40)))
  c.data.update(clicks='judgements:', judgements=f'jsonl:{tmp_path}/all.jsonl')
  c.data.test = c.data.judgements
  with pytest.raises(UserError, match=r'40 of its 40 queries \(100%\) are in the clicks'):
    prepare.prepare(Run(c, tmp_path / 'run', None))


def test_one_file_with_a_holdout_is_apart(tmp_path, capsys):
  found, _ = prepared(tmp_path, capsys, rows(0, 100), rows(0, 100), holdout=0.3)
  assert found['judgements']['queries'] == 0 and 10 < found['judgements']['of_queries'] < 50


def topic_rows(topics, queries):
  """Queries T-1, T-2, ... of a topic have the same judged documents."""
  return [
    {'query_id': f'{t}-{i}', 'query': f'topic {t}, version {i}', 'doc_id': f'{t}.{j}', 'title': 't',
     'summary': 's', 'label': j % 3}
    for t in topics for i in queries for j in range(6)
  ]  # fmt: skip


def test_a_split_through_topics_is_told_with_an_expression_that_prevents_it(tmp_path, capsys):
  log = topic_rows(range(12), range(4))
  with pytest.raises(UserError, match=r"labels would be learned; set .*holdout_by='\^\[\^-\]\+'"):
    prepared(tmp_path, capsys, log, log, holdout=0.4)
  found, said = prepared(tmp_path, capsys, log, log, holdout=0.4, allow_overlap=1.0)
  split = found['judgements']
  assert split['queries'] == 0 and split['same_judgements'] > 10
  assert split['holdout_by'] == '^[^-]+'
  assert f'{split["same_judgements"]} test queries have the same relevant documents' in said
  assert "the ids of a topic have the same match of '^[^-]+'" in said
  found, said = prepared(tmp_path, capsys, log, log, holdout=0.4, holdout_by='^[^-]+')
  assert found['judgements']['same_judgements'] == 0 and 'relevant documents' not in said


def test_topics_in_two_files_are_told_too(tmp_path, capsys):
  judged, tests = topic_rows(range(12), (0, 1)), topic_rows(range(10, 20), (2, 3))
  with pytest.raises(UserError, match=r'keep queries whose ids have the same match .* in one file'):
    prepared(tmp_path, capsys, judged, tests)
  found, said = prepared(tmp_path, capsys, judged, tests, allow_overlap=0.3)
  assert found['judgements']['same_judgements'] == 4
  assert 'of 2 topics, such as 10-2 and 10-0' in said


def test_clicks_of_excluded_queries_are_left_out_whatever_their_case(tmp_path):
  (tmp_path / 'queries.tsv').write_text('q1\tRed fox\nq2\tblue dog\n')
  (tmp_path / 'docs.jsonl').write_text(json.dumps({'doc_id': 'd', 'title': 't', 'summary': 's'}))
  (tmp_path / 'test.txt').write_text('q1 0 d 1\n')
  clicks = [{'query': q, 'title': 't', 'summary': 's'} for q in ('red  fox', 'blue dog')]
  (tmp_path / 'clicks.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in clicks))

  def queries(**options):
    folder = trec.Folder(tmp_path, options, 10)
    return [click.query for click in collection.read(folder, 'clicks', 10, BadRows())]

  assert queries(exclude='test.txt') == ['blue dog']
  assert queries(only='test.txt') == ['red  fox']
