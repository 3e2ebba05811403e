"""Eight documents of each test query as a JSONL file, as many as the paper's test has.

python experiments/eight_documents.py python_docs: runs/python.jsonl --queries 100

All pairs of eight documents are 56 prompts per query, of a pool of 40 they are 1,560. A first
stage's list gives its best eight. --judged takes the judged documents (pool=judged) in the first
stage's order, and eight evenly spaced ones of them. Labels play no part in the choice. A config
takes the file as

  c.data.test = 'jsonl:runs/python.jsonl'
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from disranker_jax.data import sources
from disranker_jax.data.records import Document, Group

UNRANKED = ('doc_id', 'title', 'summary', 'label')
FIELDS = (*UNRANKED, 'rank', 'score')


def eight(group: Group, count: int, *, spread: bool) -> list[Document]:
  """`count` of the documents to re-rank: the first, or some of every depth; unranked ones last."""
  docs = [doc for doc in group.docs if doc.in_pool]
  docs.sort(key=lambda doc: (doc.rank or np.inf, doc.doc_id))
  count = min(count, len(docs))
  places = np.linspace(0, len(docs) - 1, count).round().astype(int) if spread else range(count)
  return [docs[i] for i in places]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('source', help='an address of test data')
  parser.add_argument('out', type=Path)
  parser.add_argument('--judged', action='store_true', help='the source has pool=judged')
  parser.add_argument('--documents', type=int, default=8)
  parser.add_argument('--queries', type=int, default=0, help='so many; 0: all')
  args = parser.parse_args()
  args.out.parent.mkdir(parents=True, exist_ok=True)
  groups = itertools.islice(sources.read(args.source, 'test'), args.queries or None)
  with args.out.open('w', encoding='utf-8') as file:
    for group in groups:
      for doc in eight(group, args.documents, spread=args.judged):
        row = {'query_id': group.query_id, 'query': group.query}
        fields = FIELDS if doc.rank else UNRANKED
        row |= {name: getattr(doc, name) for name in fields}
        file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()
