"""Rewrites a query with an exported rewriter, or with the one of a finished run.

Shows what would be searched, and with --search what is found with and without the rewrite.
"""

import argparse
import json
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.commands.common import Parser, positive
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.progress import say


def parse_args(argv=None) -> argparse.Namespace:
  example = "--model runs/rewriting/export/rewriter --query 'get the size of a file'"
  parser = Parser('rewrite', __doc__, example)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--model', type=Path, metavar='FOLDER', help='an exported rewriter')
  source.add_argument(
    '--run', type=Path, metavar='DIR', help='the workdir of a run of query_rewriting'
  )
  add = parser.add_argument
  add('--query', required=True, help='the query to rewrite')
  add('--search', nargs='?', const='', metavar='ADDRESS', help=(
    'search these documents, such as jsonl:documents.jsonl, with the query and with the rewrite; '
    "of a run without an address: the run's documents"))  # fmt: skip
  add('--top', type=positive, default=10, metavar='N', help='documents to show')
  add('--json', action='store_true', help='print query, rewrite, searched text and what is found')
  args = parser.parse_args(argv)
  if not args.query.strip():
    raise UserError('--query: is empty')
  if args.model and args.search == '':
    raise UserError(
      '--search: an exported rewriter knows no documents; add their address, such as '
      '--search jsonl:documents.jsonl'
    )
  return args


def of_run(folder: Path):
  """(the rewriter of a run, the address of its documents). Raises: UserError if there is none."""
  from disranker_jax.commands.opened_run import lacking, open_run
  from disranker_jax.devices import sharding
  from disranker_jax.rewriting import queries
  from disranker_jax.rewriting.loaded import LoadedRewriter
  from disranker_jax.rewriting.rewriter import Rewriter
  from disranker_jax.rewriting.rows import TABLE

  run = open_run(folder, 'rewriter')
  # A run that only searches has the rewriter of an earlier one.
  is_learned_elsewhere = 'rewrite' not in run.config.stages and run.config.rewriter.init_from
  if not is_learned_elsewhere and (reason := lacking(run, 'rewrite')):
    raise UserError(f'--run {folder}: {reason}')
  config, rows = run.config, sharding.parts(run.mesh)  # there is one query
  model, variables, _ = TABLE.rows['rewrite'].load(run)
  writer = Rewriter.of(model, config.rewrite, run.mesh, rows)
  return LoadedRewriter(writer, variables, config.search.engine), queries.address(config)


def opened(args):
  """(the rewriter, the address that is searched). Raises: UserError if there is none."""
  from disranker_jax.rewriting import loaded

  rewriter, address = (loaded.load(args.model), '') if args.model else of_run(args.run)
  return rewriter, args.search or address


def written(args) -> dict:
  """What --json prints."""
  rewriter, address = opened(args)
  if cut := rewriter.writer.prompt.cut([args.query]):
    say(cut)
  rewrite, text = rewriter(args.query)
  result = {'query': args.query, 'rewrite': rewrite, 'searched': text}
  if args.search is not None:
    before, after = found(rewriter.engine, address, [args.query, text], args.top)
    result |= {'found': after, 'found_without': before}
  return result


def found(engine: str, address: str, texts: list[str], top: int) -> list[list[dict]]:
  """What the engine finds for each text."""
  from disranker_jax.data import sources
  from disranker_jax.rewriting.engines import ENGINES

  docs = sources.documents(address)
  return [
    [
      {'rank': rank, 'doc_id': docs[i].doc_id, 'title': docs[i].title, 'score': score}
      for rank, (i, score) in enumerate(hits, 1)
    ]
    for hits in ENGINES[engine](docs).top(texts, top)
  ]


def shown(result: dict) -> str:
  """The result as text."""
  lines = [f'rewrite:   {escaping.line(result["rewrite"])}']
  lines.append(f'searched:  {escaping.line(result["searched"])}')
  if 'found' in result:
    before = {row['doc_id']: row['rank'] for row in result['found_without']}
    for row in result['found']:
      was = before.get(row['doc_id'])
      said = f'(was {was})' if was else '(new)'
      lines.append(escaping.line(f'{row["rank"]:3} {said:9} {row["title"]}  ({row["doc_id"]})'))
  return '\n'.join(lines)


def main(argv=None) -> None:
  args = parse_args(argv)
  runtime.prepare()
  result = written(args)
  print(json.dumps(result, indent=2) if args.json else shown(result))
