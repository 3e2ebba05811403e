"""Tokens per second of constrained beam search, beside free greedy text of as many rows, in turn.

The collection and the prompts are random ids. Both sides prefill each prompt once; free text stops
at no end token. Other processes change CPU time less than time.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from benchmarks import _collection, _figures
from disranker_jax.commands.common import Parser, positive
from disranker_jax.devices import memory, processor, runtime, sharding
from disranker_jax.generative.beams import Searcher
from disranker_jax.generative.decoding import View
from disranker_jax.generative.suffixes import Suffixes
from disranker_jax.models import hf, load, network, weights
from disranker_jax.models.generate import generate
from disranker_jax.report import tables

FREE = 'free, greedy'
RATIOS = ('of_free', 'of_free_cpu')


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench beams', __doc__, '--model smollm2-135m')
  add = parser.add_argument_group('beams').add_argument
  add('--model', default='smollm2-135m', help='a decoder: a folder or a name')
  add('--queries', type=positive, default=16, help='prompts at a time')
  add('--beams', type=positive, default=10, help='n-grams that are continued')
  add('--length', type=positive, default=8, help='tokens of an n-gram')
  add('--prompt-len', type=positive, default=32, help='tokens of a prompt')
  add('--documents', type=positive, default=7000, help='pages of the collection, of 59 tokens')
  add('--window', type=positive, default=512, help='rows of a prefix that are read on the device')
  add('--precision', default='auto', help='auto, float32, bfloat16_dots or bfloat16')
  add('--rounds', type=positive, default=5, help='turns of each side, whose median is shown')
  add('--json', action='store_true', help='also print the answer as one last line of JSON')
  return parser.parse_args(argv)


def sides(args: argparse.Namespace):
  """({side: a call that writes rows of args.length tokens}, bytes on the device)."""
  folder = weights.find(args.model)
  net = network.from_hf(folder, head='lm', precision=load.precision(args.precision))
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  variables = sharding.put(hf.load(folder, net, jax.random.key(0)), mesh)
  vocab = net.config.vocab
  text = _collection.text(args.documents, vocab)
  index = Suffixes.build(text, _collection.symbols(vocab), args.length + 1, args.window)
  views = [
    View('body', None, args.length, args.beams),
    View('title', vocab, args.length, args.beams),
  ]
  search = Searcher(
    net, variables, index, views, _collection.END, mesh, args.queries, args.prompt_len
  )
  rng = np.random.default_rng(0)
  prompts = rng.integers(3, vocab, (args.queries, args.prompt_len)).tolist()

  def greedy():
    with jax.set_mesh(mesh):
      generate(net, variables, prompts, max_new=args.length, eos_id=-1, samples=args.beams)

  calls = {f'beams, {v.name}': lambda v=v: search(v.name, prompts) for v in views}
  return calls | {FREE: greedy}, search.needs()


def of_free(turns: dict[str, list[float]], name: str) -> dict[str, float]:
  """A side's speed over that of free text, turn by turn."""
  ratios = [free / own for free, own in zip(turns[FREE], turns[name], strict=True)]
  return {'median': statistics.median(ratios), 'low': min(ratios), 'high': max(ratios)}


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  calls, needs = sides(args)
  first, seconds = {}, {name: [] for name in calls}
  for name, call in calls.items():
    begin = time.perf_counter()
    call()
    first[name] = time.perf_counter() - begin
  cpu = {name: [] for name in calls}
  for _ in range(args.rounds):
    for name, call in calls.items():
      begin, cpu_begin = time.perf_counter(), time.process_time()
      call()
      seconds[name].append(time.perf_counter() - begin)
      cpu[name].append(time.process_time() - cpu_begin)
  tokens = args.queries * args.beams * args.length
  answer, rows = {'bench': 'beams', 'bytes': needs, 'sides': {}}, []
  for name in calls:
    side = {
      'tokens_per_s': tokens / statistics.median(seconds[name]), 'first_s': first[name],
      'queries_per_s': args.queries / statistics.median(seconds[name]),
      'tokens_per_cpu_s': tokens / statistics.median(cpu[name]),
      'of_free': of_free(seconds, name), 'of_free_cpu': of_free(cpu, name),
    }  # fmt: skip
    answer['sides'][name] = side
    rows.append([
      name, f'{side["tokens_per_s"]:,.0f}', f'{side["queries_per_s"]:.1f}',
      f'{side["tokens_per_cpu_s"]:,.0f}', f'{side["first_s"]:.1f}',
      *('{median:.2f} ({low:.2f} to {high:.2f})'.format(**side[key]) for key in RATIOS),
    ])  # fmt: skip
  print(
    f'beams with {args.model}: {args.queries} prompts of {args.prompt_len} tokens, {args.beams} '
    f'beams, {args.length} tokens, {args.documents:,} pages; {processor.described()}; a device '
    f'holds {memory.listed(needs)}; medians of {args.rounds} turns'
  )
  heads = ['side', 'tokens/s', 'queries/s', 'tokens per CPU s', 'first call s']
  heads += ['speed over free text', 'in CPU time']
  print(tables.markdown(heads, rows))
  if args.json:
    print(json.dumps(_figures.short(answer)))
