"""Rewrites a query, or a file of them, with an exported rewriter or with the one of a finished run.

Shows what would be searched, and with --search what is found with and without the rewrite. With
--queries it writes JSON lines with query_id, query, rewrite and searched. The same command
continues what was stopped.
"""

import argparse
import json
from pathlib import Path

from disranker_jax import escaping, outputs
from disranker_jax.commands.common import Parser, positive, query_text
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.progress import say

TOP = 10  # documents that are shown


def parse_args(argv=None) -> argparse.Namespace:
  example = "--model runs/rewriting/export/rewriter --query 'get the size of a file'"
  parser = Parser('rewrite', __doc__, example)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--model', type=Path, metavar='FOLDER', help='an exported rewriter')
  source.add_argument(
    '--run', type=Path, metavar='DIR', help='the workdir of a run of query_rewriting'
  )
  add = parser.add_argument
  asked = parser.add_mutually_exclusive_group(required=True)
  asked.add_argument('--query', type=query_text, help='the query to rewrite')
  asked.add_argument('--queries', type=Path, metavar='FILE', help=(
    'rewrite all queries of a file: JSON lines with query and query_id (.jsonl), ID, tab and query '
    '(.tsv), or a query in each line (.txt or no suffix); with .gz behind it gzip'))  # fmt: skip
  add('--out', type=Path, metavar='FILE', help=(
    'where --queries writes the rewrites; gzip if the name ends in .gz'))  # fmt: skip
  add('--search', nargs='?', const='', metavar='ADDRESS', help=(
    'search these documents, such as jsonl:documents.jsonl, with the query and with the rewrite; '
    "of a run without an address: the run's documents"))  # fmt: skip
  add('--top', type=positive, metavar='N', help=f'documents that --search shows (default {TOP})')
  add('--json', action='store_true', help='print query, rewrite, searched text and what is found')
  args = parser.parse_args(argv)
  if args.queries:
    check_files(args)
  elif args.top and args.search is None:
    raise UserError('--top: is for what --search finds; add --search')
  elif args.out:
    raise UserError('--out: is for the rewrites of --queries FILE; --query prints its own')
  if args.model and args.search == '':
    raise UserError(
      '--search: an exported rewriter knows no documents; add their address, such as '
      '--search jsonl:documents.jsonl'
    )
  return args


def check_files(args: argparse.Namespace) -> None:
  """Raises: UserError for flags that do not go with --queries, and for an --out that cannot be."""
  if not args.out:
    raise UserError('--queries: add --out FILE, to which the rewrites are written')
  given = {'--search': args.search is not None, '--json': args.json, '--top': args.top}
  if flag := next((flag for flag, is_given in given.items() if is_given), ''):
    raise UserError(f'{flag}: is for a single --query; leave it out with --queries')
  outputs.target(args.out, {'the file of the queries': args.queries})


def of_run(folder: Path, rows: int):
  """(the rewriter of a run, the address of its documents). Raises: UserError if there is none.

  Args:
    rows: the queries that are rewritten together, at least.
  """
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
  config, parts = run.config, sharding.parts(run.mesh)
  model, variables, _ = TABLE.rows['rewrite'].load(run)
  writer = Rewriter.of(model, config.rewrite, run.mesh, -(-rows // parts) * parts)
  return LoadedRewriter(writer, variables, config.search.engine), queries.address(config)


def opened(args, rows: int = 1):
  """(the rewriter, the address that is searched). Raises: UserError if there is none."""
  from disranker_jax.rewriting import loaded

  if args.model:
    return loaded.load(args.model, rows), args.search
  rewriter, address = of_run(args.run, rows)
  return rewriter, args.search or address


def say_cut(args, rewriter, queries: list[str]) -> None:
  """Says how many queries are too long for the rewriter, and what decides it."""
  prompt = rewriter.writer.prompt
  # What is exported cannot be changed here.
  why = [f'{args.model} has {prompt.limits}'] if args.model else []
  if cut := prompt.cut(queries, *why):
    say(cut)


def written(args) -> dict:
  """What --json prints."""
  rewriter, address = opened(args)
  say_cut(args, rewriter, [args.query])
  rewrite, text = rewriter(args.query)
  result = {'query': args.query, 'rewrite': rewrite, 'searched': text}
  if args.search is not None:
    before, after = found(rewriter.engine, address, [args.query, text], args.top or TOP)
    result |= {'found': after, 'found_without': before}
  return result


def write(args) -> None:
  """Writes the rewrites of all queries of --queries."""
  from disranker_jax.commands import rewrite_file, unfinished

  def opened_for(rows: int, asked: list[str]):
    rewriter, _ = opened(args, rows)
    say_cut(args, rewriter, asked)
    return rewriter

  folder = (args.model or args.run).expanduser()
  with unfinished.ending():
    rewrite_file.write(folder, args.queries, args.out, opened_for)


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
  if args.queries:
    write(args)
    return
  result = written(args)
  print(json.dumps(result, indent=2) if args.json else shown(result))
