"""Reading and writing TREC runs, qrels and tables of metrics per query."""

import gzip

import pytest

from disranker_jax.data.records import NEGATIVE, REPEATED, BadRows
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, runs


def test_zipped_files_spaces_of_any_kind_and_negative_grades_as_not_relevant_are_read(tmp_path):
  (tmp_path / 'run.gz').write_bytes(gzip.compress(b'q\tQ0 d1  9 -1e-3 tag\r\n\nq Q0 d2 x 2 tag\n'))
  (tmp_path / 'qrels').write_bytes('q 0 d1 -2\nq 0 d\u00a02 3\n'.encode())
  assert runs.read_run(tmp_path / 'run.gz') == {'q': {'d1': -0.001, 'd2': 2}}
  bad_rows = BadRows()
  assert runs.read_qrels(tmp_path / 'qrels', bad_rows) == {'q': {'d1': 0, 'd\u00a02': 3}}
  assert bad_rows.notes == {NEGATIVE: 1}


def test_rows_that_are_repeated_unchanged_are_dropped_and_counted(tmp_path):
  (tmp_path / 'run').write_text('q Q0 d 1 2.50 a\nq Q0 e 2 1 a\nq Q0 d 3 2.5 b\n')
  (tmp_path / 'qrels').write_text('q 0 d 1\nq 0 d 1\nq 0 e -1\nq 0 e 0\n')
  of_run, of_qrels = BadRows(), BadRows()
  assert runs.read_run(tmp_path / 'run', of_run) == {'q': {'d': 2.5, 'e': 1}}
  assert runs.read_qrels(tmp_path / 'qrels', of_qrels) == {'q': {'d': 1, 'e': 0}}
  assert of_run.notes == {REPEATED: 1} and of_qrels.notes == {REPEATED: 2, NEGATIVE: 1}


@pytest.mark.parametrize('name', ['m.run', 'm.run.gz'])
def test_a_written_run_is_read_back_with_ids_that_have_spaces_best_first(tmp_path, name):
  ranking = {'a Q0b c': {'z': 0.25, 'x  y': 0.5}, 'd': {'é 1 2': -1.0, 'e': -1.0}}
  runs.write_run(tmp_path / name, ranking, 'm')
  again = runs.read_run(tmp_path / name)
  assert again == ranking
  assert [list(docs) for docs in again.values()] == [
    metrics.ranked(docs) for docs in ranking.values()
  ]


def test_a_run_is_written_from_a_stream_and_its_gzip_file_depends_on_its_scores_only(tmp_path):
  for name in ('a.run.gz', 'b.run.gz'):
    runs.write_run(tmp_path / name, ((q, {'d': 1.0}) for q in 'xy'), 'm')
  assert (tmp_path / 'a.run.gz').read_bytes() == (tmp_path / 'b.run.gz').read_bytes()
  assert gzip.decompress((tmp_path / 'a.run.gz').read_bytes()) == b'x Q0 d 1 1 m\ny Q0 d 1 1 m\n'


@pytest.mark.parametrize(
  'row, where',
  [
    ('q1 Q0 d1 1 2.5', r'run:3:row: has 5 columns, not 6; write query_id Q0 doc_id rank score tag'),
    ('q1 Q0 d1 1 2.5 tag more', r'run:3:row: has 7 columns, not 6'),
    ('q1 Q0 d1 1 high tag', r"run:3:score: is 'high', not a number"),
    ('q1 Q0 d1 1 nan tag', r'run:3:score: is nan; write a finite number'),
    ('q0 Q0 d0 1 2.5 tag', r"run:3:doc_id: 'd0' appears twice for query_id 'q0'"),
  ],
)
def test_a_bad_row_of_a_run_is_named(tmp_path, row, where):
  (tmp_path / 'run').write_text('q0 Q0 d0 1 3.5 tag\n\n' + row + '\n')
  with pytest.raises(UserError, match=where):
    runs.read_run(tmp_path / 'run')


@pytest.mark.parametrize(
  'row, where',
  [
    ('q1 0 d1', r'qrels:2:row: has 3 columns, not 4; write query_id 0 doc_id grade'),
    ('q1 0 d1 1.5', r"qrels:2:grade: is '1.5', not an integer"),
    ('q1 0 d1 5000', r'qrels:2:grade: is 5000; write at most 1000'),
    ('q1 0 d1 1' + '0' * 400, r'qrels:2:grade: .* write at most 1000'),
    ('q0 0 d0 2', r"qrels:2:doc_id: 'd0' appears twice for query_id 'q0'"),
  ],
)
def test_a_bad_row_of_qrels_is_named(tmp_path, row, where):
  (tmp_path / 'qrels').write_text('q0 0 d0 1\n' + row + '\n')
  with pytest.raises(UserError, match=where):
    runs.read_qrels(tmp_path / 'qrels')
