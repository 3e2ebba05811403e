"""Re-ranks documents for a query with an exported model: `disranker rerank`."""

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path

import disranker_jax
from disranker_jax import escaping
from disranker_jax.commands.common import Parser
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError

FIRST_STAGE = 50


def parse_args(argv=None) -> argparse.Namespace:
  example = "--model runs/quickstart/export/student --query 'sort a list'"
  parser = Parser('rerank', __doc__, example)
  parser.add_argument('--model', required=True, type=Path, help='an exported model folder')
  parser.add_argument('--query', required=True, help='what to search for')
  parser.add_argument(
    '--docs', type=Path, help='JSON lines of doc_id, title, summary; default: search python_docs'
  )
  parser.add_argument('--top', type=int, default=10, help='documents to show; 0: all')
  parser.add_argument('--json', action='store_true', help='print a list of doc_id, score, rank')
  return parser.parse_args(argv)


def first_stage(query: str):
  """The documents of python_docs that BM25 ranks highest, best first."""
  from disranker_jax.data import python_docs
  from disranker_jax.data.first_stage import BM25

  pages = python_docs.documents()
  return [pages[i] for i, _ in BM25(pages).top([query], FIRST_STAGE)[0]]


def rank(model: Path, query: str, docs) -> list[tuple[object, float]]:
  """(document, raw score), best first; ties by descending document id, as in evaluation."""
  docs = sorted(docs, key=lambda doc: doc.doc_id, reverse=True)
  return [(docs[i], score) for i, score in disranker_jax.load(model).rank(query, docs)]


def show(ranked, first: dict[str, int] | None) -> None:
  """Prints rank, score, id, the first stage's rank, and the start of the summary."""
  for position, (doc, score) in enumerate(ranked, 1):
    was = f'  (BM25: {first[doc.doc_id]})' if first else ''
    print(f'{position:3}. {score:8.3f}  {escaping.line(doc.doc_id)}{was}')
    if text := textwrap.shorten(doc.summary, 100, placeholder='...'):
      print(f'               {escaping.line(text)}')


def main(argv=None) -> None:
  args = parse_args(argv)
  if not args.query.strip():
    raise UserError('--query: is empty')
  if args.top < 0:
    raise UserError('--top: must be 0 (all) or more')
  runtime.prepare()
  if args.docs:
    from disranker_jax.data import sources

    docs = list(sources.documents(args.docs))
  else:
    docs = first_stage(args.query)
  if not docs:
    raise UserError(f'no document matches {args.query!r}; try other words or give --docs')
  begin = time.monotonic()
  ranked = rank(args.model, args.query, docs)[: args.top or None]
  if args.json:
    rows = [{'doc_id': d.doc_id, 'score': s, 'rank': i} for i, (d, s) in enumerate(ranked, 1)]
    print(json.dumps(rows, indent=2))
    return
  show(ranked, None if args.docs else {d.doc_id: i for i, d in enumerate(docs, 1)})
  seconds = time.monotonic() - begin
  print(f'{len(docs)} documents in {seconds:.1f} s, including loading', file=sys.stderr)
