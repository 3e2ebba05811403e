"""`disranker average`: means over runs by hand, what is left out, and each error."""

import json
from pathlib import Path

import numpy as np
import pytest

from disranker_jax import config as configs
from disranker_jax.commands import average
from disranker_jax.data import store
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, significance
from disranker_jax.evaluation.average import Average
from disranker_jax.stages.evaluate import merge_per_query, write_per_query

NAMES = ('ndcg@10', 'mrr@10')


def write(folder: Path, rows: dict[str, list[float]], system='query_rewriting', **changes) -> Path:
  """A finished run whose rows have these values of nDCG@10 and, halved, of MRR@10, per query."""
  config = configs.defaults(system)
  config.update_from_flattened_dict({'data.test': f'jsonl:{folder.name}.jsonl'} | changes)
  stage = folder / ('search' if system == 'query_rewriting' else 'evaluate')
  stage.mkdir(parents=True)
  configs.save(config, folder / 'config.json')
  empty = metrics.per_query({'q': {}}, {'q': {}}, names=NAMES)['q']
  for name, values_Q in rows.items():
    of_row = {f'q{i}': empty | {'ndcg@10': x, 'mrr@10': x / 2} for i, x in enumerate(values_Q)}
    write_per_query(stage / f'{name}.csv', name, of_row)
  merge_per_query(stage, list(rows), NAMES)
  (stage / 'results.json').write_text(json.dumps({name: {'title': name} for name in rows}))
  (stage / 'manifest.json').write_text(json.dumps({'status': 'done'}))
  return folder


def write_tests(folder: Path, texts: list[str], judged: int = 1) -> None:
  """The prepared test records of a run; its queries share their judgements from three on."""
  docs = tuple(Document(f'd{i}', 'text', '', label=1) for i in range(judged))
  groups = [Group(f'q{i}', text, docs) for i, text in enumerate(texts)]
  store.write('test', groups, folder / 'data' / 'test')


@pytest.fixture
def runs(tmp_path):
  """Two runs: two queries, and six with higher values."""
  rows = {'original': [0.0, 0.2], 'rewrite': [0.4, 0.2]}
  other = {'original': [0.8] * 5 + [0.5], 'rewrite': [0.8] * 5 + [0.2]}
  return write(tmp_path / 'small', rows), write(tmp_path / 'large', other)


def averaged(capsys, *argv) -> dict:
  average.main([*map(str, argv), '--json'])
  return json.loads(capsys.readouterr().out)


class TestTable:
  def test_each_run_counts_alike(self, runs, capsys):
    found = averaged(capsys, *runs)
    original, rewrite = found['rows']
    # The mean over all eight queries would be .5875 and not .425.
    assert original['runs'] == pytest.approx({'small': 0.1, 'large': 0.75})
    assert original['value'] == pytest.approx(0.425)
    assert rewrite['value'] == pytest.approx((0.3 + 0.7) / 2)
    assert rewrite['difference']['value'] == pytest.approx(0.075)
    assert found['metric'] == 'ndcg@10' and found['against'] == 'original'
    assert 'difference' not in original
    assert [run['queries'] for run in found['runs']] == [2, 6]

  def test_another_metric_and_row_to_compare_with(self, runs, capsys):
    found = averaged(capsys, *runs, '--metric=RR@10', '--against=rewrite')
    original, rewrite = found['rows']
    assert found['metric'] == 'mrr@10' and original['value'] == pytest.approx(0.2125)
    assert original['difference']['value'] == pytest.approx(-0.0375)
    assert 'difference' not in rewrite

  def test_what_is_printed_and_written(self, runs, tmp_path, capsys):
    out = tmp_path / 'tables' / 'bright.md'
    average.main([f'bio={runs[0]}', str(runs[1]), f'--out={out}'])
    said, text = capsys.readouterr(), out.read_text()
    assert said.out.startswith('nDCG@10, mean over 2 runs\n')
    head = next(line for line in said.out.splitlines() if line.startswith('model'))
    assert head.split()[-2:] == ['bio', 'large']
    assert 'rewrite: better than original in 1 of 2 runs, worse in 1: large -0.050' in said.out
    assert '8 test queries (bio 2, large 6)' in said.out
    assert '| rewrite | 0.500 |' in text and f'disranker average bio={runs[0]}' in text
    assert f'saved as {out}' in said.err

  def test_two_folders_with_one_name_are_named_by_their_paths(self, tmp_path, capsys):
    rows = {'original': [0.0, 1.0]}
    pair = write(tmp_path / 'a' / 'x', rows), write(tmp_path / 'b' / 'x', rows)
    assert list(averaged(capsys, *pair)['rows'][0]['runs']) == list(map(str, pair))

  def test_random_order_is_not_tested(self, tmp_path, capsys):
    rows = {'random': [0.1, 0.2], 'bm25': [0.3, 0.4], 'student': [0.4, 0.6]}
    pair = [write(tmp_path / name, rows, 'disranker') for name in ('a', 'b')]
    found = averaged(capsys, *pair, '--metric=ndcg@10')
    tested = [row['name'] for row in found['rows'] if 'difference' in row]
    assert tested == ['student'] and found['against'] == 'bm25'


