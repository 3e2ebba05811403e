"""How `disranker ablate` compares its rows: seeds are averaged, queries drawn in clusters."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from ablations import results, write

from disranker_jax import config as configs
from disranker_jax.commands import ablate, ablation
from disranker_jax.data import holdout, store
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.stages.result_rows import TABLE

ROOT = Path(__file__).parents[1]

TINY = str(ROOT / 'configs' / 'tiny.py')


def table(folder, *flags):
  """(the numbers, the page) of the table of one row."""
  file = write(folder, '"""T."""\nROWS = {"a": ("bm25", {})}')
  ablate.main([str(file), '--config', TINY, '--out', str(folder), *flags])
  page = (folder / 'table-tiny.md').read_text()
  return json.loads((folder / 'table-tiny.json').read_text()), page


def test_seeds_are_averaged_and_rows_compared_over_queries():
  rng = np.random.default_rng(0)
  base_SQ, better_SQ = rng.random((1, 60)), rng.random((3, 60))
  better_SQ += 0.3
  pairs_SQ2 = np.stack([rng.integers(1, 9, (3, 60)), np.full((3, 60), 10)], -1).astype(float)
  rows = [ablation.Row('base', 'bm25', {}), ablation.Row('better', 'student', {})]
  rows.append(ablation.Row('same', 'bm25', {}))
  table = ablation.Ablation('T', '', tuple(rows), 'base', TABLE)
  base = results(base_SQ, pairs_SQ2[:1])
  rows = {'base': base, 'better': results(better_SQ, pairs_SQ2), 'same': base}
  result = ablate.analyse(table, rows, list(base.by_seed[0]))
  assert [row['name'] for row in result] == ['base', 'better', 'same']
  cell = result[1]['metrics']['ndcg@5']
  assert cell['value'] == pytest.approx(better_SQ.mean())
  assert cell['by_seed'] == pytest.approx(dict(enumerate(better_SQ.mean(1))))
  away = cell['difference']
  assert away['value'] == pytest.approx(better_SQ.mean() - base_SQ.mean())
  # A paired interval of a mean is about 1.96 standard errors of the differences by query.
  error = np.std(better_SQ.mean(0) - base_SQ[0]) / np.sqrt(60)
  assert away['high'] - away['low'] == pytest.approx(2 * 1.96 * error, rel=0.1)
  assert away['p'] <= away['p_holm'] <= 2 * away['p'] + 1e-9 and away['p_holm'] < 0.01
  same = result[2]['metrics']['ndcg@5']['difference']
  assert (same['value'], same['p_holm']) == (0, 1)
  # PNR is pooled: concordant over discordant pairs of all queries and seeds.
  concordant, every = pairs_SQ2.sum((0, 1))
  assert result[1]['metrics']['pnr']['value'] == pytest.approx(
    metrics.ratio(concordant, every - concordant)
  )


@pytest.mark.parametrize('metric', ['ndcg@5', 'pnr'])
def test_a_row_with_seeds_is_tested_against_one_without_by_the_means_of_its_queries(metric):
  """Rankings of a query are alike in all rows: hard queries are hard for each of them."""
  rng, hard_Q = np.random.default_rng(3), np.linspace(0.1, 0.8, 9)
  base_SQ = hard_Q + rng.normal(0, 0.03, (1, 9))
  seeds_SQ = hard_Q + 0.06 + rng.normal(0, 0.03, (3, 9))
  rows = {
    name: results(of_SQ, np.stack([10 * of_SQ, np.full(of_SQ.shape, 10.0)], -1))
    for name, of_SQ in (('base', base_SQ), ('seeds', seeds_SQ))
  }
  of_rows = tuple(ablation.Row(name, 'bm25', {}) for name in rows)
  table = ablation.Ablation('T', '', of_rows, 'base', TABLE)
  result = ablate.analyse(table, rows, list(rows['base'].by_seed[0]))[1]['metrics'][metric]
  reference = scipy.stats.permutation_test(
    (seeds_SQ.mean(0), base_SQ[0]), lambda a, b, axis: np.mean(a - b, axis),
    permutation_type='samples', vectorized=True, n_resamples=np.inf,
  ).pvalue  # fmt: skip
  assert 0.001 < reference < 0.05
  # PNR grows with the share of concordant pairs, and every query has ten pairs.
  assert result['difference']['p'] == pytest.approx(reference, abs=1e-12)


def test_queries_of_one_cluster_are_drawn_together():
  """Ten clusters of six equal queries say as much as ten queries."""
  rng, names = np.random.default_rng(1), ('base', 'other')
  table = ablation.Ablation(
    'T', '', tuple(ablation.Row(n, 'bm25', {}) for n in names), 'base', TABLE
  )
  # The last digit of q10 to q59 and q0 to q9 is the cluster.
  scores = {name: rng.random(10) for name in names}
  pairs = np.ones((1, 60, 2))
  sixty = {name: results(np.tile(ten, 6)[None], pairs) for name, ten in scores.items()}
  ten = {name: results(ten[None], pairs[:, :10]) for name, ten in scores.items()}
  cells = [
    ablate.analyse(table, rows, holdout.clusters(rows['base'].by_seed[0], by))[1]
    for rows, by in ((ten, ''), (sixty, r'\d$'))
  ]
  cells = [row['metrics']['ndcg@5']['difference'] for row in cells]
  assert cells[0] == pytest.approx(cells[1])


def test_one_cluster_of_all_queries_is_refused_and_the_config_says_what_is_one(
  tmp_path, monkeypatch
):
  config = configs.defaults()
  config.report.cluster = '^q'
  with pytest.raises(UserError, match=r"'\^q' puts all queries into one cluster"):
    ablate.drawn(config, ['q0', 'q1', 'q2'], ablate.Results())
  rng = np.random.default_rng(2)
  row = results(rng.random((1, 40)), np.ones((1, 40, 2)))
  monkeypatch.setattr(ablate, 'run_all', lambda *_: {'a': row})
  for flags, clusters in ([], 40), (['--config.data.holdout_by=[0-9]$'], 10):
    result, page = table(tmp_path, *flags)
    assert (result['queries'], result['clusters']) == (40, clusters)
    assert ('10 clusters of queries (ids with the same match of `[0-9]$`)' in page) == bool(flags)


def test_queries_that_share_judgements_are_drawn_together_as_by_compare(tmp_path, monkeypatch):
  """Also those of different folds, each of which has a part of the queries."""
  rng = np.random.default_rng(2)
  row = results(rng.random((1, 40)), np.ones((1, 40, 2)))
  for fold in range(2):
    tests = [
      Group(f'q{q}', f'words {q}', tuple(
        Document(f'd{q // 4}-{d}', 't', 's', label=d) for d in range(3)))
      for q in range(fold, 40, 2)
    ]  # fmt: skip
    store.write('test', tests, tmp_path / f'fold{fold}' / 'data' / 'test')
    row.workdirs.append(tmp_path / f'fold{fold}')
  monkeypatch.setattr(ablate, 'run_all', lambda *_: {'a': row})
  for flags, clusters in ([], 10), (['--config.report.cluster=.+'], 40):
    result, page = table(tmp_path, *flags)
    assert (result['queries'], result['clusters']) == (40, clusters)
    assert ('10 clusters of queries (those that share judgements)' in page) == (clusters == 10)
  queries = [f'q{q}' for q in range(4)]
  with pytest.raises(UserError, match=r'one cluster; .*--config\.report\.cluster=\.\+'):
    ablate.drawn(configs.defaults(), queries, row)


def test_rows_that_rank_other_documents_are_told(tmp_path, monkeypatch, capsys):
  file = write(
    tmp_path, '"""T."""\nROWS = {"a": ("bm25", {}), "b": ("bm25", {"data.limit.test": 3})}'
  )
  found = {}
  for name, documents in (('a', 20), ('b', 50)):
    found[name] = results(np.ones((1, 40)), np.ones((1, 40, 2)))
    for row in found[name].by_seed[0].values():
      row['documents'] = documents
  monkeypatch.setattr(ablate, 'run_all', lambda *_: found)
  ablate.main([str(file), '--config', TINY, '--out', str(tmp_path)])
  said = 'The rows rank different documents (query-document pairs: a 800, b 2,000), so their PNR'
  assert said in capsys.readouterr().err
  assert said in (tmp_path / 'table-tiny.md').read_text()
  found['b'] = found['a']
  ablate.main([str(file), '--config', TINY, '--out', str(tmp_path)])
  # A difference of 0 in every query has no standard error; JSON has no nan.
  saved = json.loads((tmp_path / 'table-tiny.json').read_text(), parse_constant=pytest.fail)
  assert saved['rows'][1]['metrics']['ndcg@5']['difference']['needed'] == 'nan'
  assert 'different documents' not in capsys.readouterr().err


def test_rows_over_other_queries_are_refused():
  table = ablation.Ablation(
    'T', '', (ablation.Row('a', 'bm25', {}), ablation.Row('b', 'bm25', {})), 'a', TABLE
  )
  pairs = np.ones((1, 3, 2))
  with pytest.raises(UserError, match='b: was evaluated on other queries than a'):
    rows = {'a': results(np.ones((1, 3)), pairs), 'b': results(np.ones((1, 2)), pairs[:, :2])}
    ablate.analyse(table, rows, ['q0', 'q1', 'q2'])
