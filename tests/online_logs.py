"""A small log of an online test in both forms, for the tests of reading and of the command."""

import gzip
import json
import random

ROW = {
  'user': 'u1',
  'day': '2024-05-01',
  'bucket': 'control',
  'query': 'red fox',
  'clicks': 1,
  'dwell': 12.5,
  'query_changed': False,
}
PAGE = {'event': 'impression', 'page': 'p1', 'user': 'u1', 'day': '2024-05-01', 'bucket': 'b'}


def pages(count=400, seed=0):
  """Wide rows of a small test; users return, some pages have no click, some several."""
  rng = random.Random(seed)
  rows = []
  for _ in range(count):
    user = rng.randrange(60)
    clicks = rng.choice([0, 0, 1, 1, 2, 3])
    rows.append(
      {
        'user': f'u{user}',
        'day': f'2024-05-{rng.randrange(1, 8):02}',
        'bucket': ('control', 'new')[user % 2],
        'clicks': clicks,
        'dwell': [round(rng.expovariate(1 / 30), 2) for _ in range(clicks)],
        'query_changed': rng.random() < 0.25,
      }
    )
  return rows


def as_events(rows):
  """The same as single events."""
  for number, row in enumerate(rows):
    page = {'page': f'p{number}'}
    yield page | {'event': 'impression'} | {k: row[k] for k in ('user', 'day', 'bucket')}
    for seconds in row['dwell']:
      yield page | {'event': 'click'}
      if seconds is not None:
        yield page | {'event': 'dwell', 'dwell': seconds}
    if row['query_changed']:
      yield page | {'event': 'query_change'}


def write(path, rows):
  text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  path.write_bytes(gzip.compress(text) if path.suffix == '.gz' else text)
  return str(path)