class TestStatistics:
  METRIC = 'ndcg@10'

  def average(self, *sets, clusters=None, **more):
    """Of sets {row: values}; every query by itself unless clusters are given."""
    cells = [{(r, self.METRIC): significance.mean_of(x) for r, x in s.items()} for s in sets]
    alone = [list(range(len(next(iter(s.values()))))) for s in sets]
    return Average(cells, clusters or alone, **more)

  def test_the_interval_is_that_of_stratified_draws(self):
    """Two sets of two queries: the draws' mean is a sum of two binomials, so it is known."""
    means = self.average({'a': [0, 1]}, {'a': [0, 2]}, samples=40_000)
    draws = means.draws(('a', self.METRIC))
    # (x + 2 y) / 2 with x, y of 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4, independent.
    halves = ((0, 0.25), (0.5, 0.5), (1, 0.25))
    wanted: dict[float, float] = {}
    for x, p in halves:
      for y, q in halves:
        wanted[(x + 2 * y) / 2] = wanted.get((x + 2 * y) / 2, 0) + p * q
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == sorted(wanted)
    shares = [wanted[v] for v in sorted(wanted)]
    assert counts / len(draws) == pytest.approx(shares, abs=0.01)
    found = means.mean(('a', self.METRIC))
    assert (found['low'], found['high']) == (0.0, 1.5)  # both ends have probability 1/16

  def test_p_counts_every_way_to_swap(self):
    """Gains of .4, -.1, .3 in one set weigh a third each, one of .1 in the other a half."""
    ours, theirs = [0.5, 0.0, 0.3], [0.1, 0.1, 0.0]
    means = self.average({'a': ours, 'b': theirs}, {'a': [0.9, 0.4], 'b': [0.8, 0.4]})
    pair = {'a': (('a', self.METRIC), ('b', self.METRIC))}
    gains = [(x - y) / 3 for x, y in zip(ours, theirs, strict=True)] + [0.1 / 2]
    ways = [abs(sum(g if way >> i & 1 else -g for i, g in enumerate(gains))) for way in range(2**4)]
    extreme = sum(x >= abs(sum(gains)) - 1e-12 for x in ways)
    found = means.differences(pair)['a']
    assert found['p'] == extreme / 16 == 4 / 16  # with one weight for all it would be 6 / 16
    assert found['value'] == pytest.approx(sum(gains) / 2)

  def test_queries_of_a_cluster_are_swapped_together_within_their_set_only(self):
    """Four clusters in all: the names of clusters are used again in the other set."""
    sets = [{'a': [1.0] * 4, 'b': [0.0] * 4}] * 2
    clusters = [[0, 0, 1, 1]] * 2
    found = self.average(*sets, clusters=clusters)
    pair = {'a': (('a', self.METRIC), ('b', self.METRIC))}
    assert found.differences(pair)['a']['p'] == 2 / 2**4

  def test_holm_is_over_the_rows(self):
    rng = np.random.default_rng(0)
    rows = {name: (rng.random(30) + more).tolist() for name, more in zip('abc', (0, 0.2, 0.3),
                                                                       strict=True)}  # fmt: skip
    found = self.average(rows, rows).differences(
      {n: ((n, self.METRIC), ('a', self.METRIC)) for n in 'bc'}
    )
    plain = [found[n]['p'] for n in 'bc']
    assert [found[n]['p_holm'] for n in 'bc'] == pytest.approx(significance.holm(plain))
    assert found['c']['p_holm'] == pytest.approx(2 * found['c']['p'])


class TestWarnings:
  def said(self, capsys, *argv) -> list[str]:
    return averaged(capsys, *argv)['warnings']

  def test_a_row_that_a_run_lacks_is_left_out(self, tmp_path, capsys):
    full, rows = {'original': [0, 1], 'rm3': [1, 1], 'rewrite': [1, 0]}, {'original': [0, 1]}
    a = write(tmp_path / 'a', full)
    b = write(tmp_path / 'b', rows | {'rewrite': [1, 1]})
    found = averaged(capsys, a, b)
    assert [row['name'] for row in found['rows']] == ['original', 'rewrite']
    assert found['warnings'] == ['rm3: left out, because b has no such row']

  def test_settings_that_differ_are_named(self, tmp_path, capsys):
    rows = {'original': [0, 1]}
    a = write(tmp_path / 'a', rows, **{'search.engine': 'query_bm25', 'mesh.model': 2})
    b = write(tmp_path / 'b', rows)
    assert self.said(capsys, a, b) == [
      "the runs differ in config.search.engine ('query_bm25': a; 'bm25': b)"
    ]

  def test_queries_that_two_runs_have_are_counted(self, tmp_path, runs, capsys):
    for run, texts in zip(runs, (['x', 'Same one'], ['same  one', 'y']), strict=True):
      write_tests(run, texts)
    (said,) = self.said(capsys, *runs)
    assert said.startswith('1 query is in more than one run (small, large) and drawn in each')

  def test_queries_that_share_judgements_are_drawn_together(self, runs, capsys):
    write_tests(runs[1], [f'query {i}' for i in range(5)], judged=3)
    small, large = averaged(capsys, *runs)['runs']
    assert small['clusters'] == 2 and large['clusters'] == 2  # five together, and q5


