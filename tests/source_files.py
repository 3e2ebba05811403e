"""Files that the tests of sources read, and the message of a source that is refused."""

import gzip
import json

import pytest

from disranker_jax.data.sources import read
from disranker_jax.errors import UserError

ROW = {
  'query_id': 'q1',
  'query': 'red fox',
  'doc_id': 'd1',
  'title': 'T',
  'summary': '',
  'label': 1,
}


def jsonl(*rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def error(address, kind='judgements', **options):
  with pytest.raises(UserError) as caught:
    list(read(address, kind, **options))
  assert '\n' not in str(caught.value)
  return str(caught.value)


QRELS = 'q1 0 d1 2\nq1 0 d4 1\nq2\t0\td2\t0\n'
RUN = """
q1 Q0 d2 0 9.5 x
q1 Q0 d1 2 7 x
q1 Q0 d3 1 7 x
q2 Q0 d1 1 3 x
q3 Q0 d3 1 3 x
"""


def trec_folder(tmp_path):
  """A small collection with a first stage."""
  folder = tmp_path / 'trec'
  folder.mkdir()
  (folder / 'queries.tsv').write_text('q1\tred fox\nq2\tblue dog\nq3\tgreen cat\n')
  docs = [{'doc_id': f'd{i}', 'title': f't{i}', 'summary': 's'} for i in range(1, 5)]
  (folder / 'docs.jsonl.gz').write_bytes(gzip.compress(jsonl(*docs)))
  (folder / 'qrels.txt').write_text(QRELS)
  (folder / 'qrels.dev.txt').write_text('q3 0 d1 1\n')
  (folder / 'bm25.run.gz').write_bytes(gzip.compress(RUN.encode()))
  return folder


def table(address, kind, **options):
  return {
    group.query_id: [(doc.doc_id, doc.label, doc.rank, doc.in_pool) for doc in group.docs]
    for group in read(address, kind, **options)
  }
