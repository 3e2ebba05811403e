"""experiments/fuse.py: reciprocal rank fusion of runs."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'experiments' / 'fuse.py'


def run_of(folder: Path, name: str, lines: str) -> Path:
  file = folder / name
  file.write_text(''.join(f'{line} {name}\n' for line in lines.splitlines()))
  return file


def fused(out: Path, *runs: Path) -> subprocess.CompletedProcess:
  words = [sys.executable, SCRIPT, *runs, '--out', out]
  return subprocess.run(words, capture_output=True, text=True)


def test_scores_are_sums_of_reciprocal_ranks(tmp_path):
  """Ranks come of scores, not of the rank column, and the scales of the runs do not matter."""
  model = run_of(tmp_path, 'model', 'q Q0 a 9 .3\nq Q0 b 9 .2\nq Q0 c 9 .1\np Q0 a 1 1')
  bm25 = run_of(tmp_path, 'bm25', 'p Q0 a 1 7\nq Q0 c 1 90\nq Q0 b 2 80\nq Q0 a 3 -5')
  out = tmp_path / 'both.run'
  done = fused(out, model, bm25)
  assert not done.returncode, done.stderr
  rows = [line.split() for line in out.read_text().splitlines()]
  ends, middle = Fraction(1, 61) + Fraction(1, 63), 2 * Fraction(1, 62)
  # Of equal scores the greater id stands first, as everywhere.
  assert [(r[0], r[2], int(r[3])) for r in rows] == [
    ('q', 'c', 1), ('q', 'a', 2), ('q', 'b', 3), ('p', 'a', 1)
  ]  # fmt: skip
  wanted = [ends, ends, middle, 2 * Fraction(1, 61)]
  assert [float(r[4]) for r in rows] == pytest.approx([float(w) for w in wanted], rel=1e-8)


def test_a_document_that_one_run_lacks_is_named(tmp_path):
  model = run_of(tmp_path, 'model', 'q Q0 a 1 .3\nq Q0 b 2 .2')
  bm25 = run_of(tmp_path, 'bm25', 'q Q0 a 1 7')
  for runs in ((model, bm25), (bm25, model)):
    done = fused(tmp_path / 'both.run', *runs)
    assert done.returncode == 2 and not (tmp_path / 'both.run').exists()
    assert f"{bm25}: lacks document 'b' of query 'q', which {model} has" in done.stderr
