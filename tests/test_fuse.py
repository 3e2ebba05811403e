"""`disranker fuse`: fusion of runs by ranks and by scores."""

from fractions import Fraction
from pathlib import Path

import pytest

from disranker_jax.commands import cli
from disranker_jax.commands.fuse import main
from disranker_jax.errors import UserError
from disranker_jax.evaluation.runs import read_run


def run_of(folder: Path, name: str, lines: str) -> Path:
  file = folder / name
  file.write_text(''.join(f'{line} {name}\n' for line in lines.splitlines()))
  return file


@pytest.fixture
def runs(tmp_path) -> list[str]:
  """A model and BM25, whose rank columns and score scales disagree."""
  model = run_of(tmp_path, 'model', 'q Q0 a 9 .3\nq Q0 b 9 .2\nq Q0 c 9 .1\np Q0 a 1 1')
  bm25 = run_of(tmp_path, 'bm25', 'p Q0 a 1 7\nq Q0 c 1 90\nq Q0 b 2 85\nq Q0 a 3 -10')
  return [str(model), str(bm25)]


def fused(tmp_path, *words: str) -> dict[str, dict[str, float]]:
  main([*words, '--out', str(tmp_path / 'both.run')])
  return read_run(tmp_path / 'both.run')


def test_scores_are_sums_of_reciprocal_ranks(tmp_path, runs):
  cli.main(['fuse', *runs, '--out', str(tmp_path / 'both.run')])
  rows = [line.split() for line in (tmp_path / 'both.run').read_text().splitlines()]
  ends, middle = Fraction(1, 61) + Fraction(1, 63), 2 * Fraction(1, 62)
  # Of equal scores the greater id is first, as everywhere.
  assert [(r[0], r[2], int(r[3])) for r in rows] == [
    ('q', 'c', 1), ('q', 'a', 2), ('q', 'b', 3), ('p', 'a', 1)
  ]  # fmt: skip
  wanted = [ends, ends, middle, 2 * Fraction(1, 61)]
  assert [float(r[4]) for r in rows] == pytest.approx([float(w) for w in wanted], rel=1e-8)


def test_a_weight_makes_its_run_count_more(tmp_path, runs):
  scores = fused(tmp_path, *runs, '--weights', '1,3')
  assert scores['q']['c'] == pytest.approx(1 / 63 + 3 / 61)
  assert list(scores['q']) == ['c', 'b', 'a']  # BM25's order


def test_scores_are_scaled_by_query_before_they_are_added(tmp_path, runs):
  scores = fused(tmp_path, *runs, '--method', 'scores', '--weights', '1,2')
  assert scores['q'] == pytest.approx({'a': 1.0, 'b': 0.5 + 2 * 0.95, 'c': 2.0})
  assert scores['p'] == {'a': 0.0}  # a single document has no scale


def test_a_document_that_one_run_lacks_is_named(tmp_path):
  model = run_of(tmp_path, 'model', 'q Q0 a 1 .3\nq Q0 b 2 .2')
  bm25 = run_of(tmp_path, 'bm25', 'q Q0 a 1 7')
  for runs in ((model, bm25), (bm25, model)):
    with pytest.raises(
      UserError, match=r"bm25: lacks document 'b' of query 'q', which .*model has"
    ):
      fused(tmp_path, *map(str, runs))
    assert not (tmp_path / 'both.run').exists()


@pytest.mark.parametrize(
  'flags, where',
  [
    (['--weights', '1'], 'has 1 weights for 2 runs'),
    (['--weights', '1,x'], 'write numbers with commas'),
    (['--weights', '1,nan'], 'must be above 0'),
    (['--out', '/dev/null/x'], 'cannot be written'),
  ],
)
def test_wrong_arguments_are_named(tmp_path, runs, flags, where):
  with pytest.raises(UserError, match=where):
    main([*runs, '--out', str(tmp_path / 'both.run'), *flags])
  with pytest.raises(UserError, match='name two or more runs'):
    main([runs[0], '--out', str(tmp_path / 'both.run')])
