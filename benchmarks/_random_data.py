"""Records for benches of random ids: their texts are not read, only counted and shuffled.

They are made in a second, where preparing Python's documentation takes five to ten.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from disranker_jax.data import sources

QUERIES, DOCUMENTS = 512, 20


def addresses(folder: Path) -> dict[str, str]:
  """{kind: address of its file in the folder}; writes the files that are missing."""
  folder.mkdir(parents=True, exist_ok=True)
  for kind in sources.KINDS:
    file = folder / f'{kind}.jsonl'
    if not file.exists():
      file.write_text(''.join(json.dumps(row) + '\n' for row in rows(kind)))
  return {kind: f'jsonl:{folder}/{kind}.jsonl' for kind in sources.KINDS}


def rows(kind: str) -> Iterator[dict]:
  """The same rows each time: queries of as many documents, labels from 0 to 3."""
  for i in range(QUERIES):
    for n in range(DOCUMENTS):
      row = {'query': f'query {i}', 'title': f'title {n}', 'summary': f'summary {i} {n}'}
      if kind != 'clicks':
        row |= {'query_id': f'q{i}', 'doc_id': f'd{i}.{n}', 'rank': n + 1}
      yield row if kind in ('clicks', 'candidates') else row | {'label': (i + n) % 4}
