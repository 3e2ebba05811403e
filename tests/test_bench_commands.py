"""The benches of training, scoring, data and growth as commands, on tiny models."""

import json
from pathlib import Path

import bench_data
import pytest

from benchmarks import __main__ as command
from benchmarks import _compare, _worker, growth, train
from disranker_jax.errors import UserError

TINY = Path(__file__).parents[1] / 'configs' / 'tiny.py'
LEAST = [f'--config={TINY}', '--rounds=1', '--json', '--config.mesh.data=1']


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bench')
  bench_data.write(folder)
  return folder


def answer(capsys, workdir, *argv) -> dict:
  data = [f'--config.data.{k}={v}' for k, v in bench_data.addresses(workdir).items()]
  command.main([*argv, *data, f'--workdir={workdir}'])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize('name', ['train', 'score', 'data', 'growth'])
def test_help_shows_the_usage(name, capsys):
  with pytest.raises(SystemExit) as end:
    command.main([name, '--help'])
  out = capsys.readouterr().out
  assert end.value.code == 0
  assert f'bench {name}' in out and '--config.KEY' in out and '--json' in out


@pytest.mark.parametrize(
  ('argv', 'error'),
  [
    (['--config.cpt.bach_rows=3'], 'no such key.*batch_rows'),
    (['--config.cpt.batch_rows=0'], 'config.cpt.batch_rows=0'),
    (['--color'], 'color'),
    (['--variant=--config.cpt.bach_rows=3'], 'no such key.*batch_rows'),
    (['--variant=--config.cpt.batch_rows=3 fast'], "'fast': write --config.KEY=VALUE"),
    (['--variant=cpt.batch_rows=3'], "'cpt.batch_rows=3': write --config.KEY=VALUE"),
    (['--variant=--config.cpt.loss="x'], 'No closing quotation'),
    (['--variant=--config.cpt.epochs=3', '--variant=--config.cpt.epochs=3'], 'is given twice'),
    (['--variant=--config.data.depth=3'], 'all sides share the data'),
    (['--variant', '--config.cpt.epochs=3'], 'expected one argument'),
  ],
)
def test_wrong_arguments_are_refused_before_any_side_starts(argv, error):
  with pytest.raises(UserError, match=error):
    command.main(['train', f'--config={TINY}', *argv])


@pytest.mark.slow
def test_training_beside_torch(capsys, workdir):
  pytest.importorskip('torch')
  found = answer(capsys, workdir, 'train', *LEAST, '--stage=student_sft', '--steps=1', '--parts=8')
  assert found['ratio_to_torch_fp32'] > 0 and found['ratio_to_torch_bf16'] > 0
  assert set(found['sides']) == {'ours', 'torch_fp32', 'torch_bf16'}
  assert found['bench'] == 'train' and found['config'] == 'tiny' and found['stage'] == 'student_sft'
  assert found['device'].startswith('cpu') and found['precision'] == 'float32'
  assert found['padded_tokens_per_s'] >= found['tokens_per_s'] > 0
  assert 0 <= found['padding'] < 1 and 0 < found['mfu'] < 1
  for key in ('compile_s', 'checkpoint_stall_s', 'memory_bytes', 'peak_flops', 'step_s'):
    assert found[key] > 0, key
  assert 'waiting' in found


def test_generation_alone(capsys):
  argv = ['--model=tiny-decoder', '--prompts=3', '--prompt-len=9', '--new=4', '--rounds=1']
  command.main(['generate', *argv, '--samples=2', '--peers=none', '--json'])
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert list(found['sides']) == ['ours'] and found['tokens_per_s'] > 0
  assert found['step_s'] * found['tokens_per_s'] == pytest.approx(6, rel=1e-4)  # rows


@pytest.mark.slow
def test_generation_beside_transformers(capsys):
  pytest.importorskip('torch')
  argv = ['--model=tiny-decoder', '--prompts=3', '--prompt-len=9', '--new=4', '--rounds=1']
  command.main(['generate', *argv, '--temperature=1', '--top-p=.9', '--json'])
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert all(found[f'ratio_to_{name}'] > 0 for name in _compare.TORCH)


def test_scoring_alone_and_a_variant(capsys, workdir):
  other = '--config.student.precision=bfloat16_dots OMP_NUM_THREADS=1'
  found = answer(
    capsys, workdir, 'score', *LEAST, '--stage=evaluate', '--steps=1', '--peers=none',
    f'--variant={other}',
  )  # fmt: skip
  assert found['ratio_to_torch_fp32'] is None and list(found['sides']) == ['ours', other]
  assert found['sides']['ours']['precision'] == 'float32'
  assert found['sides'][other]['precision'] == 'bfloat16_dots' and found[f'ratio_to_{other}'] > 0
  assert found['pairs_per_s'] * found['ms_per_pair'] == pytest.approx(1000, rel=1e-4)
  assert found['tokens_per_s'] > found['pairs_per_s'] > 0


