"""Broken files of every kind: each row is a record or a bad row, each file whole or one clear line.

`python -m pytest tests/test_fuzz_sources.py -m slow` tries 10,000 random files; by default it is
the same 400 every time.
"""

import collections
import gzip
import io
import json
import pathlib
import shutil
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disranker_jax.data import row_files, row_formats, sources
from disranker_jax.data.grouping import UNRANKED
from disranker_jax.data.records import REPEATED, BadRow, BadRows
from disranker_jax.errors import UserError

KINDS = ('clicks', 'judgements', 'candidates', 'test', 'scores')
ROW = {
  'query_id': 'q1', 'query': 'red fox', 'doc_id': 'd1', 'title': 'T', 'summary': 's', 'label': 1,
  'rank': 1, 'score': 0.5, 'count': 2,
}  # fmt: skip
TEVATRON = {
  'query_id': 'q1', 'query': 'red fox',
  'positive_passages': [{'docid': 'a', 'title': 'T', 'text': 's', 'score': 2}],
  'negative_passages': [{'docid': 'b', 'title': '', 'text': 's', 'score': 0.5}],
}  # fmt: skip
FLAG = {
  'query': 'red fox',
  'pos': ['a'],
  'neg': ['b', 'c'],
  'pos_scores': [2],
  'neg_scores': [1, 0],
}
TREC = {
  'queries.tsv': [f'q{i}\tquery {i}' for i in range(4)],
  'docs.jsonl': [json.dumps({'doc_id': f'd{i}', 'title': 't', 'summary': ''}) for i in range(5)],
  'qrels.txt': [f'q{i % 4} 0 d{i} {i % 3}' for i in range(5)],
  'bm25.run': [f'q{i % 4} Q0 d{i % 5} {i} {9 - i} x' for i in range(8)],
  'clicks.jsonl': [json.dumps(ROW)] * 2,
}
MARGINS = ['2.5 1 q1 d1 d2', '2.5 -1e3 q1 d1 d3', '0 1 q2 d1 d2']

COLUMNS = ['-1', 'nan', '1.5', 'inf', '1_0', 'x', '9' * 5000, '0', '\xa0']
SCALARS = (
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
  | st.sampled_from([-1, 0.5, '', ' ', 'a b', '\ud800', '\x00', float('nan'), 1 << 40, 10**400])
)  # fmt: skip
VALUES = st.recursive(
  SCALARS,
  lambda inner: (
    st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
  ),
  max_leaves=4,
)


@st.composite
def cut(draw, line: bytes) -> bytes:
  """A line with some bytes lost, put in or exchanged; still one line."""
  at = draw(st.integers(0, len(line)))
  line = line[:at] + draw(st.binary(max_size=4)) + line[at + draw(st.integers(0, 4)) :]
  return line.replace(b'\n', b' ').replace(b'\r', b' ')


@st.composite
def json_lines(draw) -> list[bytes]:
  lines = []
  for _ in range(draw(st.integers(1, 6))):
    row = dict(draw(st.sampled_from([ROW, ROW, TEVATRON, FLAG])))
    for name in ('query_id', 'doc_id'):
      if name in row:
        row[name] = draw(st.sampled_from('abc'))
    change = draw(st.sampled_from(['nothing', 'value', 'delete', 'inner', 'bytes']))
    field = draw(st.sampled_from([*row, 'extra']))
    if change == 'value':
      row[field] = draw(VALUES)
    elif change == 'delete':
      row.pop(field, None)
    elif change == 'inner' and isinstance(row.get(field), list):
      row[field] = [draw(VALUES), *row[field]]
    line = json.dumps(row, ensure_ascii=draw(st.booleans())).encode('utf-8', 'surrogatepass')
    lines.append(draw(cut(line)) if change == 'bytes' else line)
  return lines


