"""Event logs of online tests: long equals wide, what is counted, and errors with their place."""

import collections
import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from online_logs import PAGE, ROW, as_events, pages, write

from disranker_jax.data import parquet_pages
from disranker_jax.data.records import BadRows
from disranker_jax.errors import UserError
from disranker_jax.evaluation.online import analysis, events, users


def seen(log):
  """A log without the order of users: totals of each bucket, sorted."""
  found = {}
  for name, bucket in log.buckets.items():
    table = np.stack(list(bucket.totals().values()), 1)
    found[name] = sorted(tuple(np.round(row, 6)) for row in table)
  return found, log.days


def refused(tmp_path, *rows, **options):
  with pytest.raises(UserError) as caught:
    events.read([write(tmp_path / 'log.jsonl', rows)], **options)
  assert '\n' not in str(caught.value)
  return str(caught.value).removeprefix(f'{tmp_path}/')


class TestForms:
  @pytest.mark.parametrize('seed', range(3))
  def test_long_is_wide_in_any_order_and_over_several_files(self, tmp_path, seed):
    rows = pages(seed=seed)
    wide = events.read([write(tmp_path / 'wide.jsonl', rows)])
    long = list(as_events(rows))
    straight = events.read([write(tmp_path / 'long.jsonl', long)])
    random.Random(seed).shuffle(long)
    write(tmp_path / 'part-1.jsonl', long[:300])
    write(tmp_path / 'part-2.jsonl.gz', long[300:])
    parts = events.read([str(tmp_path / 'part-*')])
    assert seen(wide) == seen(straight) == seen(parts)

  def test_parquet_is_jsonl(self, tmp_path):
    rows = pages()
    wide = events.read([write(tmp_path / 'wide.jsonl', rows)])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'wide.parquet', row_group_size=99)
    dates = pa.Table.from_pylist(rows)
    day = dates['day'].cast(pa.timestamp('s')).cast(pa.date32())
    dates = dates.set_column(dates.schema.get_field_index('day'), 'day', day)
    pq.write_table(dates, tmp_path / 'dates.parquet')
    place = dates.schema.get_field_index('day')
    time = day.cast(pa.timestamp('s')).cast(pa.timestamp('ns'))
    time = pc.add(time, pa.scalar(12 * 3600 * 10**9 + 1, pa.duration('ns')))  # not whole us
    times = dates.set_column(place, 'day', time)
    pq.write_table(times, tmp_path / 'times.parquet')
    for name in ('wide', 'dates', 'times'):
      assert seen(events.read([str(tmp_path / f'{name}.parquet')])) == seen(wide), name
    # A column that only some events have: from_pylist takes the names of the first row.
    names = ['event', 'page', 'user', 'day', 'bucket', 'dwell']
    full = [{n: row.get(n) for n in names} for row in as_events(rows)]
    pq.write_table(pa.Table.from_pylist(full), tmp_path / 'long.parquet')
    assert seen(events.read([str(tmp_path / 'long.parquet')])) == seen(wide)

  def test_chunks_do_not_matter(self, tmp_path, monkeypatch):
    rows = pages()
    files = [
      write(tmp_path / 'wide.jsonl', rows),
      write(tmp_path / 'long.jsonl', as_events(rows)),
    ]
    whole = [seen(events.read([file])) for file in files]
    monkeypatch.setattr(users, 'ROWS', 7)
    monkeypatch.setattr(users, 'COMPACT', 20)
    assert [seen(events.read([file])) for file in files] == whole

  def test_totals_are_those_counted_by_hand(self, tmp_path):
    rows = pages()
    log = events.read([write(tmp_path / 'wide.jsonl', rows)])
    for name, bucket in log.buckets.items():
      mine = [row for row in rows if row['bucket'] == name]
      by_user = collections.defaultdict(int)
      for row in mine:
        by_user[row['user']] += row['clicks']
      value = analysis.analyse(log)['buckets'][name]
      assert (value['users'], value['pages']) == (len(by_user), len(mine))
      found = {key: metric['value'] for key, metric in value['metrics'].items()}
      assert found == pytest.approx(
        {
          'pagectr': sum(row['clicks'] > 0 for row in mine) / len(mine),
          'userctr': sum(count > 0 for count in by_user.values()) / len(by_user),
          'changequery': sum(row['query_changed'] for row in mine) / len(mine),
          'dwell': sum(sum(row['dwell']) for row in mine) / sum(row['clicks'] for row in mine),
        }
      )
      early = [row for row in mine if row['day'] <= '2024-05-03']
      totals = bucket.totals(3)
      assert totals['pages'].sum() == len(early)
      assert len(totals['pages']) == len({row['user'] for row in early})

  def test_clicks_and_dwell_may_be_numbers_or_lists(self, tmp_path):
    number = write(tmp_path / 'a.jsonl', [ROW | {'clicks': 2, 'dwell': 30}])
    listed = write(tmp_path / 'b.jsonl', [ROW | {'clicks': ['d1', 'd7'], 'dwell': [10, 20]}])
    partly = write(tmp_path / 'c.jsonl', [ROW | {'clicks': 2, 'dwell': [10, None]}])
    assert seen(events.read([number])) == seen(events.read([listed]))
    totals = events.read([partly]).buckets['control'].totals()
    assert (totals['clicks'], totals['measured'], totals['dwell']) == (2, 1, 10)

  def test_unknown_is_not_zero(self, tmp_path):
    rows = [ROW | {'query_changed': True}, ROW | {'query_changed': None, 'dwell': None}]
    totals = events.read([write(tmp_path / 'log.jsonl', rows)]).buckets['control'].totals()
    assert (totals['known'], totals['changed'], totals['measured']) == (1, 1, 1)
    assert (totals['pages'], totals['clicks']) == (2, 2)

  def test_a_long_log_without_query_changes_has_none_recorded(self, tmp_path):
    log = events.read([write(tmp_path / 'log.jsonl', [PAGE])])
    result = analysis.analyse(log)
    assert result['buckets']['b']['metrics']['changequery'] == {
      'value': None,
      'standard_error': None,
      'recorded': 0,
    }
    assert result['buckets']['b']['metrics']['pagectr']['value'] == 0

  def test_a_page_has_one_query_change_at_most(self, tmp_path):
    change = {'event': 'query_change', 'page': 'p1'}
    log = events.read([write(tmp_path / 'log.jsonl', [PAGE, change, change])])
    assert log.buckets['b'].totals()['changed'] == 1

  def test_dwell_is_capped_for_each_click(self, tmp_path):
    rows = [ROW | {'clicks': 2, 'dwell': [5, 9000]}, ROW | {'clicks': 2, 'dwell': 9000}]
    wide = events.read([write(tmp_path / 'log.jsonl', rows)], max_dwell=60)
    assert wide.buckets['control'].totals()['dwell'] == 5 + 60 + 120
    rows = [PAGE, *({'event': e, 'page': 'p1', 'dwell': 9000} for e in ('click', 'dwell'))]
    long = events.read([write(tmp_path / 'long.jsonl', rows)], max_dwell=60)
    assert long.buckets['b'].totals()['dwell'] == 60

  def test_users_of_several_buckets_are_left_out_and_counted(self, tmp_path):
    rows = [ROW | {'user': f'u{i}', 'bucket': 'ab'[i % 2]} for i in range(6)]
    both = [ROW | {'user': 'u0', 'bucket': 'b', 'day': '2024-05-09'}]
    log = events.read([write(tmp_path / 'log.jsonl', rows + both)])
    assert log.users_in_several_buckets == 1
    assert {name: bucket.users for name, bucket in log.buckets.items()} == {'a': 2, 'b': 3}
    with pytest.raises(UserError, match='all its users are in other buckets'):
      only = write(tmp_path / 'only.jsonl', [ROW | {'bucket': 'a'}, ROW | {'bucket': 'b'}])
      analysis.analyse(events.read([only]), control='a')

  def test_a_number_and_its_text_are_one_user(self, tmp_path):
    log = events.read([write(tmp_path / 'log.jsonl', [ROW | {'user': 7}, ROW | {'user': '7'}])])
    assert log.buckets['control'].users == 1


