"""Small own data for the tests of benches."""

import json
import random
from pathlib import Path

WORDS = [
  'list',
  'file',
  'name',
  'of',
  'the',
  'returns',
  'a',
  'number',
  'that',
  'is',
  'not',
  'sorted',
  'in',
  'order',
  'str',
  'int',
  'dict',
]
KINDS = ('clicks', 'judgements', 'candidates', 'test')


def write(folder: Path) -> None:
  """A JSON lines file of each kind: 64 clicks, 32 queries of 6 documents."""
  rng = random.Random(0)
  words = lambda low, high: ' '.join(rng.choices(WORDS, k=rng.randint(low, high)))  # noqa: E731

  def doc(i, n, kind):
    row = {'query_id': f'q{i}', 'query': f'{i} query {i}', 'doc_id': f'd{n}', 'title': words(1, 3)}
    row['summary'] = words(2, 14)
    return row if kind == 'candidates' else row | {'label': n % 3}

  clicks = [
    {'query': words(2, 5), 'title': words(1, 3), 'summary': words(2, 14)} for _ in range(64)
  ]
  for kind in KINDS:
    pairs = [doc(i, n, kind) for i in range(32) for n in range(6)]
    rows = clicks if kind == 'clicks' else pairs
    (folder / f'{kind}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def addresses(folder: Path) -> dict[str, str]:
  return {kind: f'jsonl:{folder}/{kind}.jsonl' for kind in KINDS}
