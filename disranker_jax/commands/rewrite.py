"""Rewrites a query with the rewriter of a finished run.

Shows what would be searched, and with --search what BM25 finds with and without the rewrite.
"""

import argparse
import json
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.commands.common import Parser, positive
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError


def parse_args(argv=None) -> argparse.Namespace:
  example = "--run runs/rewriting --query 'get the size of a file' --search"
  parser = Parser('rewrite', __doc__, example)
  add = parser.add_argument
  add(
    '--run', required=True, type=Path, metavar='DIR', help='the workdir of a run of query_rewriting'
  )
  add('--query', required=True, help='the query to rewrite')
  add('--search', action='store_true', help='search with the query and with the rewrite')
  add('--docs', metavar='ADDRESS', help=(
    "documents to search; default: the run's"))  # fmt: skip
  add('--top', type=positive, default=10, metavar='N', help='documents to show')
  add('--json', action='store_true', help='print query, rewrite, searched text and what is found')
  args = parser.parse_args(argv)
  if not args.query.strip():
    raise UserError('--query: is empty')
  if args.docs and not args.search:
    raise UserError('--docs: is for --search; add it')
  return args


def of_run(folder: Path):
  """(the rewriter of a run, its variables, the address of the documents).

  Raises: UserError if the run has none.
  """
  from disranker_jax.commands.opened_run import is_done, open_run
  from disranker_jax.devices import sharding
  from disranker_jax.rewriting import queries
  from disranker_jax.rewriting.policy import policy
  from disranker_jax.rewriting.rewriter import Rewriter
  from disranker_jax.rewriting.stages import rewrite
  from disranker_jax.stages import roles

  run = open_run(folder, 'rewriter')
  if not is_done(run, 'rewrite'):
    raise UserError(f'--run {folder}: rewrite is not done; continue the run first')
  config, rows = run.config, sharding.parts(run.mesh)  # there is one query
  model = rewrite.open_rewriter(config)
  variables = policy(roles.trained(run, 'rewriter', model, ('cpt', 'rewrite')))
  return Rewriter.of(model, config.rewrite, run.mesh, rows), variables, queries.address(config)


def written(args) -> dict:
  """What --json prints."""
  from disranker_jax.rewriting.queries import searched

  writer, variables, address = of_run(args.run)
  [rewrite] = writer(variables, [args.query])
  text = searched(args.query, rewrite, writer.c.mode, writer.c.repeat)
  result = {'query': args.query, 'rewrite': rewrite, 'searched': text}
  if args.search:
    before, after = found(args.docs or address, [args.query, text], args.top)
    result |= {'found': after, 'found_without': before}
  return result


def found(address: str, texts: list[str], top: int) -> list[list[dict]]:
  """What BM25 finds for each text."""
  from disranker_jax.data import sources
  from disranker_jax.data.first_stage import BM25

  docs = sources.documents(address)
  return [
    [
      {'rank': rank, 'doc_id': docs[i].doc_id, 'title': docs[i].title, 'score': score}
      for rank, (i, score) in enumerate(hits, 1)
    ]
    for hits in BM25(docs).top(texts, top)
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
