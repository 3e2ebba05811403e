"""Time and memory of an index of n-grams against the collection's size, and of searches in it.

The collections are random ids. A step is what constrained beam search adds to the network's work
for a token: followers, their scores and the best of them, for random logits. Times on the host are
CPU seconds of its one thread, so that other processes do not count; a step is the fastest of a few
turns. Slopes are those of a line on logarithmic axes: 1 is linear, 0 is constant.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import _collection, _figures
from disranker_jax.commands.common import Parser, positive
from disranker_jax.devices import processor, runtime
from disranker_jax.generative import frontier, suffixes
from disranker_jax.generative.frontier import Rows, Widths
from disranker_jax.generative.suffixes import Suffixes
from disranker_jax.report import plots, tables

LABELS = {
  'build_s': 'CPU seconds to build', 'bytes': 'MB of the index', 'host_us': 'CPU µs per look-up',
  'step_ms': 'ms per step',
}  # fmt: skip
LINEAR = ('build_s', 'bytes')  # what grows with the collection
LOOKUPS, TURNS = 2000, 5


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench suffixes', __doc__, '--documents 1000,10000,100000,1000000')
  add = parser.add_argument_group('suffixes').add_argument
  add('--documents', default='1000,10000,100000,1000000', metavar='N,N', help='sizes, in pages')
  add('--vocab', type=positive, default=49152, help='tokens of the model')
  add('--depth', type=positive, default=16, help='tokens by which suffixes are sorted')
  add('--length', type=positive, default=8, help='tokens of the n-grams that are looked up')
  add('--window', type=positive, default=512, help='rows of a prefix that are read on the device')
  add('--queries', type=positive, default=16, help='queries of a step')
  add('--beams', type=positive, default=10, help='beams of each')
  add('--plot', type=Path, metavar='FILE.svg', help='write a plot')
  add('--json', action='store_true', help='also print the answer as one last line of JSON')
  args = parser.parse_args(argv)
  try:
    args.documents = sorted({int(n) for n in args.documents.split(',')})
  except ValueError:
    parser.error('--documents: numbers, such as 1000,10000')
  if min(args.documents) < 1 or args.length >= args.depth or args.vocab < 100:
    parser.error('--documents must be positive, --length less than --depth, --vocab at least 100')
  return args


def measure(args: argparse.Namespace, documents: int) -> dict[str, float]:
  """One point."""
  text = _collection.text(documents, args.vocab)
  begin = time.process_time()
  index = Suffixes.build(text, _collection.symbols(args.vocab), args.depth, args.window)
  build_s = time.process_time() - begin
  arrays = (index.text_N, index.order_N, *vars(index.heavy).values())
  places = np.random.default_rng(1).integers(0, len(text) - args.length, LOOKUPS)
  ngrams = [text[at : at + args.length].tolist() for at in places]
  begin = time.process_time()
  for ngram in ngrams:
    index.interval(ngram)
  host_us = (time.process_time() - begin) / LOOKUPS * 1e6
  _, building = suffixes.memory(len(text))
  return {
    'documents': documents, 'tokens': len(text), 'build_s': build_s,
    'bytes': sum(x.nbytes for x in arrays), 'building': building,
    'heavy': len(index.heavy.first) - 1, 'host_us': host_us, 'step_ms': step_ms(args, index),
  }  # fmt: skip


def step_ms(args: argparse.Namespace, index: Suffixes) -> float:
  """The time of a step of body n-grams, from the fastest of a few walks of args.length tokens."""
  widest = frontier.widest(index, (), _collection.END, args.vocab, args.length)
  light = min(args.window, len(index))
  stacked = jax.tree.map(jnp.asarray, frontier.stack([index], max(widest)))
  shape = (args.queries, args.beams, args.vocab)
  logits_BMV = jax.random.normal(jax.random.key(0), shape)

  def step(index, rows, score_BM, logits_BMV, depth, widths):
    [chosen] = frontier.choose(
      index, rows, depth, widths, logits_BMV, score_BM, _collection.END, [args.beams]
    )
    rows = frontier.descend(index, rows, depth, widths.light, chosen.parent, chosen.token)
    return rows, chosen.score

  @jax.jit
  def walk(index, logits_BMV):
    rows = Rows(*(jnp.full((1, args.queries, 1), x) for x in (0, len(index.order_SN[0]), 0)))
    score_B1 = jnp.zeros((args.queries, 1))
    first = Widths(0, widest[0])
    rows, score_BM = step(index, rows, score_B1, logits_BMV[:, :1], 0, first)
    later = functools.partial(step, index, widths=Widths(light, widest[1]))

    def one(state, depth):
      # Other logits for each step, or the compiler computes their sum once.
      return later(*state, jnp.roll(logits_BMV, depth, axis=1), depth), None

    return jax.lax.scan(one, (rows, score_BM), jnp.arange(1, args.length))[0]

  times = []
  for _ in range(TURNS + 1):
    begin = time.perf_counter()
    jax.block_until_ready(walk(stacked, logits_BMV))
    times.append(time.perf_counter() - begin)
  return min(times[1:]) / args.length * 1e3


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  points = []
  for documents in args.documents:
    points.append(measure(args, documents))
    print(*row(points[-1]), flush=True)
  sizes = [p['tokens'] for p in points]
  slopes = {name: _figures.slope(sizes, [p[name] for p in points]) for name in LABELS}
  heads = ['pages', 'tokens', 'build, CPU s', 'index MB', 'building MB, at most', 'heavy prefixes']
  heads += ['look-up, CPU µs', 'step, ms']
  last = ['slope', '', *(f'{slopes[n]:.2f}' for n in ('build_s', 'bytes')), '', '']
  last += [f'{slopes[n]:.2f}' for n in ('host_us', 'step_ms')]
  print(
    f'\nn-grams of {args.length} tokens, {args.queries} queries with {args.beams} beams, window '
    f'{args.window}, {args.vocab:,} tokens in the vocabulary; {processor.described()}\n'
  )
  print(tables.markdown(heads, [*map(row, points), *[last] * (len(points) > 1)]))
  if args.plot:
    draw(points, slopes, args.plot)
  if args.json:
    print(json.dumps(_figures.short({'bench': 'suffixes', 'points': points, 'slopes': slopes})))


def row(point: dict) -> list[str]:
  return [
    f'{point["documents"]:,}', f'{point["tokens"]:,}', f'{point["build_s"]:.2f}',
    f'{point["bytes"] / 1e6:,.1f}', f'{point["building"] / 1e6:,.0f}', f'{point["heavy"]:,}',
    f'{point["host_us"]:.0f}', f'{point["step_ms"]:.2f}',
  ]  # fmt: skip


def draw(points: list[dict], slopes: dict[str, float], file: Path) -> None:
  """Plots each measure against tokens, all scales logarithmic; dotted: linear."""
  figure, axes = plt.subplots(1, len(LABELS), figsize=(2.6 * len(LABELS), 2.6))
  tokens = [p['tokens'] for p in points]
  for axis, (name, label) in zip(axes, LABELS.items(), strict=True):
    ys = [p[name] / (1e6 if name == 'bytes' else 1) for p in points]
    if name in LINEAR:
      axis.plot(tokens, [ys[0] * n / tokens[0] for n in tokens], ':', color='grey', linewidth=1)
    axis.plot(tokens, ys, 'o-', color=plots.COLOURS[1])
    axis.set(xscale='log', yscale='log', xlabel='tokens', ylabel=label)
    axis.set_title(f'slope {slopes[name]:.2f}', fontsize=9)
    if name not in LINEAR:
      axis.set_ylim(min(ys) / 10, max(ys) * 10)
  plots.finish(figure, file)
