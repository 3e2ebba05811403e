"""Shows what a source holds before anything is trained on it: `disranker describe`.

Counts, labels, lengths in tokens, unknown tokens, truncation, duplicates, bad rows, and three rows
as the model sees them. Nothing is written. The exit status is 1 if there are bad rows, after the
whole report.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.commands.common import Parser
from disranker_jax.errors import UserError
from disranker_jax.progress import Count, amount, part_of


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser(
    'describe', __doc__, "'jsonl:logs/*.jsonl.gz' --kind clicks --tokenizer minilm-l6"
  )
  add = parser.add_argument_group('source').add_argument
  add('source', metavar='ADDRESS', help='for example jsonl:logs/*.jsonl.gz')
  kinds = ('clicks', 'judgements', 'candidates', 'test', 'documents')
  add('--kind', default='test', choices=kinds, help=(
    'what the rows are; test reads rows with and without a label, documents those of a '
    'collection, without queries'))  # fmt: skip
  add('--depth', type=int, default=0, metavar='N', help=(
    'first-stage documents per query; 0: 20 of a run or BM25, all documents of rows'))  # fmt: skip
  add('--limit', type=int, default=0, metavar='N', help=(
    'look at the first N queries, clicks or documents; jsonl:, parquet: and tfds: are read no '
    'further, nor after N bad rows of queries or clicks; 0: all'))  # fmt: skip
  add = parser.add_argument_group('lengths').add_argument
  add('--tokenizer', default='', metavar='MODEL', help=(
    'the model whose tokens are counted; words are counted without it'))  # fmt: skip
  add('--max-len', type=int, default=256, help='tokens of a query with one document')
  add('--max-query-len', type=int, default=64, help='tokens of the query')
  add('--template', default='{query} : {title} : {summary}', help=(
    'prompt of a decoder; a BERT reads the query and the document as two segments'))  # fmt: skip
  parser.add_argument('--json', action='store_true', help='print JSON instead of text')
  return parser.parse_args(argv)


def prompt_of(args: argparse.Namespace):
  """The prompt of the model with this tokenizer; None without a tokenizer."""
  if not args.tokenizer:
    return None
  from disranker_jax.models import families, hf, load, weights

  if args.max_len < 8 or args.max_query_len < 1:
    raise UserError('--max-len: must be at least 8, --max-query-len at least 1')
  folder = weights.find(args.tokenizer)
  tokenizer = load.open_tokenizer(folder)
  family = families.find(hf.read_config(folder)['model_type'])
  return family.prompt(tokenizer, args.max_len, args.max_query_len, template=args.template)


def look(args: argparse.Namespace) -> dict:
  """The survey of a source, as `--json` prints it."""
  import itertools

  from disranker_jax.data import sources, survey
  from disranker_jax.data.records import BadRows
  from disranker_jax.data.source import DOCUMENTS

  result = survey.Survey(prompt_of(args))
  with (
    tempfile.TemporaryDirectory(prefix='disranker.') as temp,
    Count('describe', 'records') as progress,
  ):
    quarantine = Path(temp) / 'bad.jsonl'
    bad_rows = BadRows('quarantine', quarantine)
    if args.kind == DOCUMENTS:
      records = (doc for *_, doc in sources.open(args.source).documents(bad_rows))
    else:
      records = sources.read(
        args.source, args.kind, depth=args.depth, bad_rows=bad_rows, limit=args.limit
      )
    for record in itertools.islice(records, args.limit or None):
      result.add(record)
      progress.add(1)
    report = {'source': args.source, 'kind': args.kind, 'rows': bad_rows.rows_in}
    reasons = survey.bad_rows(quarantine)
    report |= {'bad_rows': bad_rows.quarantined, 'reasons': reasons}
    rows = [reason.pop('row') for reason in reasons]
    if rows and not bad_rows.kept:
      report['other_kinds'] = survey.other_kinds(rows[0], args.kind)
    return report | {'notes': dict(bad_rows.notes)} | result.report()


def show(report: dict) -> None:
  """Prints the report as text."""
  records = amount(report.get('queries', 0), 'query', 'queries')
  records += f', {amount(report.get("pairs", 0), "pair")}'
  if 'clicks' in report:
    records = amount(report['clicks'], 'click')
  elif 'documents' in report:
    records = amount(report['documents'], 'document')
  print(f'{report["source"]} ({report["kind"]})')
  # Built-in sources have no rows.
  rows = f' of {amount(report["rows"], "row")}; {amount(report["bad_rows"], "bad row")}'
  print(records + (rows if report['rows'] else ''))
  for row in report['reasons']:
    print(f'  {row["count"]:>9,}  {escaping.line(row["reason"])}  (first: {row["first"]})')
  if kinds := report.get('other_kinds'):
    print(f'  no row is of kind {report["kind"]}; try --kind {" or --kind ".join(kinds)}')
  for what, count in report['notes'].items():
    print(f'  {count:>9,}  {escaping.line(what)}')
  if 'labels' in report:
    show_labels(report)
  elif 'documents' in report:
    show_empty(report)
  show_lengths(report['lengths'])
  print('\nduplicates')
  for name, count in report['duplicates'].items():
    print(f'  {count:>9,}  {name.replace("_", " ")}')
  for i, row in enumerate(report['samples'], 1):
    print(f'\nrow {i}, {amount(row["tokens"], "token")}' if 'tokens' in row else f'\nrow {i}')
    texts = filter(None, (row['query'], row['title']))
    seen = row['model_sees'] if 'model_sees' in row else ' | '.join(texts)
    print(f'  {escaping.terminal(seen)}')


def show_labels(report: dict) -> None:
  """Prints labels as bars, queries with one grade, and the number of documents per query."""
  from disranker_jax.evaluation import metrics

  judged = sum(report['labels'].values())
  print(
    f'\nlabels of {amount(judged, "judged pair")}; '
    f'{amount(report["unjudged_pairs"], "pair is", "pairs are")} not judged'
  )
  for label, count in report['labels'].items():
    print(f'  {label:>9}  {count:>11,}  {count / judged:6.1%}  {"#" * round(40 * count / judged)}')
  if steep := metrics.steep(max(map(int, report['labels']), default=0)):
    print(f'  {steep}')
  if judged:
    one_grade, queries = report['queries_with_one_grade'], report['judged_queries']
    said = part_of(one_grade, queries, 'judged query', 'judged queries', 'has', 'have')
    print(f'  {said} one grade only: no pairs to learn from')
  show_empty(report)
  depth = ', '.join(f'{name} {value}' for name, value in report['documents_of_a_query'].items())
  print(f'  documents per query: {depth}')


def show_empty(report: dict) -> None:
  """Prints how many documents lack a title, where this is counted, and how many any text."""
  for what in ('title', 'text'):
    if count := report.get(f'documents_without_{what}'):
      print(f'  {amount(count, "document has", "documents have")} no {what}')


def show_lengths(lengths: dict) -> None:
  """Prints percentiles of lengths, and how many pairs are truncated in which field."""
  names = list(lengths['input'])
  print(f'\n{lengths["unit"]:<10}' + ''.join(f'{name:>8}' for name in names))
  for field in (name for name in ('query', 'title', 'summary', 'input') if name in lengths):
    print(f'{field:<10}' + ''.join(f'{lengths[field][name]:>8,}' for name in lengths[field]))
  if 'truncated' in lengths:
    from disranker_jax.data import survey

    other = f'; another model is needed, such as {survey.MULTILINGUAL}'
    other = other if lengths['unknown'] > survey.UNKNOWN else ''
    print(f'unknown to the tokenizer: {lengths["unknown"]:.1%} of the tokens{other}')
    cut = lengths['truncated']
    print(
      f'truncated at {lengths["max_len"]} tokens (query at {lengths["max_query_len"]}): '
      f'{cut["any"]:.1%} of the pairs; in the query {cut["query"]:.1%}, in the summary '
      f'{cut["summary"]:.1%}, already in the title {cut["title"]:.1%}'
    )


def main(argv=None) -> None:
  args = parse_args(argv)
  report = look(args)
  if args.json:
    print(escaping.json(report))
  else:
    show(report)
  if report['bad_rows']:
    sys.exit(1)
