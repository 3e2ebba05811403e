"""Shows what a source holds before anything is trained on it: `disranker describe`.

Counts, labels, lengths in tokens, what the model would not see, duplicates, rows that are bad or of
no use, and three rows as the model sees them. Nothing is written.
"""

import argparse
import json
import tempfile
from pathlib import Path

from disranker_jax.commands.common import guarded
from disranker_jax.errors import UserError


def parse_args(argv=None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='disranker describe', description=__doc__)
  parser.add_argument('source', metavar='ADDRESS', help='such as jsonl:logs/*.jsonl.gz')
  parser.add_argument(
    '--kind', default='test', choices=('clicks', 'judgements', 'candidates', 'test'),
    help='what the rows are; test takes rows with and without a label (test)',
  )  # fmt: skip
  parser.add_argument('--tokenizer', default='', help='a model; without it lengths are in words')
  parser.add_argument('--max_len', type=int, default=256, help='tokens of an input (256)')
  parser.add_argument('--max_query_len', type=int, default=64, help='of them the query (64)')
  parser.add_argument(
    '--template', default='{query} : {title} : {summary}', help='of a decoder; BERT takes a pair'
  )
  parser.add_argument('--depth', type=int, default=20, help='documents a first stage gives (20)')
  parser.add_argument('--limit', type=int, default=0, help='records to look at (0: all)')
  parser.add_argument('--json', action='store_true', help='print it as JSON')
  return parser.parse_args(argv)


def prompt_of(args: argparse.Namespace):
  """How the model with this tokenizer reads a pair; None without a tokenizer."""
  if not args.tokenizer:
    return None
  from transformers import AutoTokenizer

  from disranker_jax.models import families, hf, weights

  if args.max_len < 8 or args.max_query_len < 1:
    raise UserError('--max_len: must be at least 8, --max_query_len at least 1')
  folder = weights.find(args.tokenizer)
  try:
    tokenizer = AutoTokenizer.from_pretrained(folder)
  except (OSError, ValueError) as error:
    what = ' '.join(str(error).split())[:200]
    raise UserError(f'--tokenizer {args.tokenizer}: cannot be read ({what})') from error
  tokenizer.model_max_length = 1 << 30  # prompts cut to length themselves
  family = families.find(hf.read_config(folder)['model_type'])
  return family.prompt(tokenizer, args.max_len, args.max_query_len, template=args.template)


def look(args: argparse.Namespace) -> dict:
  """The survey of a source."""
  import itertools

  from disranker_jax.data import sources, survey
  from disranker_jax.data.records import BadRows
  from disranker_jax.progress import Count

  found = survey.Survey(prompt_of(args))
  with (
    tempfile.TemporaryDirectory(prefix='disranker.') as temp,
    Count('inspect', 'records') as progress,
  ):
    aside = Path(temp) / 'bad.jsonl'
    bad_rows = BadRows('quarantine', aside)
    records = sources.read(args.source, args.kind, depth=args.depth, bad_rows=bad_rows)
    for record in itertools.islice(records, args.limit or None):
      found.add(record)
      progress.add(1)
    report = {'source': args.source, 'kind': args.kind, 'rows': bad_rows.rows_in}
    report |= {'bad_rows': bad_rows.quarantined, 'reasons': survey.bad_rows(aside)}
    return report | found.report()


def show(report: dict) -> None:
  """The report for people."""
  records = f'{report["clicks"]:,} clicks' if 'clicks' in report else (
    f'{report.get("queries", 0):,} queries, {report.get("pairs", 0):,} pairs'
  )  # fmt: skip
  print(f'{report["source"]} ({report["kind"]})')
  print(f'{records} of {report["rows"]:,} rows; {report["bad_rows"]:,} bad rows')
  for row in report['reasons']:
    print(f'  {row["count"]:>9,}  {row["reason"]}  (first: {row["first"]})')
  if 'labels' in report:
    show_labels(report)
  show_lengths(report['lengths'])
  print('\nduplicates')
  for name, count in report['duplicates'].items():
    print(f'  {count:>9,}  {name.replace("_", " ")}')
  for i, row in enumerate(report['samples'], 1):
    print(f'\nrow {i}, {row["tokens"]} tokens' if 'tokens' in row else f'\nrow {i}')
    print(f'  {row["model_sees"]}' if 'model_sees' in row else f'  {row["query"]} | {row["title"]}')


def show_labels(report: dict) -> None:
  """Labels as bars, the queries that teach nothing, and how many documents a query has."""
  judged = sum(report['labels'].values())
  print(f'\nlabels of {judged:,} judged pairs; {report["unjudged_pairs"]:,} are not judged')
  for label, count in report['labels'].items():
    print(f'  {label:>9}  {count:>11,}  {count / judged:6.1%}  {"#" * round(40 * count / judged)}')
  if judged:
    useless, asked = report['queries_with_one_grade'], report['judged_queries']
    print(f'  {useless:,} of {asked:,} judged queries have one grade only: no pairs to learn from')
  if report['documents_without_text']:
    print(f'  {report["documents_without_text"]:,} documents have no text')
  depth = ', '.join(f'{name} {value}' for name, value in report['documents_of_a_query'].items())
  print(f'  documents of a query: {depth}')


def show_lengths(lengths: dict) -> None:
  """Percentiles, and what is cut where."""
  names = list(lengths['input'])
  print(f'\n{lengths["unit"]:<10}' + ''.join(f'{name:>8}' for name in names))
  for field in ('query', 'title', 'summary', 'input'):
    print(f'{field:<10}' + ''.join(f'{lengths[field][name]:>8,}' for name in lengths[field]))
  if 'truncated' in lengths:
    cut = lengths['truncated']
    print(
      f'cut at {lengths["max_len"]} tokens (query at {lengths["max_query_len"]}): '
      f'{cut["any"]:.1%} of the pairs; in the query {cut["query"]:.1%}, in the summary '
      f'{cut["summary"]:.1%}, already in the title {cut["title"]:.1%}'
    )


def main(argv=None) -> None:
  args = parse_args(argv)
  report = look(args)
  if args.json:
    print(json.dumps(report, indent=2, ensure_ascii=False))
  else:
    show(report)


if __name__ == '__main__':
  with guarded():
    main()