class TestErrors:
  def error(self, *argv) -> str:
    with pytest.raises(UserError) as raised:
      average.main([*map(str, argv)])
    return str(raised.value)

  def test_a_folder_that_is_no_run(self, runs, tmp_path):
    assert 'nope: no such folder' in self.error(runs[0], tmp_path / 'nope')
    assert 'is not the workdir of a run' in self.error(runs[0], tmp_path)

  def test_two_runs_with_one_given_name(self, runs):
    assert "large: is named 'x', as another run is" in self.error(f'x={runs[0]}', f'x={runs[1]}')

  def test_one_run(self, runs):
    assert 'small: is one run; name two or more' in self.error(runs[0])

  def test_the_same_run_twice_however_it_is_written(self, runs, tmp_path):
    (tmp_path / 'link').symlink_to(runs[0])
    for again in (runs[0], f'other={runs[0]}', tmp_path / 'link', runs[0] / '..' / 'small'):
      assert 'is the same run as' in self.error(runs[0], runs[1], again)

  def test_a_run_that_is_not_finished(self, runs, tmp_path):
    stage = runs[1] / 'search' / 'manifest.json'
    stage.write_text(json.dumps({'status': 'running'}))
    said = self.error(*runs)
    assert 'large: the stage search is not done (the first stage that is not done is prepare)' in (
      said
    )
    assert f'disranker run --config FILE --workdir {runs[1]}' in said
    other = write(tmp_path / 'c', {'original': [0, 1]}, stages=('prepare', 'report'))
    (other / 'search' / 'manifest.json').unlink()
    assert 'c: the run has no stage search, which fills the table' in self.error(runs[0], other)

  def test_a_config_that_is_not_that_of_a_run(self, runs):
    for text in ('[1]', '{}'):
      (runs[1] / 'config.json').write_text(text)
      assert 'is not the config of a run' in self.error(*runs)

  def test_a_table_whose_files_are_of_different_rows(self, runs):
    (runs[1] / 'search' / 'results.json').write_text('{"other": {}}')
    assert 'results.json and per_query.csv have no row in common' in self.error(*runs)

  def test_a_table_without_its_files(self, runs):
    (runs[1] / 'search' / 'per_query.csv').unlink()
    assert 'make the table again: the command of the run with --rerun=search' in self.error(*runs)

  def test_runs_of_two_systems(self, runs, tmp_path):
    other = write(tmp_path / 'rank', {'bm25': [0, 1]}, 'disranker')
    said = self.error(*runs, other)
    assert "rank: is a run of the system 'disranker'" in said and "'query_rewriting'" in said

  def test_other_grades_are_relevant(self, runs, tmp_path, capsys):
    other = write(
      tmp_path / 'graded', {'original': [0, 1], 'rewrite': [0, 1]}, **{'search.min_relevance': 2}
    )
    said = self.error(*runs, other, '--metric=mrr@10')
    assert 'config.search.min_relevance: small 1, large 1, graded 2' in said
    assert averaged(capsys, *runs, other)['warnings'] == []  # nDCG has no such grade

  def test_a_metric_that_is_not_there(self, runs):
    said = self.error(*runs, '--metric=recall@7')
    assert '--metric recall@7: is not in the table of' in said and said.endswith('ndcg@10, mrr@10')
    assert '--metric pnr: is a ratio of pairs' in self.error(*runs, '--metric=pnr')

  def test_a_row_to_compare_with_that_is_not_there(self, runs, tmp_path):
    assert "the row 'rm3', with which the others are compared, is not in the table of any run" in (
      self.error(*runs, '--against=rm3')
    )
    other = write(tmp_path / 'c', {'rewrite': [0, 1]})
    said = self.error(*runs, other)
    assert "the row 'original'" in said and 'table of c; name one' in said
    assert said.endswith('--against: rewrite')

  def test_one_query(self, runs, tmp_path):
    other = write(tmp_path / 'one', {'original': [0.5], 'rewrite': [0.5]})
    assert 'one: has only one test query' in self.error(*runs, other)

  def test_a_place_that_cannot_be_written(self, runs, tmp_path):
    assert f'--out={tmp_path}: cannot be written' in self.error(*runs, f'--out={tmp_path}')
