"""Ranks documents with a local LLM by prompts, and writes a TREC run: `disranker llm-rank`.

A method is an algorithm with a contract: the prompt, and the tokens that answer it. --method list
prints all of both. The same command continues what was stopped. OUT.json has what it cost, and how
much the answers can be trusted: prompts, tokens, conflicts, ties and malformed answers.
"""

import argparse
from pathlib import Path

from disranker_jax import outputs
from disranker_jax.commands.common import Parser, positive
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError


def parse_args(argv=None) -> argparse.Namespace:
  parser = Parser(
    'llm-rank', __doc__,
    '--model smollm2-135m --method prp_allpair --source trec:data/mine --depth 20 --out prp.run',
  )  # fmt: skip
  add = parser.add_argument
  add('--model', metavar='M', help='a decoder: a folder, a short name, or one of Hugging Face')
  add('--method', required=True, metavar='NAME', help="how it ranks; 'list' prints the methods")
  add('--source', metavar='ADDRESS', help='queries with documents, such as trec:DIR or jsonl:FILE')
  add('--kind', choices=('test', 'candidates'), help=(
    'test: of a collection the judged queries; candidates: all queries, without labels. Default: '
    'candidates of a collection without qrels, else test'))  # fmt: skip
  add('--depth', type=int, default=0, metavar='N', help=(
    'documents per query, by first-stage rank; 0: 20 of a run or BM25, all of rows'))  # fmt: skip
  add('--out', type=Path, metavar='RUN', help='the ranking; gzip if RUN.gz')
  add = parser.add_argument_group('prompt').add_argument
  add(
    '--contract',
    default='',
    metavar='NAME',
    help="another contract than the method's, or FILE.json",
  )
  add('--instruction', metavar='TEXT', help="the contract's instruction, if it has one")
  add('--chat', action='store_true', help="frame the prompt by the tokenizer's chat template")
  add(
    '--query-tokens', type=positive, default=64, metavar='N', help='longer queries lose their end'
  )
  add(
    '--doc-tokens', type=positive, default=128, metavar='N', help='longer documents lose their end'
  )
  add = parser.add_argument_group('algorithm').add_argument
  for name, default, what in (
    (
      'window',
      None,
      'documents of a listwise prompt; by default 20, or as the contract has labels',
    ),
    ('stride', None, 'how far apart windows begin; by default half a window'),
    ('passes', 1, 'passes of windows'),
    ('top', 10, 'documents that a sort brings into order'),
    ('children', 3, 'documents that a setwise prompt compares with another one'),
  ):
    add(f'--{name}', type=positive, default=default, metavar='N', help=what)
  add = parser.add_argument_group('devices').add_argument
  add('--batch-tokens', type=positive, metavar='N', help=(
    'tokens of a batch on a device; by default 4,096 on a CPU, 16,384 elsewhere'))  # fmt: skip
  add('--precision', default='auto', choices=('auto', 'float32', 'bfloat16', 'bfloat16_dots'),
    help='auto: bfloat16 on an accelerator')  # fmt: skip
  add('--param-dtype', default='float32', choices=('float32', 'bfloat16'), help=(
    'type of the parameters in memory'))  # fmt: skip
  add('--shard', type=positive, default=1, metavar='N', help=(
    'devices over which parameters are sharded, for a model larger than one device'))  # fmt: skip
  args = parser.parse_args(argv)
  if args.method != 'list':
    check(args)
  return args


def check(args: argparse.Namespace) -> None:
  """Raises: UserError for flags that are missing or wrong."""
  for name in ('model', 'source', 'out'):
    if not getattr(args, name):
      raise UserError(f'--{name}: is missing; see disranker llm-rank --help')
  if args.depth < 0:
    raise UserError('--depth: must be 0 (the default of the source) or more')
  args.out = args.out.expanduser()
  outputs.target(args.out)  # before jax is imported


def listed() -> str:
  """The methods and contracts, a line each."""
  from disranker_jax.data.named_contracts import NAMED
  from disranker_jax.rankers.llm.methods import GIVES, METHODS

  width = max(map(len, METHODS))
  lines = ['method, contract, scores:']
  lines += [f'  {m.name:{width}}  {m.contract:{width}}  {m.gives}' for m in METHODS.values()]
  lines += ['scores, and how a student learns from them:']
  lines += [f'  {name:{width}}  {gives.text}' for name, gives in GIVES.items()]
  lines += ['contracts, documents per prompt, what answers:']
  for contract in NAMED.values():
    labels = ' '.join(contract.labels[:6]) + (' ...' if len(contract.labels) > 6 else '')
    read = {'head': 'a linear head', 'likelihood': 'the query itself'}.get(contract.formula, labels)
    lines.append(f'  {contract.name:{width}}  {contract.most:2}  {read}')
  return '\n'.join(lines)


def main(argv=None) -> None:
  args = parse_args(argv)
  if args.method == 'list':
    print(listed())
    return
  runtime.prepare()
  from disranker_jax.devices import processes

  processes.start()
  from disranker_jax.commands import llm_rank_run, unfinished

  with unfinished.ending():
    llm_rank_run.rank(args)
