"""Rows per second of reading, tokenising and packing, each alone and all together.

A row is a query with one document. All together is the stage's own stream, which reads and
tokenises in threads: the fastest that it can feed a training step. No model is run.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks import _compare, _figures, _work
from disranker_jax.commands.common import positive
from disranker_jax.data import batches
from disranker_jax.devices import processor
from disranker_jax.report import tables
from disranker_jax.stages import prepare, sft

PARTS = ('read', 'tokenise', 'pack', 'all')


def parse_args(argv) -> argparse.Namespace:
  parser = _work.parser('data', __doc__, _work.TRAINING)
  parser.add_argument('--queries', type=positive, default=512, help='queries per turn')
  return _work.parse(parser, argv)


def packed(groups: list[batches.EncodedGroup], shape: batches.Shape) -> list[dict]:
  """Training batches of the groups, in order."""
  made, packer = [], batches.Packer(shape)
  for group in groups:
    if not packer.add(group):
      made.append(packer.batch())
      packer = batches.Packer(shape)
      packer.add(group)
  return [*made, packer.batch()]


class Data:
  """A stage's records, and the time that each part of the input takes on them."""

  def __init__(self, work: _work.Work, queries: int):
    side = work.open_side()
    (_, self._feed), self._queries = work.job(side), queries
    self.shape = self._feed.data.shape
    self._source = prepare.records(work.run(), work.kinds()[0])
    self._encode, draw = encoder(work, side)
    rng = np.random.default_rng(0)
    self._records = [draw(self._source[i], rng) for i in self._indices()]
    self._encoded = [self._encode(r) for r in self._records]
    self._rows = sum(len(g.docs) for g in self._encoded)
    self._tokens = sum(len(d) for g in self._encoded for d in g.docs)
    self._stream = self._feed.data.stream(0)

  def _indices(self) -> Iterator[int]:
    """Record numbers spread over the source, as a shuffle reads it."""
    count = len(self._source)
    return ((i * 7919) % count for i in range(self._queries))

  def turn(self) -> dict[str, dict]:
    """{part: rows, tokens and seconds}."""
    one = {'rows': self._rows, 'tokens': self._tokens}
    return {
      'read': one | timed(lambda: [self._source[i] for i in self._indices()]),
      'tokenise': one | timed(lambda: [self._encode(r) for r in self._records]),
      'pack': one | timed(lambda: packed(self._encoded, self.shape)),
      'all': self._together(),
    }

  def _together(self) -> dict:
    made, rows = [], 0

    def run():
      nonlocal rows
      while rows < self._rows:
        made.append(self._stream.next()[0])
        rows += int(made[-1]['mask_GN'].sum())

    took = timed(run)
    tokens = sum(int((b['segments_BT'] > 0).sum()) for b in made)
    places = sum(b['segments_BT'].size for b in made)
    return {'rows': rows, 'tokens': tokens, 'places': places} | took


def encoder(work: _work.Work, side) -> tuple[Callable, Callable]:
  """(function that tokenises a record, function that draws its documents), as in the stage."""
  if work.stage == 'cpt':
    prompt = side.prompt(predict=work.config.cpt.predict)
    return functools.partial(batches.encode_click, prompt), lambda record, rng: record
  size = work.config[work.stage].group_size
  return functools.partial(batches.encode_group, side.prompt()), functools.partial(sft.draw, size)


def timed(work: Callable) -> dict[str, float]:
  begin = time.perf_counter()
  work()
  return {'seconds': time.perf_counter() - begin}


def measure(args: argparse.Namespace) -> dict:
  with _work.prepared(args) as work:
    data = Data(work, args.queries)
    turns = [data.turn() for _ in range(args.rounds)]
  parts = {}
  for part in PARTS:
    rows = [turn[part] for turn in turns]
    parts[part] = {
      'rows_per_s': _figures.median(rows, 'rows'),
      'tokens_per_s': _figures.median(rows),
      'ms_per_row': statistics.median(1000 * r['seconds'] / r['rows'] for r in rows),
    }
  together = [turn['all'] for turn in turns]
  used, places = (sum(r[k] for r in together) for k in ('tokens', 'places'))
  return {
    'bench': 'data', **_compare.described(args),
    'rounds': args.rounds, 'device': processor.described(),
    'tokens_per_s': parts['all']['tokens_per_s'], 'rows_per_s': parts['all']['rows_per_s'],
    'padding': 1 - used / places, 'parts': parts,
  }  # fmt: skip


def main(argv) -> None:
  args = parse_args(argv)
  answer = measure(args)
  print(
    f'data of {answer["stage"]} of {answer["config"]}, texts {answer["texts"]}; '
    f'{answer["device"]}; '
    f'medians of {args.rounds} turns; {answer["padding"]:.1%} of the positions are padding'
  )
  heads = ['part', 'rows/s', 'tokens/s', 'ms per row']
  cells = [
    [n, f'{p["rows_per_s"]:,.0f}', f'{p["tokens_per_s"]:,.0f}', f'{p["ms_per_row"]:.3f}']
    for n, p in answer['parts'].items()
  ]
  print(tables.markdown(heads, cells))
  if args.json:
    print(json.dumps(_figures.short(answer)))
