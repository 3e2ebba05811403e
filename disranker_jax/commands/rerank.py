"""Re-ranks documents with an exported model: those of one query, or a whole TREC run.

  --query TEXT   ranks the documents of --docs for one query, and prints them
  --run FILE     re-ranks a first stage's run with the texts of --source, and writes --out. The same
                 command continues what was stopped. Memory does not grow with the run.

Scores are raw: any real number, larger is better. With --fuse they are fused with those of the
first stage, the run's or BM25's, and are from 0 to 1.
"""

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import disranker_jax
from disranker_jax import escaping
from disranker_jax.commands.common import Parser, query_text
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.progress import amount, say

if TYPE_CHECKING:
  from disranker_jax.evaluation.fusion import Fusion

FIRST_STAGE = 50
CARD = 'card'  # --fuse without a weight
RANK_ALL = 1000  # documents that one query ranks without a first stage
OF_QUERY = ('docs', 'top', 'json')
OF_RUN = ('source', 'out', 'missing')


def parse_args(argv=None) -> argparse.Namespace:
  example = "--model runs/quickstart/export/student --query 'sort a list'\n  disranker rerank " + (
    '--model student --run bm25.run.gz --source trec:data/mine --out student.run.gz'
  )
  parser = Parser('rerank', __doc__, example)
  add = parser.add_argument
  add('--model', required=True, type=Path, metavar='DIR', help=(
    'an exported model folder, or the folder or the name of a ready reranker'))  # fmt: skip
  add('--depth', type=int, metavar='N', help=(
    'documents that the model ranks, the first of the run or of BM25; 0: all. Default: all of a '
    f'run; for --query all of up to {RANK_ALL:,} documents, {FIRST_STAGE} of more'))  # fmt: skip
  add('--backend', default='auto', choices=('auto', 'onnx-int8', 'onnx', 'jax'), help=(
    'auto: ONNX Runtime on a CPU, JAX on all accelerators of this machine'))  # fmt: skip
  add('--fast', action='store_true', help='8 bits on a CPU, bfloat16 on an accelerator')
  add('--fuse', nargs='?', const=CARD, metavar='W', help=(
    "rank by the model and the first stage together; W is the model's weight, 0 to 1, by default "
    'the one that the export chose'))  # fmt: skip
  add = parser.add_argument_group('one query').add_argument
  add('--query', type=query_text, help='what to search for')
  add('--docs', metavar='ADDRESS', help=(
    'documents: JSON lines of doc_id, title, summary, or an address such as trec:DIR; default: '
    'python_docs:'))  # fmt: skip
  add('--top', type=int, help='documents to show, 10 if not given; 0: all')
  add('--json', action='store_true', help='print a list of doc_id, score, rank')
  add = parser.add_argument_group('a run').add_argument
  add('--run', type=Path, metavar='FILE', help="the first stage's run, plain or gzip")
  add('--source', metavar='ADDRESS', help=(
    'the texts of its queries and documents, such as trec:DIR or jsonl:FILE'))  # fmt: skip
  add('--out', type=Path, metavar='FILE', help='the re-ranked run; gzip if FILE.gz')
  add('--missing', choices=('error', 'last'), help=(
    'queries and documents without a text: an error, which is the default, or left behind the '
    'others in their old order, and counted'))  # fmt: skip
  args = parser.parse_args(argv)
  if (args.run is None) == (args.query is None):
    raise UserError('give either --query TEXT or --run FILE; see disranker rerank --help')
  check(args)
  return args


def check(args: argparse.Namespace) -> None:
  """Raises: UserError for flags that are wrong or belong to the other form of the command."""
  form, others = ('--query', OF_RUN) if args.run is None else ('--run', OF_QUERY)
  for name in others:
    if getattr(args, name) not in (None, False):
      raise UserError(f'--{name}: cannot be used with {form}; see disranker rerank --help')
  for name in ('depth', 'top'):
    if (getattr(args, name) or 0) < 0:
      raise UserError(f'--{name}: must be 0 (all) or more')
  if args.run is not None and not (args.source and args.out):
    raise UserError(
      '--run: needs --source ADDRESS, with the texts of its queries and documents, and --out FILE'
    )


