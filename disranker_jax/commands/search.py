"""Searches a collection with the generative retriever of a finished run.

Shows the pages that are found, best first, and with --ngrams what the retriever wrote to find them.
"""

import argparse
import json
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.commands.common import Parser, positive, query_text
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.generative.evidence import PAGES
from disranker_jax.pipeline import manifest
from disranker_jax.progress import amount, say

# The stages whose parameters search. By default the first one of these that is done.
BEST = ('align', 'memorise')
TRAINED = (*BEST, 'ltrgr')  # which was worse than memorise (docs/generative.md)


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser('search', __doc__, "--run runs/dgr --query 'split a path' --ngrams")
  add = parser.add_argument
  add('--run', required=True, type=Path, metavar='DIR', help='the workdir of a run of dgr')
  add('--query', required=True, type=query_text, help='what to search for')
  add('--top', type=positive, default=10, metavar='N', help='pages to show')
  add('--ngrams', action='store_true', help='show what was written to find a page')
  add('--rerank', metavar='MODEL', help=(
    'an exported student, or a ready reranker, that re-ranks the best of what is found: as many '
    'pages as config.search.rerank of the run; the others stay behind them'))  # fmt: skip
  add('--stage', choices=TRAINED, help=(
    'the training that is used; by default align, or until it is done memorise'))  # fmt: skip
  add('--json', action='store_true', help='print a list of doc_id, rank, score, title, ngrams')
  args = parser.parse_args(argv)
  if args.top > PAGES:
    raise UserError(f'--top={args.top}: a search scores {PAGES:,} pages at most; lower it')
  return args


def open_trained(folder: Path, stage: str | None):
  """(the run, the stages that trained its retriever). Raises: UserError if there is none."""
  from disranker_jax.commands.opened_run import lacking, open_run
  from disranker_jax.devices import sharding

  run = open_run(folder, 'retriever')
  run.config.retrieve.batch_rows = sharding.parts(run.mesh)  # there is one query
  found = next((name for name in ([stage] if stage else BEST) if not lacking(run, name)), None)
  if not manifest.is_done(run.folder('index')):
    raise UserError(f'--run {folder}: index is not done; continue the run first')
  if not found:
    raise UserError(f'--run {folder}: {lacking(run, stage or "memorise")}')
  others = [name for name in TRAINED if name != found and not lacking(run, name)]
  more = f'; --stage takes also {", ".join(others)}' if others else ''
  say(f'search: with the retriever after the stage {found}{more}')
  return run, ('memorise',) if found == 'memorise' else ('memorise', found)


def rows_of(run, stages, args) -> list[dict]:
  """What is found for the query, as --json prints it.

  The score of a page is the retriever's, or the re-ranker's; None for one that it has not read.
  """
  from disranker_jax.generative.stages import retrieve
  from disranker_jax.rankers import loaded
  from disranker_jax.stages import documents

  texts = {doc.doc_id: doc for doc in documents.read(run.config, least=1)}
  reranker = loaded.load(args.rerank) if args.rerank else None
  searching = retrieve.open_it(run, max(run.config.retrieve.hits, args.top), stages)
  if lost := searching.prompts.lost(args.query):
    end = amount(lost, 'token of the query is', 'tokens of the query are')
    say(
      f'search: the last {end} not read: '
      f'config.retriever.max_query_len={run.config.retriever.max_query_len} of the run; shorten '
      'the query'
    )
  [(_, _, found)] = searching([args.query])
  ids, decode = searching.pages.doc_ids, searching.model.tokenizer.backend_tokenizer.decode
  if missing := [ids[page.page] for page in found if ids[page.page] not in texts]:
    raise UserError(
      f'{run.config.data.documents or run.config.data.candidates}: lacks the page {missing[0]!r} '
      'of the index; rebuild it with --rerun=index'
    )
  pairs = [(page, page.score) for page in found]
  if reranker:
    # As the rows of the table: the best are re-ranked, the others stay behind them.
    most = run.config.search.rerank
    best = [texts[ids[page.page]] for page in found[:most]]
    order = reranker.rank(args.query, best) if best else []
    pairs = [(found[i], score) for i, score in order] + [(page, None) for page in found[most:]]
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
    for rank, (page, score) in enumerate(pairs[: args.top], 1)
  ]


def shown(rows: list[dict], ngrams: bool) -> str:
  """The pages as text, a line each, with --ngrams what found them below."""
  lines = []
  for row in rows:
    score = '-' if row['score'] is None else f'{row["score"]:.2f}'
    line = f'{row["rank"]:3} {score:>10}  {row["title"]}  ({row["doc_id"]})'
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
