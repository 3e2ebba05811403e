"""Re-ranks documents for a query with an exported model: `disranker rerank`."""

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path

from disranker_jax.commands.common import guarded
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError

FIRST_STAGE = 50


def parse_args(argv=None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='disranker rerank', description=__doc__)
  parser.add_argument('--model', required=True, type=Path, help='an exported model folder')
  parser.add_argument('--query', required=True, help='what to rank for')
  parser.add_argument(
    '--docs', type=Path, help='JSON lines of doc_id, title, summary; default: search python_docs'
  )
  parser.add_argument('--top', type=int, default=10, help='how many to show (10); 0: all')
  parser.add_argument('--json', action='store_true', help='print a list of doc_id, score, rank')
  return parser.parse_args(argv)


def first_stage(query: str):
  """The documents of python_docs that BM25 ranks first, with their ranks."""
  from disranker_jax.data import python_docs
  from disranker_jax.data.first_stage import BM25

  pages = python_docs.documents()
  return [pages[i] for i, _ in BM25(pages).top([query], FIRST_STAGE)[0]]


def rank(model: Path, query: str, docs) -> list[tuple[object, float]]:
  """(document, raw score), best first; ties by document id, as in evaluation."""
  from disranker_jax.config import model as model_settings
  from disranker_jax.data.records import Group
  from disranker_jax.devices import sharding
  from disranker_jax.models import hf
  from disranker_jax.models.load import open_model
  from disranker_jax.rankers.pointwise import Scorer

  if not (model / 'config.json').is_file():
    raise UserError(f'--model {model}: no config.json there; name an exported model folder')
  lengths = hf.read_config(model).get('disranker_jax', {})
  sizes = {k: lengths[k] for k in ('max_len', 'max_query_len') if k in lengths}
  row_len = sizes.get('max_len', 256)
  side = open_model(model_settings(model=str(model), row_len=row_len, precision='float32', **sizes))
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': -1})
  rows = max(1, min(64, -(-len(docs) // 2)))
  scorer = Scorer(side.network, side.pretrained(0, mesh), side.prompt(), mesh, rows, row_len)
  [(group, scores)] = scorer([Group('', query, tuple(docs))])
  pairs = sorted(zip(group.docs, scores.tolist(), strict=True), key=lambda p: p[0].doc_id)
  return sorted(reversed(pairs), key=lambda p: -p[1])


def show(ranked, first: dict[str, int] | None) -> None:
  """Rank, score, where the first stage had it, title and the start of the summary."""
  for position, (doc, score) in enumerate(ranked, 1):
    was = f'  (BM25: {first[doc.doc_id]})' if first else ''
    print(f'{position:3}. {score:8.3f}  {doc.doc_id}{was}')
    if text := textwrap.shorten(doc.summary, 100, placeholder='...'):
      print(f'               {text}')


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
    raise UserError(f'nothing found for {args.query!r}; try other words or give --docs')
  begin = time.monotonic()
  ranked = rank(args.model, args.query, docs)[: args.top or None]
  if args.json:
    rows = [{'doc_id': d.doc_id, 'score': s, 'rank': i} for i, (d, s) in enumerate(ranked, 1)]
    print(json.dumps(rows, indent=2))
    return
  show(ranked, None if args.docs else {d.doc_id: i for i, d in enumerate(docs, 1)})
  took = time.monotonic() - begin
  print(f'{len(docs)} documents in {took:.1f} s, loading included', file=sys.stderr)


if __name__ == '__main__':
  with guarded():
    main()
