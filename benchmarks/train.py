"""Tokens per second of a training stage's real step, beside torch on the same batches, in turn.

Prints for each side: tokens per second with and without padding, model FLOPs utilisation against
the peak of a matrix product measured in the same turns, waiting for data, compile time, memory,
checkpoint stalls. Torch is transformers with sdpa attention, each batch sorted by length and padded
in parts.
"""

import argparse
from pathlib import Path

from benchmarks import _compare, _work


def parse_args(argv) -> argparse.Namespace:
  return _compare.parse(_compare.parser('train', __doc__, _work.TRAINING, 2), argv)


def open_side(name: str, argv: list[str], folder: Path):
  return _compare.open_side(parse_args(argv), 'Train', name, folder)


def main(argv) -> None:
  args = parse_args(argv)
  _compare.run('train', args, argv, _compare.TORCH)
