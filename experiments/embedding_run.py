"""The run of a ready embedding model over an address's documents: a ranker that is not ours.

python experiments/embedding_run.py python_docs: runs/embedding.run --depth 20 --queries 150
python experiments/embedding_run.py jsonl:runs/python.jsonl runs/embedding_test.run --kind test

The score is the cosine of the vectors of query and document, here of all-MiniLM-L6-v2, which its
authors trained on a billion pairs. The run that a reranker's own program wrote serves as well:
configs take a run as data.teachers = ('trec:runs/embedding.run',), and as a row by evaluate.runs.
"""

import argparse
import itertools
from pathlib import Path

from disranker_jax.data import sources
from disranker_jax.evaluation import runs
from disranker_jax.rewriting.embedder import Embedder

QUERIES = 64  # whose documents are embedded together


def scored(groups, embed):
  """(query_id, {doc_id: cosine}) of each query."""
  while part := list(itertools.islice(groups, QUERIES)):
    queries_QD = embed([group.query for group in part])
    vectors_XD = iter(embed([f'{d.title}: {d.summary}' for group in part for d in group.docs]))
    for group, query_D in zip(part, queries_QD, strict=True):
      yield group.query_id, {doc.doc_id: float(query_D @ next(vectors_XD)) for doc in group.docs}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('source', help='an address')
  parser.add_argument('out', type=Path)
  parser.add_argument('--kind', choices=('candidates', 'judgements', 'test'), default='candidates')
  parser.add_argument('--depth', type=int, default=0)
  parser.add_argument('--model', default='minilm-l6')
  parser.add_argument('--queries', type=int, default=0, help='so many; 0: all')
  parser.add_argument('--max-len', type=int, default=0, help='of a text; 0: as the model says')
  args = parser.parse_args()
  args.out.parent.mkdir(parents=True, exist_ok=True)
  groups = sources.read(args.source, args.kind, depth=args.depth)
  embed = Embedder(args.model, args.max_len)
  found = scored(itertools.islice(groups, args.queries or None), embed)
  runs.write_run(args.out, found, embed.name)


if __name__ == '__main__':
  main()
