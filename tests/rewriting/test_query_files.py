"""Files of queries, and of rewrites."""

import gzip

import pytest

from disranker_jax.errors import UserError
from disranker_jax.evaluation import rewrites
from disranker_jax.rewriting import query_files

EXPECTED = [('7', 'open a file'), ('b', 'sort\u2028 日本')]


def write(folder, name, text):
  file, content = folder / name, text.encode()
  file.write_bytes(gzip.compress(content) if name.lower().endswith('.gz') else content)
  return file


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('a.tsv', '7\topen a file\n\nb\tsort\u2028 日本\r\n'),
    ('a.jsonl', '{"query_id": 7, "query": "open a file"}\n'
     '{"query_id": "b", "query": "sort\u2028 日本"}'),
    ('a.TSV.GZ', '7\topen a file\nb\tsort\u2028 日本'),
    ('a.json.gz', '{"query": "open a file", "query_id": "7"}\n'
     '{"query_id": "b", "query": "sort\u2028 日本", "x": 1}'),
  ],
)  # fmt: skip
def test_formats(tmp_path, name, text):
  assert query_files.read(write(tmp_path, name, text)) == EXPECTED


def test_queries_without_ids_have_the_numbers_of_their_lines(tmp_path):
  for name, text in (
    ('a.txt', 'open a file\n\nwhat\tis it \n'),
    ('queries', 'open a file\n\nwhat\tis it\n'),
    ('queries.gz', 'open a file\n\nwhat\tis it\n'),
    ('a.txt.gz', 'open a file\n\nwhat\tis it\n'),
    ('a.jsonl', '{"query": "open a file"}\n\n{"query": "what\\tis it"}\n'),
  ):
    found = query_files.read(write(tmp_path, name, text))
    assert found == [('1', 'open a file'), ('3', 'what\tis it')]


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('a.tsv', '1\ta\nb c\n', r'a\.tsv:2: row: has no id before a tab'),
    ('a.tsv', '1\ta\n2\t \n', r'a\.tsv:2: query: is blank'),
    ('a.tsv', '1\ta\n1\tb\n', r"a\.tsv:2: query_id: '1' is in line 1 too"),
    ('a.jsonl', '{"query": "a"}\n{"question": "b"}', '2: query: is missing; rename "question"'),
    ('a.jsonl', '{"query": ["a"]}', 'jsonl:1: query: is not a text'),
    ('a.jsonl', '{"query": "a", "query_id": null}', 'jsonl:1: query_id: is not a text'),
    ('a.jsonl', '{"query": "a\\ud800"}', 'jsonl:1: query: has half a surrogate pair; write it'),
    ('a.jsonl', '{"query": "a", "query_id": "\\udc00"}', 'query_id: has half a surrogate pair'),
    ('a.jsonl', '["a"]', 'jsonl:1: row: is no JSON object'),
    ('a.jsonl', 'open a file', 'jsonl:1: row: is invalid JSON'),
    ('a.txt', '', 'is empty'),
    ('a.csv', '1,a', r'a\.csv: is read as \.jsonl, \.tsv or \.txt by its name'),
    ('a.csv.gz', '1,a', r'a\.csv\.gz: is read as'),
  ],
)  # fmt: skip
def test_wrong_lines_name_their_place(tmp_path, name, text, message):
  with pytest.raises(UserError, match=message):
    query_files.read(write(tmp_path, name, text))


@pytest.mark.parametrize('name', ['x.jsonl', 'x.jsonl.gz'])
def test_rewrites_are_replaced_once_all_are_written(tmp_path, name):
  file = tmp_path / name
  rows = [rewrites.Rewrite(*asked, 'io\u2028\ud800', 'open io') for asked in EXPECTED]
  rewrites.write(file, rows)
  assert list(rewrites.read(file).values()) == rows
  assert (file.read_bytes()[:2] == b'\x1f\x8b') == name.endswith('.gz')

  def broken():
    yield rows[0]
    raise RuntimeError

  with pytest.raises(RuntimeError):
    rewrites.write(file, broken())
  assert len(rewrites.read(file)) == 2


def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
  (tmp_path / 'there').mkdir()
  link, file = tmp_path / 'x.jsonl.gz', tmp_path / 'there' / 'kept'
  link.symlink_to(file)
  for count in (2, 1):  # first it names no file yet
    rewrites.write(link, [rewrites.Rewrite(*asked, 'io', 'open io') for asked in EXPECTED[:count]])
    assert link.is_symlink() and len(rewrites.read(link)) == count
    assert [f.name for f in file.parent.iterdir()] == ['kept']


def test_equal_rewrites_are_equal_gzip_files(tmp_path, monkeypatch):
  rows, written = [rewrites.Rewrite(*EXPECTED[0], 'io', 'open io')], []
  for time, name in ((1e9, 'a.gz'), (2e9, 'b.gz')):
    monkeypatch.setattr(gzip.time, 'time', lambda time=time: time)
    rewrites.write(tmp_path / name, rows)
    written.append((tmp_path / name).read_bytes())
  assert written[0] == written[1]