@pytest.mark.slow
def test_scoring_beside_torch_and_sentence_transformers(capsys, workdir):
  pytest.importorskip('sentence_transformers')
  found = answer(capsys, workdir, 'score', *LEAST, '--stage=evaluate', '--steps=1', '--apart')
  assert all(found[f'ratio_to_{n}'] > 0 for n in (*_compare.TORCH, *_compare.CROSS_ENCODER))


def test_data_alone(capsys, workdir):
  found = answer(capsys, workdir, 'data', *LEAST, '--stage=sft', '--queries=16')
  assert set(found['parts']) == {'read', 'tokenise', 'pack', 'all'}
  assert all(p['rows_per_s'] > 0 for p in found['parts'].values())
  assert 0 <= found['padding'] < 0.5


@pytest.mark.slow
def test_growth_has_slopes_and_a_plot(capsys, workdir, tmp_path):
  plot = tmp_path / 'growth.svg'
  found = answer(
    capsys, workdir, 'growth', *LEAST, '--stage=student_sft', '--steps=1', '--axes=rows',
    '--times=1,2', f'--plot={plot}',
  )  # fmt: skip
  points = found['axes']['rows']['points']
  assert [p['value'] for p in points] == [8, 16]
  assert points[0]['tokens'] < points[1]['tokens']
  assert points[0]['compiled_bytes'] < points[1]['compiled_bytes']
  assert 0 < found['axes']['rows']['slopes']['compiled_bytes'] < 1.2
  assert '<svg' in plot.read_text()


@pytest.mark.slow
def test_growth_over_devices_and_start_up(capsys, workdir):
  found = answer(
    capsys, workdir, 'growth', *LEAST, '--stage=student_sft', '--steps=1', '--axes=devices,start',
    '--times=1,2',
  )  # fmt: skip
  assert [p['value'] for p in found['axes']['devices']['points']] == [1, 2]
  assert found['start']['warm']['start_s'] > 0 < found['start']['cold']['compile_s']


def test_growth_knows_its_axes():
  args = growth.parse_args([f'--config={TINY}', '--stage=sft', '--times=0.5,1,2'])
  values = {axis: [v for v, _, _ in growth.points(args, axis)] for axis in growth.AXES}
  assert values == {
    'rows': [4, 8, 16], 'row_len': [32, 64, 128], 'group_size': [2, 4, 8], 'devices': [1, 2],
  }  # fmt: skip
  _, argv, _ = growth.points(args, 'row_len')[2]
  assert argv == ['--config.teacher.row_len=128', '--config.teacher.max_len=96']
  clicks = growth.parse_args([f'--config={TINY}', '--stage=cpt'])
  assert growth.points(clicks, 'group_size') == []
  with pytest.raises(UserError, match="'cols' is unknown; there are rows"):
    growth.parse_args([f'--config={TINY}', '--axes=cols'])


