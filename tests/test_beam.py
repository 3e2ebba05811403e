"""Apache Beam prepares the same data as one machine; skipped if Beam is not installed."""

import dataclasses
import json
import random

import pytest

from disranker_jax.data import preparing, store
from disranker_jax.data.negatives import Negatives
from disranker_jax.data.preparing import Job
from disranker_jax.data.teacher_scores import Teachers
from disranker_jax.errors import UserError

pytest.importorskip('apache_beam', reason="needs apache-beam: pip install -e '.[beam]'")
from disranker_jax.data import beam


def rows_of(queries=25):
  rng = random.Random(0)
  rows = [
    {'query_id': f'q{q}', 'query': f'query {q}', 'doc_id': f'd{d}', 'title': 'ü',
     'summary': f's{d}', 'label': (q + d) % 3, 'rank': d + 1}
    for q in range(queries)
    for d in range(rng.randrange(2, 9))
  ]  # fmt: skip
  rows += [rows[3] | {'label': -1}, rows[4], rows[5] | {'title': 'other'}]
  rows += [rows[7] | {'query': 'other', 'doc_id': 'x'}]
  rng.shuffle(rows)
  return rows


def write(folder, rows, parts=3):
  for i in range(parts):
    text = ''.join(json.dumps(row) + '\n' for row in rows[i::parts])
    (folder / f'part-{i}.jsonl').write_text(text)
  return f'jsonl:{folder}/part-*.jsonl'


def job(tmp_path, address, kind, name, **options):
  options = {'on_bad_row': 'quarantine'} | options
  return Job(address, kind, tmp_path / name, tmp_path / f'{name}.bad.jsonl', **options)


@pytest.mark.parametrize('kind', ['clicks', 'judgements', 'test'])
def test_the_same_records_and_bad_rows_as_on_one_machine(tmp_path, kind):
  address = write(tmp_path, rows_of())
  (tmp_path / 'part-9.jsonl').touch()
  one = preparing.prepare(job(tmp_path, address, kind, 'one'))
  many = beam.prepare(job(tmp_path, address, kind, 'many'), 'DirectRunner')
  assert many.notes.pop(f'file without rows skipped: {tmp_path}/part-9.jsonl') == 1
  assert dataclasses.replace(many, wall_s=0.0) == dataclasses.replace(one, wall_s=0.0)
  found = [sorted(map(repr, store.open(kind, tmp_path / name))) for name in ('one', 'many')]
  assert found[0] == found[1] and len(found[0]) == one.records
  if one.quarantined:
    lines = [
      sorted((tmp_path / f'{n}.bad.jsonl').read_text().splitlines()) for n in ('one', 'many')
    ]
    assert lines[0] == lines[1]
  assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_negatives_are_those_of_one_machine(tmp_path):
  rows = [row for row in rows_of() if row['query'] != 'other' and row['label'] >= 0]
  rows = list({(row['query_id'], row['doc_id']): row for row in rows}.values())
  for row in rows[::2]:
    del row['label']
  address = write(tmp_path, rows)
  options = {'changes': (Negatives(2),), 'read_as': 'pooled'}
  preparing.prepare(job(tmp_path, address, 'judgements', 'one', **options))
  beam.prepare(job(tmp_path, address, 'judgements', 'many', **options), 'DirectRunner')
  found = [set(map(repr, store.open('judgements', tmp_path / n))) for n in ('one', 'many')]
  assert found[0] == found[1]


def test_mistakes_are_one_line_and_leave_nothing(tmp_path):
  address = write(tmp_path, rows_of())
  for task, says in [
    (job(tmp_path, address, 'judgements', 'x', on_bad_row='error'), r'part-\d\.jsonl:\d+:'),
    (job(tmp_path, 'python_docs:', 'test', 'x'), 'is not a jsonl: or parquet: address'),
    (job(tmp_path, address, 'test', 'x', limit=3), 'does not support --limit'),
    (
      job(tmp_path, address, 'test', 'x', changes=(Teachers([address], drop=True),)),
      'support .* --teachers;',
    ),
    (job(tmp_path, f'jsonl:{tmp_path}/none', 'test', 'x'), 'does not exist'),
  ]:
    with pytest.raises(UserError, match=says) as caught:
      beam.prepare(task, 'DirectRunner')
    assert '\n' not in str(caught.value)
  assert not (tmp_path / 'x').exists()
  assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]
