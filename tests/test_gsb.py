"""Delta-GSB: the paper's figure, verdicts from runs and from files of people's, what is refused."""

import gzip
import math

import numpy as np
import pytest
import scipy.stats

from disranker_jax.errors import UserError
from disranker_jax.evaluation import gsb


def votes(good, same, bad):
  every = [1] * good + [0] * same + [-1] * bad
  return {f'q{i}': [v] for i, v in enumerate(every)}


def test_the_papers_table_54_116_30_is_plus_12_percent():
  counts = gsb.count(votes(54, 116, 30))
  assert counts == (54, 116, 30)
  assert counts.delta == pytest.approx(0.12)
  assert math.isnan(gsb.Counts(0, 0, 0).delta)


def test_p_is_that_of_the_sign_test():
  few = gsb.analyse(votes(9, 40, 3))
  assert few['p'] == pytest.approx(scipy.stats.binomtest(9, 12).pvalue, abs=1e-12)
  many = gsb.analyse(votes(54, 116, 30))
  p = scipy.stats.binomtest(54, 84).pvalue
  assert many['p'] == pytest.approx(p, abs=5 * math.sqrt(p / 10_000))


def test_the_interval_is_about_that_of_a_mean_of_verdicts():
  found = gsb.analyse(votes(54, 116, 30))
  spread = np.std([v for [v] in votes(54, 116, 30).values()]) / math.sqrt(200)
  assert found['delta'] == pytest.approx(0.12)
  assert found['low'] == pytest.approx(0.12 - 1.96 * spread, abs=0.01)
  assert found['high'] == pytest.approx(0.12 + 1.96 * spread, abs=0.01)


def test_a_querys_verdicts_stay_together():
  # Ten people of one mind are one query's worth of evidence, not ten.
  alike = {q: v * 10 for q, v in votes(5, 0, 1).items()}
  assert gsb.count(alike) == (50, 0, 10)
  once, tenfold = gsb.analyse(votes(5, 0, 1)), gsb.analyse(alike)
  assert tenfold['p'] == once['p'] == pytest.approx(scipy.stats.binomtest(5, 6).pvalue)
  assert (tenfold['low'], tenfold['high']) == (once['low'], once['high'])


def test_a_difference_up_to_the_threshold_is_the_same_and_rounding_does_not_decide():
  assert [gsb.verdict(d, 0.0) for d in (0.01, 0.1 + 0.2 - 0.3, -0.01)] == [1, 0, -1]
  assert [gsb.verdict(d, 0.3) for d in (0.31, 0.1 + 0.2, -0.31)] == [1, 0, -1]


# Files of human verdicts

EXPECTED = {'q1': [1, 0], 'q2': [-1]}


@pytest.mark.parametrize(
  'name, text',
  [
    ('v.csv', 'query_id,verdict,rater\nq1,good,ann\nq1,same,bob\nq2,bad,ann\n'),
    ('v.csv', 'rater;verdict;query_id\n"a;b";Good;q1\n\nx; S ;q1\nx;B;q2\n'),
    ('v.tsv', 'query_id\tverdict\nq1\tGOOD\nq1\tsame\nq2\tbad\n'),
    ('v.csv', '\ufeffquery_id,verdict\r\nq1,g\r\nq1,s\r\nq2,b\r\n'),
    ('v.csv', 'query_id,verdict,why\nq1,good,"two\nlines"\nq1,same,\nq2,bad,\n'),
    (
      'v.jsonl',
      '{"query_id": "q1", "verdict": "good", "rater": 1}\n'
      '{"query_id": "q1", "verdict": "same"}\n\n{"verdict": "bad", "query_id": "q2"}\n',
    ),
  ],
)
@pytest.mark.parametrize('zipped', [False, True])
def test_verdicts_are_read_from_csv_tsv_and_jsonl(tmp_path, name, text, zipped):
  file = tmp_path / (name + '.gz' * zipped)
  file.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
  assert gsb.read(file) == EXPECTED


@pytest.mark.parametrize(
  'text, where',
  [
    ('query_id,verdict\nq1,good\nq2,fine\n', r':3:verdict: is .fine.; write good, same or bad'),
    ('query_id,verdict\nq1\n', ':2:verdict: is missing'),
    ('query_id,verdict\n,good\n', ':2:query_id: is missing'),
    ('query,verdict\nq1,good\n', ':1: has no column query_id'),
    ('query_id,verdict\n', 'no verdicts'),
    ('query_id,verdict\nq1,"good\n', ':2: is not CSV'),
    ('{"query_id": "a", "verdict": "good"}\n[1]\n', ':2:row: is not an object'),
    ('{"query_id": "a", "verdict": "good"}\n{"verdict"\n', ':2:row: is invalid JSON'),
    ('{"query_id": 7, "verdict": "good"}\n', ':1:query_id: is missing or not text'),
    ('{"query_id": "a", "verdict": 1}\n', ':1:verdict: is 1'),
    ('', 'is empty'),
  ],
)
def test_what_is_wrong_with_a_verdict_is_said_with_its_line(tmp_path, text, where):
  (tmp_path / 'v').write_text(text)
  with pytest.raises(UserError, match=where) as error:
    gsb.read(tmp_path / 'v')
  assert str(error.value).startswith(str(tmp_path / 'v'))


def test_no_verdicts_at_all_is_an_error():
  with pytest.raises(UserError, match='no verdicts'):
    gsb.analyse({'q': []})