@st.composite
def text_lines(draw, lines: list[str]) -> list[bytes]:
  """Rows of a text file, one or two of them cut, repeated, lost or with another column."""
  rows = [line.encode() for line in lines]
  for _ in range(draw(st.integers(1, 2))):
    i = draw(st.integers(0, len(rows) - 1))
    change = draw(st.sampled_from(['bytes', 'twice', 'lost', 'column', 'blank']))
    if change == 'bytes':
      rows[i] = draw(cut(rows[i]))
    elif change == 'twice':
      rows.append(rows[i])
    elif change == 'lost' and len(rows) > 1:
      del rows[i]
    elif change == 'column' and (columns := rows[i].split()):
      at = draw(st.integers(0, len(columns) - 1))
      value = draw(
        st.sampled_from(['-1', 'nan', '1.5', 'inf', '1_0', 'x', '9' * 5000, '0', '\xa0'])
      )
      columns[at] = value.encode()
      rows[i] = b'\t'.join(columns)
    else:
      rows[i] = b' '
  return rows


def rows_of(lines: list[bytes]) -> int:
  return sum(1 for i, line in enumerate(lines) if (line[3:] if _bom(i, line) else line).strip())


def _bom(i: int, line: bytes) -> bool:
  return i == 0 and line.startswith(b'\xef\xbb\xbf')


def read(address: str, kind: str, folder: pathlib.Path):
  """(records or None, bad rows by file, their BadRows); None for one clear line."""
  bad_rows = BadRows('quarantine', folder / 'bad.jsonl')
  try:
    records = list(sources.read(address, kind, depth=1000, bad_rows=bad_rows))
  except UserError as error:
    assert '\n' not in str(error) and str(folder) in str(error), error
    return None, {}, bad_rows
  entries = [json.loads(line) for line in bad_rows.path.read_text().splitlines()]
  assert len(entries) == bad_rows.quarantined
  assert all(
    entry['reason'].startswith(entry['field']) and '; ' in entry['reason'] for entry in entries
  )
  files = collections.Counter(pathlib.Path(entry['file']).name for entry in entries)
  if not entries:
    assert list(map(repr, sources.read(address, kind, depth=1000))) == list(map(repr, records))
  else:
    with pytest.raises(UserError):
      list(sources.read(address, kind, depth=1000))
  return records, files, bad_rows


def size(records: list, kind: str) -> int:
  return len(records) if kind in ('clicks', 'scores') else sum(len(g.docs) for g in records)


def accounted(records: list, kind: str, bad_rows: BadRows) -> int:
  """Rows that are records, bad, repeats of an earlier row, or without the rank of others."""
  notes = bad_rows.notes
  return size(records, kind) + bad_rows.quarantined + notes[REPEATED] + notes[UNRANKED]


def pairs(lines: list[bytes], kind: str) -> int:
  """How many rows a file counts as: one with several documents counts each."""
  total = 0
  for i, line in enumerate(lines):
    line = line.removeprefix(b'\xef\xbb\xbf') if i == 0 else line
    if line.strip():
      try:
        total += len(row_files.made(kind)(line))
      except BadRow:
        total += 1
  return total


def try_json_lines(lines: list[bytes], kind: str, folder: pathlib.Path) -> None:
  (folder / 'a.jsonl').write_bytes(b'\n'.join(lines))
  records, _, bad_rows = read(f'jsonl:{folder}/a.jsonl', kind, folder)
  if records is None:  # an empty file, or one that starts like gzip
    assert rows_of(lines) == 0 or lines[0][:2] == b'\x1f\x8b'
    return
  assert bad_rows.rows_in == pairs(lines, kind) == accounted(records, kind, bad_rows)


def try_gzip(lines: list[bytes], kind: str, damage: int, folder: pathlib.Path) -> None:
  """Cut or damaged gzip: the whole file is refused, unless no byte of its content is lost."""
  text = b'\n'.join(lines)
  data = bytearray(gzip.compress(text, mtime=0))
  at = damage % len(data)
  if damage % 2:
    data = data[:at]
  else:
    data[at] ^= 1 << damage % 8
  (folder / 'a.jsonl.gz').write_bytes(data)
  records, _, bad_rows = read(f'jsonl:{folder}/a.jsonl.gz', kind, folder)
  if records is not None:
    assert gzip.decompress(data) == text  # a bit of the time in the header, or of padding
    assert accounted(records, kind, bad_rows) == bad_rows.rows_in


