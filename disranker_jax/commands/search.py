"""Searches a collection with the generative retriever of a finished run.

Shows the pages that are found, best first, and with --ngrams what the retriever wrote to find them.
"""

import argparse
import json
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.commands.common import Parser, positive
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError

# The stages whose parameters search, the last one that is done.
TRAINED = ('align', 'ltrgr', 'memorise')


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('search', __doc__, "--run runs/dgr --query 'split a path' --ngrams")
  add = parser.add_argument
  add('--run', required=True, type=Path, metavar='DIR', help='the workdir of a run of dgr')
  add('--query', required=True, help='what to search for')
  add('--top', type=positive, default=10, metavar='N', help='pages to show')
  add('--ngrams', action='store_true', help='show what was written to find a page')
  add('--rerank', metavar='MODEL', help=(
    'an exported student, or a ready reranker, that re-ranks what is found'))  # fmt: skip
  add('--stage', choices=TRAINED, help=(
    'the training that is used; by default the last one that is done'))  # fmt: skip
  add('--json', action='store_true', help='print a list of doc_id, rank, score, title, ngrams')
  args = parser.parse_args(argv)
  if not args.query.strip():
    raise UserError('--query: is empty')
  return args


def open_trained(folder: Path, stage: str | None):
  """(the run, the stages that trained its retriever). Raises: UserError if there is none."""
  from disranker_jax.commands.opened_run import is_done, open_run
  from disranker_jax.devices import sharding

  run = open_run(folder, 'retriever')
  run.config.retrieve.batch_rows = sharding.parts(run.mesh)  # there is one query
  names = [stage] if stage else TRAINED
  found = next((name for name in names if is_done(run, name)), None)
  if found is None or not is_done(run, 'index'):
    needed = stage or 'index and memorise'
    raise UserError(f'--run {folder}: {needed} is not done; continue the run first')
  return run, ('memorise',) if found == 'memorise' else ('memorise', found)


def rows_of(run, stages, args) -> list[dict]:
  """What is found for the query, as --json prints it."""
  from disranker_jax.generative.stages import retrieve
  from disranker_jax.rankers import loaded
  from disranker_jax.stages import documents

  texts = {doc.doc_id: doc for doc in documents.read(run.config, least=1)}
  reranker = loaded.load(args.rerank) if args.rerank else None
  run.config.retrieve.hits = max(run.config.retrieve.hits, args.top)
  searching = retrieve.open_it(run, stages)
  [(_, _, found)] = searching([args.query])
  ids, decode = searching.pages.doc_ids, searching.model.tokenizer.backend_tokenizer.decode
  if missing := [ids[page.page] for page in found if ids[page.page] not in texts]:
    raise UserError(
      f'{run.config.data.documents or run.config.data.candidates}: lacks the page {missing[0]!r} '
      'of the index; rebuild it with --rerun=index'
    )
  if reranker:
    pairs = [texts[ids[page.page]] for page in found]
    order = reranker.rank(args.query, pairs)
    found = [(found[i], score) for i, score in order]
  else:
    found = [(page, page.score) for page in found]
  return [
    {
      'doc_id': ids[page.page],
      'rank': rank,
      'score': score,
      'title': texts[ids[page.page]].title,
      'ngrams': [
        {
          'view': match.ngram.view,
          'text': decode(list(match.ngram.tokens)).strip(),
          'logprob': match.ngram.logprob,
          'count': match.ngram.count,
          'adds': match.weight * match.coverage,
        }
        for match in page.matches
      ],
    }
    for rank, (page, score) in enumerate(found[: args.top], 1)
  ]


def shown(rows: list[dict], ngrams: bool) -> str:
  """The pages as text, a line each, with --ngrams what found them below."""
  lines = []
  for row in rows:
    line = f'{row["rank"]:3} {row["score"]:10.2f}  {row["title"]}  ({row["doc_id"]})'
    lines.append(escaping.line(line))
    for ngram in row['ngrams'] if ngrams else ():
      line = (
        f'      {ngram["view"]:6} {ngram["adds"]:8.1f}  log p {ngram["logprob"]:6.1f}  '
        f'{ngram["count"]:5,} times  {ngram["text"]}'
      )
      lines.append(escaping.line(line))
  return '\n'.join(lines)


def main(argv=None) -> None:
  args = parse_args(argv)
  runtime.prepare()
  run, stages = open_trained(args.run, args.stage)
  rows = rows_of(run, stages, args)
  if args.json:
    print(json.dumps(rows, indent=2))
  elif rows:
    print(shown(rows, args.ngrams))
  else:
    print('no page was found')