class TestBadRows:
  @pytest.mark.parametrize(
    ('change', 'field', 'what'),
    [
      ({'user': None}, 'user', 'is missing'),
      ({'user': ' '}, 'user', "is ' '"),
      ({'user': True}, 'user', 'is True'),
      ({'user': '\ud800'}, 'user', 'surrogate'),
      ({'bucket': ['a']}, 'bucket', "is ['a']"),
      ({'day': None}, 'day', 'is missing'),
      ({'day': '01.05.2024'}, 'day', 'YYYY-MM-DD'),
      ({'day': '2024-02-30'}, 'day', 'YYYY-MM-DD'),
      ({'day': 20240501}, 'day', 'YYYY-MM-DD'),
      ({'clicks': None}, 'clicks', 'is missing'),
      ({'clicks': -1}, 'clicks', 'is -1'),
      ({'clicks': 1.5}, 'clicks', 'is 1.5'),
      ({'clicks': True}, 'clicks', 'is True'),
      ({'dwell': -3}, 'dwell', 'is -3'),
      ({'dwell': math.nan}, 'dwell', 'is nan'),
      ({'dwell': '3'}, 'dwell', "is '3'"),
      ({'dwell': [1, 2]}, 'dwell', '2 entries for 1 click'),
      ({'clicks': 0}, 'dwell', 'without a click'),
      ({'query_changed': 'no'}, 'query_changed', "is 'no'"),
      ({'query_changed': 1}, 'query_changed', 'is 1'),
      ({'event': 'click'}, 'event', 'not in the first row'),
    ],
  )
  def test_wide(self, tmp_path, change, field, what):
    message = refused(tmp_path, ROW, ROW | change)
    assert message.startswith(f'log.jsonl:2:{field}: ') and what in message and ';' in message

  @pytest.mark.parametrize(
    ('rows', 'line', 'field', 'what'),
    [
      ([ROW], 2, 'event', 'is missing'),
      ([{'event': 'view', 'page': 'p1'}], 2, 'event', "is 'view'"),
      ([{'event': 'click'}], 2, 'page', 'is missing'),
      ([PAGE | {'page': 'p2', 'bucket': None}], 2, 'bucket', 'is missing'),
      ([{'event': 'dwell', 'page': 'p1'}], 2, 'dwell', 'is missing'),
      ([{'event': 'click', 'page': 'p1'}, PAGE], 3, 'page', "'p1' has a second impression"),
      ([{'event': 'click', 'page': 'x'}] * 3, 2, 'page', "'x' has no impression"),
      ([{'event': 'dwell', 'page': 'p1', 'dwell': 1}], 1, 'page', 'more dwell events than clicks'),
    ],
  )
  def test_long(self, tmp_path, rows, line, field, what):
    message = refused(tmp_path, PAGE, *rows)
    assert message.startswith(f'log.jsonl:{line}:{field}: ') and what in message

  def test_an_orphan_is_named_with_its_own_file(self, tmp_path):
    files = [
      write(tmp_path / 'a.jsonl', [PAGE]),
      write(tmp_path / 'b.jsonl', [PAGE | {'page': 'p2'}, {'event': 'click', 'page': 'p3'}]),
    ]
    with pytest.raises(UserError, match=r"b\.jsonl:2:page: 'p3' has no impression"):
      events.read(files)

  def test_in_quarantine_the_good_rows_count(self, tmp_path):
    bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
    rows = [ROW, ROW | {'clicks': -1}, ROW | {'user': 'u2'}]
    log = events.read([write(tmp_path / 'log.jsonl', rows)], bad_rows=bad_rows)
    assert (log.rows, log.quarantined, log.buckets['control'].users) == (3, 1, 2)

    bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
    dwell = {'event': 'dwell', 'page': 'p2', 'dwell': 1}
    rows = [PAGE, PAGE | {'page': 'p2'}, dwell, PAGE | {'user': 'u9'}]
    rows.append({'event': 'click', 'page': 'gone'})
    log = events.read([write(tmp_path / 'log.jsonl', rows)], bad_rows=bad_rows)
    assert log.quarantined == 3
    assert {k: v.tolist() for k, v in log.buckets['b'].totals().items() if v.any()} == {
      'pages': [1]
    }
    lines = [json.loads(line)['line'] for line in (tmp_path / 'bad.jsonl').open()]
    assert sorted(lines) == [2, 4, 5]

  def test_rows_of_parquet_are_counted_over_the_whole_file(self, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_pages, 'BATCH_ROWS', 10)
    pages = [ROW] * 23 + [ROW | {'clicks': -1}]
    pq.write_table(pa.Table.from_pylist(pages), tmp_path / 'log.parquet')
    with pytest.raises(UserError, match=r'log\.parquet:24:clicks: is -1'):
      events.read([str(tmp_path / 'log.parquet')])

  def test_files_that_are_none(self, tmp_path, capsys):
    def message(*patterns):
      with pytest.raises(UserError) as caught:
        events.read([str(p) for p in patterns])
      return str(caught.value)

    (tmp_path / 'no.parquet').write_text('hello')
    pq.write_table(pa.table({'user': pa.array([], pa.string())}), tmp_path / 'empty.parquet')
    good = write(tmp_path / 'log.jsonl', [ROW])
    assert seen(events.read([str(tmp_path / 'empty.parquet'), good])) == seen(events.read([good]))
    assert 'empty.parquet: has no rows; skipped' in capsys.readouterr().err
    assert 'does not exist' in message(tmp_path / 'gone.parquet')
    assert 'does not exist' in message(tmp_path / 'gone.jsonl')
    assert 'cannot be read as Parquet' in message(tmp_path / 'no.parquet')
    assert 'no rows' in message(tmp_path / 'empty.parquet')
    assert 'named twice' in message(good, tmp_path / '*.jsonl')
    assert 'row: is not an object' in refused(tmp_path, [1])
    bad = BadRows('quarantine', tmp_path / 'bad')
    assert 'no usable row' in refused(tmp_path, {'user': 1}, bad_rows=bad)
