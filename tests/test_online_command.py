"""`disranker online`: what it prints and saves, and mistakes on its command line."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from online_logs import ROW, pages, write

from disranker_jax.commands import online as command
from disranker_jax.errors import UserError


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
  """A test of 4000 users with +25 % PageCTR, as a file."""
  rng = np.random.default_rng(13)
  rows = []
  for user in range(4000):
    bucket = ('base', 'new')[user % 2]
    habit = rng.beta(2, 6) * (1.25 if bucket == 'new' else 1)
    for day in rng.choice(7, rng.integers(1, 4), replace=False):
      clicks = int(rng.random() < habit)
      row = {'user': user, 'day': f'2024-05-0{day + 1}', 'bucket': bucket, 'clicks': clicks}
      rows.append(row | {'dwell': round(float(rng.gamma(1, 30)), 1) if clicks else None})
  return write(tmp_path_factory.mktemp('demo') / 'log.jsonl.gz', rows)


def output(capsys, *arguments):
  command.main([str(a) for a in arguments])
  return capsys.readouterr().out


class TestCommand:
  def test_finds_the_effect_and_says_so_in_text_json_and_files(self, demo, capsys, tmp_path):
    text = output(capsys, demo, '--control', 'base', '--out', tmp_path / 'out')
    [line] = [line for line in text.splitlines() if line.strip().startswith('PageCTR')]
    assert 'better' in line and '< 0.001' in line
    assert 'change-query ratio: not recorded' in text and 'MISMATCH' not in text
    result = json.loads(output(capsys, demo, '--control', 'base', '--json'))
    assert result == json.loads((tmp_path / 'out' / 'online.json').read_text())
    gain = result['gains']['new']['pagectr']
    assert gain['low'] < 0.25 < gain['high'] and gain['verdict'] == 'better'
    assert result['gains']['new']['changequery']['p'] is None
    markdown = (tmp_path / 'out' / 'online.md').read_text()
    assert f'{100 * gain["gain"]:+.2f}%' in line and f'{100 * gain["gain"]:+.2f}%' in markdown

  def test_exchanging_the_control_turns_the_verdict_round(self, demo, capsys):
    result = json.loads(output(capsys, demo, '--control', 'new', '--json'))
    assert result['gains']['base']['pagectr']['verdict'] == 'worse'

  def test_fewer_query_changes_are_better(self, tmp_path, capsys):
    rng = np.random.default_rng(14)
    rows = [
      ROW
      | {'user': i, 'bucket': ('control', 'new')[i % 2]}
      | {'query_changed': bool(rng.random() < (0.4, 0.2)[i % 2])}
      for i in range(2000)
    ]
    result = json.loads(output(capsys, write(tmp_path / 'log.jsonl', rows), '--json'))
    assert result['gains']['new']['changequery']['gain'] < 0
    assert result['gains']['new']['changequery']['verdict'] == 'better'

  def test_the_bootstrap_says_nearly_the_same(self, demo, capsys):
    delta = json.loads(output(capsys, demo, '--control', 'base', '--json'))
    drawn = json.loads(output(capsys, demo, '--control', 'base', '--json', '--bootstrap'))
    assert drawn['method'] == 'bootstrap, 2000 replicates'
    for key in ('pagectr', 'userctr', 'dwell'):
      a, b = delta['gains']['new'][key], drawn['gains']['new'][key]
      assert a['gain'] == pytest.approx(b['gain'])
      assert b['low'] == pytest.approx(a['low'], abs=0.1 * (a['high'] - a['low']))

  def test_alpha_moves_intervals_and_holm_corrects_over_what_was_tested(self, demo, capsys):
    wide = json.loads(output(capsys, demo, '--control', 'base', '--json', '--alpha', '1%'))
    narrow = json.loads(output(capsys, demo, '--control', 'base', '--json', '--alpha', '0.1'))
    for key in ('pagectr', 'dwell'):
      a, b = wide['gains']['new'][key], narrow['gains']['new'][key]
      assert a['low'] < b['low'] < b['high'] < a['high']
    tests = narrow['gains']['new']
    tested = [t for t in tests.values() if t['p'] is not None]
    least = min(tested, key=lambda t: t['p'])
    assert len(tested) == 3 and least['p_holm'] == pytest.approx(3 * least['p'])
    assert 'p (Holm)' in output(capsys, demo, '--control', 'base', '--holm')

  def test_a_wrong_split_is_shouted(self, demo, capsys):
    text = output(capsys, demo, '--control', 'base', '--split', 'base=90,new=10')
    assert 'SAMPLE-RATIO MISMATCH' in text and '90% : 10%' in text
    result = json.loads(
      output(capsys, demo, '--control', 'base', '--split', 'new=1,base=9', '--json')
    )
    assert result['sample_ratio']['mismatch'] is True

  @pytest.mark.parametrize('clicks', [0, 1])
  def test_a_user_with_most_pages_of_a_bucket_is_named_with_the_result_without_it(
    self, clicks, tmp_path, capsys
  ):
    rng = np.random.default_rng(5)
    rows = [
      ROW
      | {'user': i % 600, 'bucket': ('control', 'new')[i % 2]}
      | {'clicks': int(rng.random() < 0.3), 'dwell': None}
      for i in range(6000)
    ]
    robot = [ROW | {'user': 'robot', 'bucket': 'new', 'clicks': clicks, 'dwell': None}] * 6000
    without = write(tmp_path / 'without.jsonl', rows)
    everyone = write(tmp_path / 'all.jsonl', rows + robot)
    expected = json.loads(output(capsys, without, '--json'))
    assert expected['heavy_users'] == {} and 'without_heavy_users' not in expected
    result = json.loads(output(capsys, everyone, '--json'))
    [user] = result['heavy_users']['new']
    assert user['share'] >= 6000 / 9000 and list(result['heavy_users']) == ['new']
    assert result['without_heavy_users'] == {k: expected[k] for k in ('buckets', 'gains')}
    assert result['gains'] != expected['gains']
    text = output(capsys, everyone, '--out', tmp_path / 'out')
    share = f'{100 * user["share"]:.2f}% of the {user["of"]}'
    gain = f'{100 * expected["gains"]["new"]["pagectr"]["gain"]:+.2f}%'
    for shown in (text, (tmp_path / 'out' / 'online.md').read_text()):
      assert "HEAVY USERS in 'new': 1 of 301" in shown and share in ' '.join(shown.split())
      assert gain in shown.partition('ithout heavy users\n')[2]
    assert 'HEAVY' not in output(capsys, without)

  def test_a_user_with_most_of_the_dwell_time_is_heavy_too(self, tmp_path, capsys):
    rows = [ROW | {'user': i, 'dwell': 1.0} for i in range(99)] + [ROW | {'dwell': 900.0}]
    text = output(capsys, write(tmp_path / 'a.jsonl', rows))
    assert '90.09% of the dwell time' in text and 'Without heavy users' in text

  def test_few_users_are_not_heavy_for_that(self, tmp_path, capsys):
    rows = [ROW | {'user': i} for i in range(4)]
    assert 'HEAVY' not in output(capsys, write(tmp_path / 'a.jsonl', rows))

  def test_size_gives_users_and_days(self, demo, capsys):
    arguments = (demo, '--control', 'base', '--size', '--metric', 'pagectr', '--json')
    sizes = [
      json.loads(output(capsys, *arguments, '--gain', gain))['size']['metrics']['pagectr']
      for gain in ('25%', '0.02', '2%', '1%')
    ]
    assert sizes[1] == sizes[2]
    assert sizes[3]['users'] == pytest.approx(4 * sizes[2]['users'], rel=0.02)
    assert 1 <= sizes[0]['days'] <= 7 and not sizes[0]['more_days_do_not_help']
    assert sizes[3]['days'] is None and sizes[3]['more_days_do_not_help']  # the same 4000 users
    result = json.loads(output(capsys, *arguments, '--gain', '2%'))
    seen = result['gains']['new']['pagectr']['detectable']
    same = json.loads(output(capsys, *arguments, '--gain', str(seen)))['size']['metrics']
    assert same['pagectr']['days'] == 7  # this very test
    less = json.loads(output(capsys, *arguments, '--gain', str(0.97 * seen)))['size']['metrics']
    assert 7 < less['pagectr']['days'] < 14
    assert 'users per bucket' in output(capsys, demo, '--control', 'base', '--size', '--gain', '1%')

  def test_several_buckets_are_each_compared_and_the_slowest_sets_the_days(self, capsys, tmp_path):
    sizes = {'control': 3000, 'half': 1500, 'tenth': 300}
    rows = [
      {'user': f'{name}{i}', 'bucket': name, 'day': f'2024-05-0{1 + i % 5}'}
      | {'clicks': int(i // 5 % 5 < 2)}
      for name, count in sizes.items()
      for i in range(count)
    ]
    file = write(tmp_path / 'log.jsonl', rows)
    split = ('--split', ','.join(f'{name}={count}' for name, count in sizes.items()))
    text = output(capsys, file, *split)
    assert "'half' against 'control'" in text and "'tenth' against 'control'" in text
    arguments = ('--size', '--gain', '10%', '--metric', 'pagectr', '--json')
    result = json.loads(output(capsys, file, *split, *arguments))
    detectable = [result['gains'][name]['pagectr']['detectable'] for name in ('half', 'tenth')]
    assert detectable[0] < detectable[1]
    assert result['sample_ratio']['chi_square'] == pytest.approx(0, abs=1e-9)
    # Every user comes once, so days add users: var ~ (1 / 3000 + 1 / 300) * 5 / days.
    share = result['buckets']['control']['metrics']['pagectr']['value']
    needed = (math.log(1.1) / (1.959964 + 0.841621)) ** 2
    expected = 5 * (1 - share) / share * (1 / 3000 + 1 / 300) / needed
    assert result['size']['metrics']['pagectr']['days'] == pytest.approx(expected, rel=0.06)

  def test_one_bucket_can_be_planned_with(self, tmp_path, capsys):
    file = write(tmp_path / 'log.jsonl', [row | {'bucket': 'today'} for row in pages()])
    text = output(capsys, file, '--size', '--gain', '5%')
    assert 'standard error' in text and 'users per bucket' in text and 'gain   ' not in text
    assert json.loads(output(capsys, file, '--json'))['sample_ratio'] is None

  @pytest.mark.parametrize(
    ('arguments', 'what'),
    [
      ([], "--control: no bucket 'control' in the log; name one of base, new"),
      (['--control', 'old'], "no bucket 'old'"),
      (['--control', 'base', '--split', 'base=1'], 'see new'),
      (['--control', 'base', '--split', 'base=1,new=0'], 'above 0'),
      (['--control', 'base', '--split', 'base'], "cannot read 'base'"),
      (['--size'], 'add --gain'),
      (['--gain', '1%'], '--size'),
      (['--size', '--gain', '0'], 'not 0'),
      (['--size', '--gain', 'x'], '--gain x'),
      (['--size', '--gain=-100%'], '--gain -100%'),
      (['--alpha', '95%'], '--alpha 95%'),
      (['--power', '101%'], '--power 101%'),
      (['--bootstrap', '10'], '1000 or more'),
      (['--max-dwell', '0'], '--max-dwell'),
    ],
  )
  def test_mistakes_get_one_line(self, demo, arguments, what):
    with pytest.raises(UserError) as caught:
      command.main([demo, *arguments])
    assert what in str(caught.value) and '\n' not in str(caught.value)

  def test_runs_as_a_module_and_exits_with_2_on_a_mistake(self, tmp_path):
    file = write(tmp_path / 'log.jsonl', [ROW, {}])
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax', 'online', file],
      capture_output=True,
      text=True,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == (
      f'error: {file}:2:user: is missing; write text that is not blank, or an integer\n'
    )
