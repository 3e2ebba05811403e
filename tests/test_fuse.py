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


def test_z_scores_are_added(tmp_path, runs):
  scores = fused(tmp_path, *runs, '--method', 'zscores')
  model = {'a': 1.5**0.5, 'b': 0.0, 'c': -(1.5**0.5)}
  bm25 = {'a': 0.0, 'b': 0.95, 'c': 1.0}
  mean = sum(bm25.values()) / 3
  deviation = (sum((x - mean) ** 2 for x in bm25.values()) / 3) ** 0.5
  wanted = {doc: model[doc] + (bm25[doc] - mean) / deviation for doc in bm25}
  assert scores['q'] == pytest.approx(wanted)


def test_runs_of_different_depths_and_queries_are_fused_and_what_they_lack_is_counted(
  tmp_path, capsys
):
  model = run_of(tmp_path, 'model', 'q Q0 a 1 .3\nq Q0 b 2 .2\np Q0 a 1 1')
  bm25 = run_of(tmp_path, 'bm25', 'q Q0 a 1 7\nq Q0 c 2 6\nq Q0 d 3 5')
  third = run_of(tmp_path, 'third', 'q Q0 d 1 1')
  scores = fused(tmp_path, str(model), str(bm25), str(third))
  assert scores['q'] == pytest.approx({'a': 2 / 61, 'b': 1 / 62, 'c': 1 / 62, 'd': 1 / 63 + 1 / 61})
  assert scores['p'] == pytest.approx({'a': 1 / 61})
  said = capsys.readouterr().err
  assert 'model: lacks 2 of 5 documents of its queries; they count as its last' in said
  assert 'bm25: lacks 1 of 2 queries, which the other runs rank alone' in said
  assert 'bm25: lacks 1 of 4 documents' in said and 'third: lacks 3 of 4 documents' in said


def test_runs_of_other_queries_are_refused(tmp_path):
  model = run_of(tmp_path, 'model', 'q Q0 a 1 .3')
  bm25 = run_of(tmp_path, 'bm25', 'other Q0 a 1 7')
  with pytest.raises(UserError, match=r'model: shares no query with the other runs'):
    fused(tmp_path, str(model), str(bm25))
  assert not (tmp_path / 'both.run').exists()


def test_weights_are_chosen_on_judgements_and_used_for_all_queries(tmp_path, capsys):
  """Only a is relevant to q, which BM25 has first; r has no judgements."""
  model = run_of(tmp_path, 'model', 'q Q0 c 1 3\nq Q0 a 2 1\nr Q0 x 1 5\nr Q0 y 2 1')
  bm25 = run_of(tmp_path, 'bm25', 'q Q0 a 1 9\nq Q0 c 2 8\nr Q0 y 1 2\nr Q0 x 2 1')
  (tmp_path / 'qrels').write_text('q 0 a 1\nelsewhere 0 a 1\n')
  flags = ('--method', 'scores', '--choose-on', str(tmp_path / 'qrels'))
  scores = fused(tmp_path, str(model), str(bm25), *flags)
  # Of all weights of the model below 1/2, which put a first, .45 is the nearest to 1/2.
  assert scores['r'] == pytest.approx({'x': 0.45, 'y': 0.55})
  said = capsys.readouterr().err
  assert 'model has weight 0.45' in said and 'bm25 0.55: nDCG@5 1.000 on 1 query' in said
  assert 'alone 0.631 and 1.000' in said


@pytest.mark.parametrize(
  'flags, where',
  [
    (['--weights', '1'], 'has 1 weight for 2 runs'),
    (['--weights', '1,x'], 'write numbers with commas'),
    (['--weights', '1,nan'], 'must be above 0'),
    (['--out', '/dev/null/x'], 'cannot be written'),
    (['--choose-on', 'qrels', '--weights', '1,2'], 'leave --weights out'),
  ],
)
def test_wrong_arguments_are_named(tmp_path, runs, flags, where):
  with pytest.raises(UserError, match=where):
    main([*runs, '--out', str(tmp_path / 'both.run'), *flags])
  with pytest.raises(UserError, match='name two or more runs'):
    main([runs[0], '--out', str(tmp_path / 'both.run')])
  with pytest.raises(UserError, match='chooses the weights of two runs'):
    main([*runs, runs[0], '--out', str(tmp_path / 'both.run'), '--choose-on', 'qrels'])