def try_trec(name: str, lines: list[bytes], kind: str, folder: pathlib.Path) -> None:
  for other, rows in TREC.items():
    (folder / other).write_text('\n'.join(rows))
  (folder / name).write_bytes(b'\n'.join(lines))
  records, bad, bad_rows = read(f'trec:{folder}', kind, folder)
  if records is None:
    assert rows_of(lines) == 0 or lines[0][:2] == b'\x1f\x8b'
    return
  used = {
    'clicks': ['clicks.jsonl'], 'scores': ['bm25.run'],
    'candidates': ['queries.tsv', 'docs.jsonl', 'bm25.run'],
  }.get(kind, ['queries.tsv', 'docs.jsonl', 'qrels.txt', 'bm25.run'])  # fmt: skip
  count = {n: rows_of([row.encode() for row in rows]) for n, rows in TREC.items()}
  count[name] = rows_of(lines)
  if kind == 'clicks':
    assert size(records, kind) == count['clicks.jsonl'] - bad['clicks.jsonl']
  elif len([line for line in lines if len(line.split()) == 5]) == 0:
    assert bad_rows.rows_in == sum(count[n] for n in used)
    rows = {'candidates': 'bm25.run', 'scores': 'bm25.run', 'judgements': 'qrels.txt'}.get(kind)
    if rows and not any(len(line.split()) == 3 for line in lines):
      repeats = bad_rows.notes[REPEATED] if name == rows else 0  # the other files have none
      assert size(records, kind) == count[rows] - bad[rows] - repeats


def try_margins(lines: list[bytes], folder: pathlib.Path) -> None:
  (folder / 'm.tsv').write_bytes(b'\n'.join(lines))
  records, _, bad_rows = read(f'trec:{folder}/m.tsv', 'scores', folder)
  if records is not None:
    assert len(records) + bad_rows.quarantined == bad_rows.rows_in >= rows_of(lines)


def try_parquet(row: dict, damage: int, kind: str, folder: pathlib.Path) -> None:
  try:
    table = pa.Table.from_pylist([row, ROW, row | {'doc_id': 'x'}])
  except (pa.ArrowException, UnicodeEncodeError, OverflowError):
    return
  buffer = io.BytesIO()
  try:
    pq.write_table(table, buffer)
  except pa.ArrowException:  # Parquet cannot store these rows
    return
  data = bytearray(buffer.getvalue())
  if damage:
    data[damage % len(data)] ^= 1 << damage % 8
  (folder / 'a.parquet').write_bytes(data)
  records, _, bad_rows = read(f'parquet:{folder}/a.parquet', kind, folder)
  if records is not None and not damage:
    assert bad_rows.rows_in == 3 == accounted(records, kind, bad_rows)


@st.composite
def attempts(draw):
  """A function that writes a mutated file to a folder and checks what is read from it."""
  kind = draw(st.sampled_from(KINDS))
  what = draw(st.sampled_from(['json', 'json', 'gzip', 'trec', 'trec', 'margins', 'parquet']))
  if what == 'json':
    lines = draw(json_lines())
    return lambda folder: try_json_lines(lines, kind, folder)
  if what == 'gzip':
    lines, damage = draw(json_lines()), draw(st.integers(1, 1 << 20))
    return lambda folder: try_gzip(lines, kind, damage, folder)
  if what == 'margins':
    lines = draw(text_lines(MARGINS))
    return lambda folder: try_margins(lines, folder)
  if what == 'trec':
    name = draw(st.sampled_from(list(TREC)))
    lines = draw(text_lines(TREC[name]))
    return lambda folder: try_trec(name, lines, kind, folder)
  field, value = draw(st.sampled_from(list(ROW))), draw(SCALARS)
  damage = draw(st.just(0) | st.integers(1, 1 << 20))
  return lambda folder: try_parquet(ROW | {field: value}, damage, kind, folder)


def fuzzed(examples: int, **how):
  @settings(
    max_examples=examples,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    **how,
  )
  @given(attempt=attempts())
  def run(attempt):
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
      attempt(folder)
    finally:
      shutil.rmtree(folder)

  return run


def test_any_file_is_records_bad_rows_or_one_clear_line():
  fuzzed(400)()


@pytest.mark.slow
def test_any_of_10_000_files_is_records_bad_rows_or_one_clear_line():
  fuzzed(10_000, derandomize=False)()


def test_the_shapes_that_are_fuzzed_are_good_before_they_are_mutated(tmp_path):
  for kind in KINDS:
    assert all(row_formats.records_of(row, kind) for row in (ROW, TEVATRON, FLAG))
