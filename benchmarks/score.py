"""Pairs and tokens per second from texts to scores, beside torch on the same pairs, in turn.

The model is the teacher as the stage `score` runs it (adapters merged), or the student as
`evaluate` does. Ours starts from texts. Torch starts from token ids sorted by length, which favours
it. sentence-transformers' CrossEncoder, a peer of the student, starts from texts too.
"""

import argparse
from pathlib import Path

from benchmarks import _compare, _work


def parse_args(argv) -> argparse.Namespace:
  return _compare.parse(_compare.parser('score', __doc__, _work.SCORING, 4), argv)


def open_side(name: str, argv: list[str], folder: Path):
  return _compare.open_side(parse_args(argv), 'Score', name, folder)


def main(argv) -> None:
  args = parse_args(argv)
  texts = args.stage == 'evaluate' and not args.tokens
  _compare.run('score', args, argv, _compare.TORCH + (_compare.CROSS_ENCODER if texts else ()))
