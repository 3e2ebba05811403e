"""The compare command: its files, its figures against the metrics, and what it refuses."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import compare_files
import ir_measures
import numpy as np
import pytest
from compare_files import QUERIES, arguments, result
from ir_measures import AP, nDCG

from disranker_jax.commands import compare
from disranker_jax.data.records import NEGATIVE, REPEATED
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, significance, table
from disranker_jax.evaluation.runs import read_qrels, read_run
from disranker_jax.report import comparison

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
  return compare_files.write_all(tmp_path)


def loaded(folder, name):
  qrels = list(ir_measures.read_trec_qrels(str(folder / 'qrels.txt')))
  return qrels, list(ir_measures.read_trec_run(str(folder / f'{name}.run')))


def test_values_are_those_of_ir_measures_reading_the_same_files(folder):
  found = result(folder, 'good', metrics='ndcg_linear@5,map')['runs']['good']['metrics']
  theirs = ir_measures.calc_aggregate([nDCG @ 5, AP], *loaded(folder, 'good'))
  assert found['ndcg_linear@5']['value'] == pytest.approx(theirs[nDCG @ 5], abs=1e-6)
  assert found['map']['value'] == pytest.approx(theirs[AP], abs=1e-6)


def test_differences_are_those_of_the_library(folder):
  found = result(folder, 'weak', 'good', metrics='ndcg@5')['runs']['good']['differences']['ndcg@5']
  qrels = read_qrels(folder / 'qrels.txt')
  ours, theirs = (
    [r['ndcg@5'] for r in metrics.per_query(read_run(folder / name), qrels).values()]
    for name in ('good.run', 'weak.run')
  )
  sides = [significance.mean_of(values)[:, None] for values in (ours, theirs)]
  draws_S2 = significance.bootstrap(np.concatenate(sides, 1), 2000)
  ends = significance.interval(draws_S2[:, 0] - draws_S2[:, 1])
  assert found['value'] == pytest.approx(np.mean(ours) - np.mean(theirs))
  assert (found['low'], found['high']) == pytest.approx(ends)
  assert found['p'] == found['p_holm'] == significance.randomisation_p(*sides, 2000)[0]


def test_names_of_ir_measures_are_understood(folder):
  found = result(folder, 'good', metrics='nDCG@5,RR@10,AP,R@10')
  assert found['metrics'] == ['ndcg@5', 'mrr@10', 'map', 'recall@10']
  theirs = ir_measures.calc_aggregate([AP], *loaded(folder, 'good'))
  assert found['runs']['good']['metrics']['map']['value'] == pytest.approx(theirs[AP], abs=1e-6)


def test_pnr_is_pooled_with_an_interval_of_the_pooled_ratio(folder):
  found = result(folder, 'weak', 'good', metrics='pnr')['runs']
  qrels = read_qrels(folder / 'qrels.txt')
  rng = np.random.default_rng(99)
  for name in ('weak', 'good'):
    rows = metrics.per_query(read_run(folder / f'{name}.run'), qrels)
    value = found[name]['metrics']['pnr']
    assert value['value'] == pytest.approx(metrics.summary(rows)['pnr'])
    counts = np.array([(r['concordant'], r['discordant']) for r in rows.values()])
    draws = counts[rng.integers(QUERIES, size=(4000, QUERIES))].sum(1)
    low, high = np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5])
    assert (value['low'], value['high']) == pytest.approx((low, high), abs=0.1 * (high - low))
  values = [found[name]['metrics']['pnr']['value'] for name in ('good', 'weak')]
  assert found['good']['differences']['pnr']['value'] == pytest.approx(values[0] - values[1])
  assert found['good']['differences']['pnr']['p'] < 0.01


@pytest.mark.parametrize('test', table.TESTS)
def test_asking_a_topic_again_makes_nothing_surer_when_its_queries_are_drawn_together(folder, test):
  metrics_, again = 'pnr,ndcg@5,gsb@5', folder / 'again'
  again.mkdir()
  for file in ('qrels.txt', 'weak.run', 'good.run'):
    rows = [line.replace('\t', ' ').split(' ', 1) for line in (folder / file).open()]
    copies = [f'{query}-{copy} {rest}' for query, rest in rows for copy in range(3)]
    (again / file).write_text(''.join(copies))
  once, thrice, naive = (
    result(where, 'weak', 'good', metrics=metrics_, test=test, **flags)
    for where, flags in ((folder, {}), (again, {'cluster': '^[^-]+'}), (again, {'cluster': ''}))
  )
  assert (thrice['queries'], thrice['clusters']) == (3 * QUERIES, QUERIES)
  for metric in metrics_.split(','):
    of = [r['runs']['good']['differences'][metric] for r in (once, thrice, naive)]
    for key in ('value', 'low', 'high', 'p', 'p_holm'):
      assert of[1][key] == pytest.approx(of[0][key]), (metric, key)
    assert of[2]['high'] - of[2]['low'] < 0.8 * (of[0]['high'] - of[0]['low'])
  assert f'bootstrap over {QUERIES} clusters of queries' in comparison.markdown(thrice)


@pytest.mark.parametrize('test', table.TESTS)
def test_a_better_run_is_found_and_an_equal_one_is_not(folder, test):
  found = result(folder, 'weak', 'good', 'same', metrics='pnr,ndcg@5,gsb@5', test=test)['runs']
  for metric in ('pnr', 'ndcg@5', 'gsb@5'):
    assert found['good']['differences'][metric]['p_holm'] < 0.01
    equal = found['same']['differences'][metric]
    assert (equal['value'], equal['low'], equal['high'], equal['p']) == (0, 0, 0, 1)
  assert found['weak']['differences'] == {}


def test_holm_corrects_over_the_whole_table_and_judgements_are_not_tested(folder):
  found = result(folder, 'weak', 'good', 'same', metrics='pnr,ndcg@5,map,judged@10')
  cells = [d for run in found['runs'].values() for d in run['differences'].values()]
  assert found['tests'] == len(cells) == 6
  expected = significance.holm([cell['p'] for cell in cells])
  assert [cell['p_holm'] for cell in cells] == pytest.approx(list(expected))
  assert 'judged@10' in found['runs']['good']['metrics']


def test_gsb_counts_queries_by_the_threshold(folder):
  loose = result(folder, 'weak', 'good', metrics='gsb@5', same=0.3)
  strict = result(folder, 'weak', 'good', metrics='gsb@5')
  loose, strict = (r['runs']['good']['differences']['gsb@5'] for r in (loose, strict))
  for found in (loose, strict):
    assert found['good'] + found['same'] + found['bad'] == QUERIES
    assert found['value'] == pytest.approx((found['good'] - found['bad']) / QUERIES)
    assert found['low'] <= found['value'] <= found['high']
  assert loose['same'] > strict['same']


def test_tau_is_of_the_teachers_order_which_is_not_tested_against_itself(folder):
  found = result(folder, 'weak', 'good', teacher='good')
  qrels = read_qrels(folder / 'qrels.txt')
  weak, good = (read_run(folder / f'{name}.run') for name in ('weak', 'good'))
  value = found['runs']['weak']['metrics']['tau']['value']
  assert value == pytest.approx(metrics.mean_tau(weak, {q: good[q] for q in qrels}))
  assert found['runs']['good']['metrics']['tau']['value'] == 1
  assert 'tau' not in found['runs']['good']['differences']
  other = result(folder, 'weak', teacher=folder / 'good.run')
  assert other['runs']['weak']['metrics']['tau']['value'] == value


# What stands beside the figures


def test_missing_queries_count_0_and_are_warned_of_and_queries_without_judgements_do_not(folder):
  lines = (folder / 'weak.run').read_text().splitlines(keepends=True)
  kept = [line for line in lines if line.split()[0] not in ('q1', 'q2', 'q3')]
  (folder / 'part.run').write_text(''.join(kept) + 'new Q0 d1 1 0.5 x\n')
  whole = result(folder, 'weak', metrics='ndcg@5')
  part = result(folder, 'part', metrics='ndcg@5')
  qrels, run = (
    read_qrels(folder / 'qrels.txt'),
    read_run(folder / 'weak.run'),
  )
  lost = sum(metrics.ndcg(run[q], qrels[q], 5) for q in ('q1', 'q2', 'q3')) / QUERIES
  values = [
    r['runs'][n]['metrics']['ndcg@5']['value'] for r, n in ((whole, 'weak'), (part, 'part'))
  ]
  assert values[1] == pytest.approx(values[0] - lost)
  assert whole['warnings'] == []
  assert part['warnings'] == [
    'part: no documents for 3 of 40 queries (q1, q2, q3), which count as 0',
    'part: no judgements for 1 of 38 queries (new), which do not count',
  ]
  assert (part['runs']['part']['missing'], part['runs']['part']['without_judgements']) == (3, 1)


def test_queries_without_an_answer_are_warned_of(folder):
  with (folder / 'qrels.txt').open('a') as f:
    f.write('barren 0 d1 0\n')
  warnings = result(folder, 'weak')['warnings']
  assert warnings[1].endswith(
    'no document reaches grade 1 for 1 of 41 queries (barren), whose nDCG, MRR, MAP and recall are '
    '0 for every run'
  )
  warnings = result(folder, 'weak', relevant=2)['warnings']
  assert warnings[1].endswith('(barren), whose MRR, MAP and recall are 0 for every run')


def test_the_baseline_is_the_first_run_or_the_one_that_is_named(folder):
  assert result(folder, 'weak', 'good')['baseline'] == 'weak'
  named = result(folder, 'weak', 'good', baseline='good')
  assert named['baseline'] == 'good' and list(named['runs']) == ['good', 'weak']
  by_file = result(folder, 'weak', baseline=folder / 'good.run')
  assert by_file['baseline'] == 'good' and list(by_file['runs']) == ['good', 'weak']
  assert result(folder, 'weak')['baseline'] is None


def test_runs_of_one_file_name_are_told_apart(folder):
  (folder / 'b').mkdir()
  (folder / 'b' / 'weak.run').write_text((folder / 'good.run').read_text())
  assert list(result(folder, 'weak', 'b/weak')['runs']) == [
    str(folder / 'weak.run'), str(folder / 'b' / 'weak.run'),
  ]  # fmt: skip
  args = arguments(folder)
  args = [f'old={folder}/weak.run', f'new={folder}/b/weak.run', *args]
  assert list(compare.compare(compare.parse_args(args))[0]['runs']) == ['old', 'new']


# The command


def test_the_table_says_who_is_better_by_how_much_and_is_saved(folder, capsys):
  flags = {'metrics': 'pnr,ndcg@5,gsb@5', 'out': folder / 'out'}
  compare.main(arguments(folder, 'weak', 'good', **flags))
  printed = capsys.readouterr().out
  saved = json.loads((folder / 'out' / 'compare.json').read_text())
  page = (folder / 'out' / 'compare.md').read_text()
  good = saved['runs']['good']
  cell = f'{good["differences"]["ndcg@5"]["value"]:+.3f}'
  for text in (printed, page):
    assert cell in text and 'nDCG@5' in text and 'delta-GSB@5 against weak' in text
    assert f'{good["metrics"]["pnr"]["value"]:.2f}' in text
  counts = good['differences']['gsb@5']
  assert f'{counts["good"]} : {counts["same"]} : {counts["bad"]}' in printed
  starred = [line for line in printed.splitlines() if line.startswith('good') and '*' in line]
  assert len(starred) == 4  # the overview and three metrics
  rows = list(csv.DictReader((folder / 'out' / 'per_query.csv').open()))
  assert len(rows) == 2 * QUERIES
  mean = np.mean([float(r['ndcg@5']) for r in rows if r['run'] == 'good'])
  assert mean == pytest.approx(good['metrics']['ndcg@5']['value'])


def test_columns_of_the_table_line_up(folder, capsys):
  compare.main(arguments(folder, 'weak', 'good'))
  for block in capsys.readouterr().out.split('\n\n')[1:-1]:
    lines = block.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {'-'})
    head, rows = lines[rule - 1], lines[rule + 1 :]
    end = head.index('value') + 5 if 'value' in head else head.index('PNR') + 3
    assert all(row[end - 1].isdigit() and row[end : end + 1] in ('', ' ', '*') for row in rows)


def test_json_is_printed_alone_and_the_same_files_give_the_same_figures(folder, capsys):
  words = [*arguments(folder, 'weak', 'good'), '--json']
  compare.main(words)
  first = capsys.readouterr().out
  compare.main(words)
  assert json.loads(first) == json.loads(capsys.readouterr().out)


def test_a_perfect_run_has_infinite_pnr_also_in_json(folder, capsys):
  qrels = read_qrels(folder / 'qrels.txt')
  rows = [f'{q} Q0 {d} 1 {g} x\n' for q, docs in qrels.items() for d, g in docs.items()]
  (folder / 'perfect.run').write_text(''.join(rows))
  compare.main([*arguments(folder, 'weak', 'perfect', metrics='pnr'), '--json'])
  found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)['runs']['perfect']
  value = found['metrics']['pnr']
  assert [value[k] for k in ('value', 'low', 'high')] == ['inf'] * 3
  assert found['differences']['pnr']['value'] == 'inf' and found['differences']['pnr']['p'] < 0.01
  compare.main(arguments(folder, 'weak', 'perfect'))
  assert 'inf to inf' in capsys.readouterr().out


def test_one_run_without_a_baseline_is_one_table(folder, capsys):
  compare.main(arguments(folder, 'weak'))
  printed = capsys.readouterr().out
  assert 'difference' not in printed and printed.count('---') and 'MRR@10' in printed
  assert 'p:' not in printed


def test_verdicts_of_one_topic_are_drawn_together_too(tmp_path):
  found = {}
  for copies in (1, 6):
    file = tmp_path / f'{copies}.csv'
    rows = [f't{t}-{i},{"good" if t % 3 else "bad"}' for t in range(30) for i in range(copies)]
    file.write_text('query_id,verdict\n' + '\n'.join(rows) + '\n')
    args = compare.parse_args(['--verdicts', str(file), '--cluster', '^[^-]+'])
    found[copies] = compare.compare(args)[0]
  once, often = (found[copies]['verdicts'] for copies in (1, 6))
  assert [often[k] for k in ('delta', 'low', 'high', 'p')] == pytest.approx(
    [once[k] for k in ('delta', 'low', 'high', 'p')]
  )
  assert 'randomisation over 30 clusters of queries' in comparison.markdown(found[6])


def test_human_verdicts_need_no_runs(tmp_path, capsys):
  rows = [f'q{i},{"good" if i < 54 else "same" if i < 170 else "bad"}\n' for i in range(200)]
  (tmp_path / 'v.csv').write_text('query_id,verdict\n' + ''.join(rows))
  words = ['--verdicts', str(tmp_path / 'v.csv'), '--out', str(tmp_path / 'out')]
  compare.main(words)
  assert '54 : 116 : 30  +0.120' in capsys.readouterr().out
  saved = json.loads((tmp_path / 'out' / 'compare.json').read_text())['verdicts']
  assert saved['delta'] == pytest.approx(0.12) and saved['low'] < 0.12 < saved['high']


def test_comparing_does_not_wait_for_jax():
  code = "import sys; import disranker_jax.commands.compare; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


# Mistakes


@pytest.mark.parametrize(
  'flags, where',
  [
    ({'metrics': 'pnr,ndgc@5'}, 'did you mean ndcg'),
    ({'metrics': ' , '}, '--metrics: is empty'),
    ({'metrics': 'gsb@5'}, 'needs a second run'),
    ({'metrics': 'tau'}, 'needs --teacher'),
    ({'level': 95}, '--level=95.0: must be between 0 and 1'),
    ({'samples': 3}, '--samples=3: must be 100 or more'),
    ({'cluster': '('}, r'--cluster=\(: is not a regular expression'),
    (
      {'cluster': '^q'},
      r"--cluster=\^q: finds 'q' in every query_id of .* so all queries are one cluster",
    ),
    ({'same': -1}, '--same=-1.0: must be 0 or more'),
    ({'teacher': 'nobody'}, 'nobody: does not exist'),
    ({'baseline': 'nobody'}, 'nobody: does not exist'),
  ],
)
def test_settings_that_cannot_be_are_refused(folder, flags, where):
  with pytest.raises(UserError, match=where):
    result(folder, 'weak', **flags)


def test_runs_of_other_queries_and_missing_arguments_are_refused(folder):
  (folder / 'other.run').write_text('x1 Q0 d1 1 1 t\n')
  with pytest.raises(UserError, match=r"none of the queries .*'x1' here, 'q0' there"):
    result(folder, 'weak', 'other')
  with pytest.raises(UserError, match='two runs have the same name'):
    result(folder, 'weak', 'weak')
  with pytest.raises(UserError, match='nothing to compare'):
    compare.parse_args([])
  with pytest.raises(UserError, match='--qrels is missing'):
    compare.parse_args(['x.run'])


def test_the_command_ends_with_one_line_and_status_2(tmp_path):
  command = [
    sys.executable,
    '-m',
    'disranker_jax',
    'compare',
    'no.run',
    '--qrels',
    'no.txt',
  ]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.count('\n') == 1 and done.stderr.startswith('error: no.txt: does not exist')


def test_negative_grades_and_repeated_rows_are_counted_in_a_warning(folder):
  plain = result(folder, 'good', metrics='pnr,ndcg@5')
  qrels = folder / 'qrels.txt'
  first = qrels.read_text().splitlines()[0]
  spam = [line.removesuffix('0') + '-2' if line.endswith(' 0') else line
          for line in qrels.read_text().splitlines()]  # fmt: skip
  qrels.write_text('\n'.join([*spam, first]) + '\n')
  found = result(folder, 'good', metrics='pnr,ndcg@5')
  assert found['runs'] == plain['runs']
  warnings = [warning.removeprefix(f'{qrels}: ') for warning in found['warnings']]
  negatives = sum(line.endswith('-2') for line in spam)
  assert warnings[:2] == [f'{negatives} {NEGATIVE}', f'1 {REPEATED}']


def test_runs_qrels_and_verdicts_are_read_from_pipes(folder, pipe):
  plain = result(folder, 'good', 'weak', metrics='pnr,ndcg@5')
  good, weak, qrels = (
    pipe(gzip.compress((folder / name).read_bytes()))
    for name in ('good.run', 'weak.run', 'qrels.txt')
  )
  for verdicts in ('query_id,verdict\nq1,good\n', '{"query_id": "q1", "verdict": "good"}\n'):
    words = ['--verdicts', pipe(verdicts.encode())]
    assert compare.compare(compare.parse_args(words))[0]['verdicts']['good'] == 1
  words = [f'good={good}', f'weak={weak}', '--qrels', qrels, '--samples', '2000']
  found = compare.compare(compare.parse_args([*words, '--metrics', 'pnr,ndcg@5']))[0]
  for name, run in found['runs'].items():
    assert run['metrics'] == plain['runs'][name]['metrics']