class TestWorker:
  def turns(self, monkeypatch, answers):
    """Makes sides give these answers; returns the calls in order."""
    calls = []

    class Fake:
      def __init__(self, bench, name, argv, folder, env=None, alone=True):
        self.name = name
        calls.append((name, 'alone' if alone else 'beside others'))

      def __enter__(self):
        return self

      def __exit__(self, *_):
        calls.append((self.name, 'gone'))

      def ask(self, what):
        calls.append((self.name, what))
        return dict(answers.get((self.name, what), {'value': 1}))

    monkeypatch.setattr(_worker, 'Worker', Fake)
    return calls

  def test_sides_take_turns(self, monkeypatch, tmp_path):
    calls = self.turns(monkeypatch, {})
    turns, _ = _worker.in_turn('train', ['ours', 'torch'], [], tmp_path, 2, apart=False)
    assert [a for a in calls if a[1] == 'turn'] == [('ours', 'turn'), ('torch', 'turn')] * 2
    assert {k: len(v) for k, v in turns.items()} == {'ours': 2, 'torch': 2}

  def test_apart_a_side_ends_before_the_next_starts(self, monkeypatch, tmp_path):
    calls = self.turns(monkeypatch, {})
    _worker.in_turn('train', ['ours', 'torch'], [], tmp_path, 1, apart=True)
    assert [what for _, what in calls] == ['alone', 'start', 'warm', 'turn', 'end', 'gone'] * 2

  def test_sides_at_the_same_time_share_the_memory(self, monkeypatch, tmp_path):
    calls = self.turns(monkeypatch, {})
    _worker.in_turn('train', ['ours', 'torch'], [], tmp_path, 1, apart=False)
    _worker.in_turn('train', ['ours'], [], tmp_path, 1, apart=False)
    assert [w for _, w in calls if w in ('alone', 'beside others')] == ['beside others'] * 2 + [
      'alone'
    ]

  def test_a_side_that_is_alone_takes_the_memory_at_its_start(self, monkeypatch):
    for name in ('PREALLOCATE', 'MEM_FRACTION'):
      monkeypatch.delenv(f'XLA_PYTHON_CLIENT_{name}', raising=False)
    monkeypatch.delenv('XLA_CLIENT_MEM_FRACTION', raising=False)
    alone, beside = (_worker.environment('ours', alone) for alone in (True, False))
    assert alone['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'true'
    assert alone['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '.9'
    assert beside['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'
    # JAX refuses both names of the fraction together.
    monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '.8')
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in _worker.environment('ours', True)

  @pytest.mark.parametrize('when', ['start', 'warm', 'turn'])
  def test_a_peer_that_fails_is_left_out(self, monkeypatch, tmp_path, when):
    calls = self.turns(monkeypatch, {('torch', when): {'failed': 'out of memory'}})
    turns, facts = _worker.in_turn('train', ['ours', 'torch'], [], tmp_path, 2, apart=False)
    assert turns['torch'] == [] and facts['torch']['failed'] == 'out of memory'
    assert len(turns['ours']) == 2 and ('torch', 'end') not in calls

  def test_ours_must_not_fail(self, monkeypatch, tmp_path):
    self.turns(monkeypatch, {('ours', 'turn'): {'failed': 'why'}})
    with pytest.raises(UserError, match='why'):
      _worker.in_turn('train', ['ours'], [], tmp_path, 1, apart=False)

  def test_a_variant_is_ours_with_other_settings(self, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    name = "--config.student.scan_layers=True XLA_FLAGS='--xla_a=1 --xla_b=2'"
    flags, changed = _worker.variant(name)
    assert flags == ['--config.student.scan_layers=True']
    assert changed == {'XLA_FLAGS': '--xla_a=1 --xla_b=2'}
    assert _worker.environment(name, True)['XLA_FLAGS'] == '--xla_a=1 --xla_b=2'
    platforms = [
      _worker.environment(n, True)['JAX_PLATFORMS'] for n in ('ours', name, 'torch_fp32')
    ]
    assert platforms == ['cuda', 'cuda', 'cpu']

  def test_a_process_that_ends_says_so(self, tmp_path):
    with _worker.Worker('no_such_bench', 'ours', [], tmp_path) as worker:
      assert 'ended with status 1' in worker.ask('start')['failed']


def test_peers_need_torch(monkeypatch):
  args = train.parse_args([f'--config={TINY}'])
  monkeypatch.setattr(_compare.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='--peers none'):
    _compare.peers(args, _compare.TORCH)
  args.peers = ['none']
  assert _compare.peers(args, _compare.TORCH) == []


class TestPeers:
  def chosen(self, monkeypatch, *argv, names=_compare.TORCH, installed=('torch',)):
    find = lambda name: name in installed or None  # noqa: E731
    monkeypatch.setattr(_compare.importlib.util, 'find_spec', find)
    return _compare.peers(train.parse_args([f'--config={TINY}', *argv]), names)

  def test_all_that_are_installed_if_none_is_named(self, monkeypatch):
    both = ('torch', 'sentence_transformers')
    names = _compare.TORCH + _compare.CROSS_ENCODER
    assert self.chosen(monkeypatch, names=names) == list(_compare.TORCH)
    assert self.chosen(monkeypatch, names=names, installed=both) == list(names)

  def test_one_can_be_left_out(self, monkeypatch):
    assert self.chosen(monkeypatch, '--peers=torch_bf16') == ['torch_bf16']

  def test_an_unknown_one_is_refused_with_the_list(self, monkeypatch):
    with pytest.raises(UserError, match="'torch_fp8' is not a peer here; there are torch_fp32, to"):
      self.chosen(monkeypatch, '--peers=torch_bf16,torch_fp8')
    with pytest.raises(UserError, match="'none' is not a peer here"):
      self.chosen(monkeypatch, '--peers=torch_bf16,none')

  def test_one_whose_package_is_missing_is_refused(self, monkeypatch):
    names = _compare.TORCH + _compare.CROSS_ENCODER
    with pytest.raises(UserError, match='needs sentence-transformers'):
      self.chosen(monkeypatch, '--peers=cross_encoder_bf16', names=names)