def fusion_of(model: Path, text: str | None) -> 'Fusion | None':
  """How --fuse fuses; None without it. Raises: UserError for a wrong or missing weight."""
  from disranker_jax.rankers import loaded

  if text is None:
    return None
  weight = None
  if text != CARD:
    try:
      weight = float(text)
    except ValueError:
      raise UserError(f'--fuse {text}: write a number from 0 to 1, or nothing') from None
  recorded = loaded.fusion_of(model)
  found = loaded.weighted(recorded, weight, '--fuse')
  if weight is None:
    say(f'--fuse: {found.text}')
  return found


def first_stage(query: str, docs, depth: int) -> dict[str, float]:
  """{doc_id: score} of the documents that BM25 ranks highest, best first."""
  from disranker_jax.data.first_stage import BM25

  return {docs[i].doc_id: score for i, score in BM25(docs).top([query], depth)[0]}


def rank(
  model: Path, query: str, docs, first: Mapping[str, float] | None = None,
  fusion: 'Fusion | None' = None, **options,
) -> list[tuple[object, float]]:  # fmt: skip
  """(document, score), best first; ties by descending document id, as in evaluation.

  With `fusion` the scores are fused with those of `first`, or with its ranks.
  """
  docs = sorted(docs, key=lambda doc: doc.doc_id, reverse=True)
  ranker = disranker_jax.load(model, **options)
  given = {}
  if fusion is not None:
    ranks = {doc_id: rank for rank, doc_id in enumerate(first, 1)}
    known = ranks if fusion.signal == 'ranks' else first
    given = {f'first_{fusion.signal}': [known.get(doc.doc_id) for doc in docs]}
    given |= {'fuse': fusion.weight}
  return [(docs[i], score) for i, score in ranker.rank(query, docs, **given)]


def show(ranked, first: dict[str, int] | None) -> None:
  """Prints rank, score, id, the first stage's rank, and the start of the summary."""
  for position, (doc, score) in enumerate(ranked, 1):
    was = f'  (BM25: {first[doc.doc_id]})' if first else ''
    print(f'{position:3}. {score:8.3f}  {escaping.line(doc.doc_id)}{was}')
    if text := textwrap.shorten(doc.summary, 100, placeholder='...'):
      print(f'               {escaping.line(text)}')


def one_query(args: argparse.Namespace) -> None:
  """Ranks documents for a query and prints the best."""
  from disranker_jax.data import sources
  from disranker_jax.rankers import loaded

  loaded.check(args.model)
  fusion = fusion_of(args.model, args.fuse)
  docs = sources.documents(args.docs or 'python_docs:')
  count, depth = len(docs), args.depth
  if depth is None:
    depth = FIRST_STAGE if count > RANK_ALL else 0
  first: dict[str, float] = {}
  if depth or fusion:
    first = first_stage(args.query, docs, depth or count)
  if depth:
    by_id = {doc.doc_id: doc for doc in docs}
    docs = [by_id[doc_id] for doc_id in first]
    if not docs:
      raise UserError(
        f'none of the {amount(count, "document")} shares a word with {args.query!r}; try other '
        'words, other --docs, or --depth 0, which ranks all of them'
      )
  begin = time.monotonic()
  options = {'backend': args.backend, 'fast': args.fast}
  top = 10 if args.top is None else args.top
  ranked = rank(args.model, args.query, docs, first, fusion, **options)[: top or None]
  if args.json:
    rows = [{'doc_id': d.doc_id, 'score': s, 'rank': i} for i, (d, s) in enumerate(ranked, 1)]
    print(json.dumps(rows, indent=2))
    return
  show(ranked, {d.doc_id: i for i, d in enumerate(docs, 1)} if depth else None)
  seconds = time.monotonic() - begin
  of = f', the best of {count:,} by BM25,' if depth else ''
  print(
    f'{amount(len(docs), "document")}{of} in {seconds:.1f} s, including loading', file=sys.stderr
  )


def main(argv=None) -> None:
  args = parse_args(argv)
  runtime.prepare()
  from disranker_jax.rankers import loaded

  args.model = loaded.locate(args.model)
  if args.run is None:
    one_query(args)
    return
  from disranker_jax.commands import rerank_run, unfinished

  job = rerank_run.Job(
    args.model, args.run.expanduser(), args.source, args.out.expanduser(), args.depth or 0,
    args.missing or 'error', args.backend, args.fast, fusion_of(args.model, args.fuse),
  )  # fmt: skip
  with unfinished.ending():
    rerank_run.rerank(job)
