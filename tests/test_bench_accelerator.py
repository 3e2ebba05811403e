"""`bench accelerator`: rows are valid commands, nothing stops the list, the table says planned."""

import json
import os
import sys
import time

import pytest

from benchmarks import __main__ as command
from benchmarks import _accelerator_table, _rows, accelerator, growth, latency, score, train
from disranker_jax import main as runs
from disranker_jax.commands.common import load_config
from disranker_jax.errors import UserError

NAMES = [row.name for row in _rows.ROWS]
PARSERS = {'train': train, 'score': score, 'growth': growth, 'latency': latency}


def row(name: str) -> _rows.Row:
  return next(row for row in _rows.ROWS if row.name == name)


class TestRows:
  @pytest.mark.parametrize('small', [True, False])
  @pytest.mark.parametrize('name', NAMES)
  def test_commands_are_valid(self, name, small, tmp_path):
    if row(name).missing(small):
      pytest.skip(row(name).missing(small))
    first, *words = row(name).command(str(tmp_path), small)
    if first == 'run':
      args = runs.parser().parse_args(words)
      load_config(args.config, args.overrides)
    else:
      PARSERS[words[0]].parse_args(words[1:])

  def test_all_that_was_never_measured_is_listed(self):
    """What the first run on a GPU left open."""
    text = ' '.join(' '.join(r.words) for r in _rows.ROWS)
    assert {'cpt', 'cpt_lora', 'sft_lora', 'student_sft', 'distill', 'score_256', 'start'} < {
      *NAMES
    }
    assert {'latency', 'run_tiny', 'run_python_docs', 'checkpoint', 'sft_dots'} < {*NAMES}
    assert 'score.quantize=int8' in text and 'score.quantize=fp8' in text
    assert len(set(NAMES)) == len(NAMES)

  def test_variants_come_after_their_base_and_change_one_thing(self):
    for variant in (r for r in _rows.ROWS if r.base):
      base = row(variant.base)
      assert NAMES.index(base.name) < NAMES.index(variant.name)
      assert base.kind == variant.kind and (variant.words, variant.env) != (base.words, base.env)

  def test_a_row_waits_for_its_config_key_and_its_weights(self, monkeypatch):
    monkeypatch.setattr(_rows.weights, 'unpacked', lambda name: None)
    keyed = _rows.Row('a', 'b', (), 'pairs', key='score.no_such_key')
    assert keyed.missing(False) == 'there is no config.score.no_such_key yet'
    known = _rows.Row('a', 'b', (), 'pairs', key='score.batch_rows')
    assert known.missing(False) == ''
    assert 'disranker weights smollm2-135m' in row('run_python_docs').missing(False)

  def test_small_ones_have_no_large_models(self):
    for each in _rows.ROWS:
      words = each.command('out', small=True)
      assert not any('mistral' in w for w in words)
      assert each.models or f'--config={_rows.TINY}' in words


class TestFinished:
  def run(self, tmp_path, program: str, limit_s: float = 60.0):
    with (tmp_path / 'out').open('w') as out, (tmp_path / 'log').open('w') as log:
      return accelerator.finished([sys.executable, '-c', program], limit_s, os.environ, out, log)

  def test_statuses(self, tmp_path):
    assert self.run(tmp_path, 'pass') == ('measured', '')
    assert self.run(tmp_path, 'raise SystemExit(3)') == ('failed', 'status 3')

  def test_a_row_that_takes_too_long_is_ended_with_its_sides(self, tmp_path):
    program = f"""
import pathlib, subprocess, sys, time
side = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(side.pid))
time.sleep(600)
"""
    begin = time.monotonic()
    assert self.run(tmp_path, program, 3.0) == ('too long', 'not finished after 3 s')
    assert time.monotonic() - begin < 60
    pid = (tmp_path / 'pid').read_text()
    for _ in range(100):  # until the system has ended it; a zombie has no command line
      try:
        with open(f'/proc/{pid}/cmdline') as file:
          left = file.read()
      except OSError:
        left = ''
      if not left:
        break
      time.sleep(0.1)
    assert not left


class TestList:
  """The list of rows, without running their commands."""

  @pytest.fixture
  def ran(self, monkeypatch):
    """The rows that were begun, with their limits; 'distill' fails."""
    begun = []

    def run(row, folder, small, limit_s):
      begun.append((row.name, limit_s))
      if row.name == 'distill':
        return {'status': 'failed', 'reason': 'status 2: error: no memory', 'seconds': 1.0}
      sides = {'torch_bf16': {'tokens_per_s': 10.0, 'first_is_faster': {'median': 1.5}}}
      answer = {'tokens_per_s': 15.0, 'sides': sides, 'mfu': 0.5, 'compiled_bytes': 2e9}
      return {'status': 'measured', 'reason': '', 'seconds': 1.0, 'answer': answer}

    monkeypatch.setattr(accelerator, 'run', run)
    monkeypatch.setattr(accelerator, 'device_kind', lambda: 'a card')
    monkeypatch.setattr(accelerator, 'commit', lambda: 'abc')
    monkeypatch.setattr(_accelerator_table, 'planned', lambda rows: {'cpt': 9090.0})
    return begun

  def test_a_failure_is_recorded_and_the_next_row_begins(self, ran, tmp_path, capsys):
    argv = [f'--out={tmp_path}', '--rows=distill,sft,cpt']
    command.main(['accelerator', *argv])
    assert [name for name, _ in ran] == ['distill', 'sft', 'cpt']
    records = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
    assert [r['status'] for r in records] == ['failed', 'measured', 'measured']
    assert {(r['device'], r['commit'], r['small']) for r in records} == {('a card', 'abc', False)}
    out = capsys.readouterr().out
    assert 'no memory' in out and '| a card | 15 tokens/s | 10 | 1.50 | 50% | 2.0 |' in out
    # What is measured is not measured again; what failed is.
    command.main(['accelerator', *argv])
    assert [name for name, _ in ran[3:]] == ['distill']

  def test_the_budget_limits_rows_and_ends_the_list(self, ran, tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(accelerator.time, 'monotonic', lambda: now[0])
    run = accelerator.run

    def slow(*args):
      now[0] += 90
      return run(*args)

    monkeypatch.setattr(accelerator, 'run', slow)
    command.main(['accelerator', f'--out={tmp_path}', '--rows=student_sft,sft,cpt', '--budget=100'])
    assert ran == [('student_sft', 100.0)]
    out = capsys.readouterr().out
    assert out.count('the budget of 100 s is used up') == 2
    assert 'planned: 9,090 tokens/s' in out

  def test_other_commits_and_devices_are_measured_again(self, ran, tmp_path, monkeypatch):
    argv = ['accelerator', f'--out={tmp_path}', '--rows=sft']
    command.main(argv)
    monkeypatch.setattr(accelerator, 'commit', lambda: 'def')
    command.main(argv)
    monkeypatch.setattr(accelerator, 'device_kind', lambda: 'another card')
    command.main(argv)
    assert len(ran) == 3

  def test_wrong_arguments(self, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="there is no row 'sfp'; there are student_scores, "):
      command.main(['accelerator', f'--out={tmp_path}', '--rows=sfp'])
    monkeypatch.setattr(accelerator, 'device_kind', lambda: '')
    with pytest.raises(UserError, match='no accelerator here; --small tries every row'):
      command.main(['accelerator', f'--out={tmp_path}'])
    assert not (tmp_path / 'rows.jsonl').exists()

  def test_commands_are_printed(self, capsys, tmp_path):
    command.main(['accelerator', f'--out={tmp_path}', '--list', '--rows=sft,sft_cublas'])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('sft: disranker bench train --config=configs/disranker_mistral_7b.py')
    assert "XLA_FLAGS='--xla_gpu_enable_triton_gemm=false' disranker bench train" in second


class TestTable:
  def record(self, **answer) -> dict:
    return {'status': 'measured', 'device': 'a card', 'small': True, 'commit': 'abc',
            'date': '2026-11-27', 'seconds': 61.2, 'answer': {'sides': {}} | answer}  # fmt: skip

  def line(self, name: str, records: dict) -> list[str]:
    return _accelerator_table.line(row(name), records, None)

  def test_a_variant_is_compared_with_its_base(self):
    records = {'sft': self.record(tokens_per_s=100.0), 'sft_dots': self.record(tokens_per_s=125.0)}
    assert self.line('sft_dots', records)[-1] == '1.25 times sft'

  def test_power_and_checkpoints_are_remarks(self):
    power = {'pairs_per_s': 300.0, 'watts': 600.0, 'pairs_per_kwh': 1.8e6, 'device_bytes': 5e9}
    line = self.line('score_128', {'score_128': self.record(**power)})
    assert line[2] == '300 pairs/s'
    assert line[-2:] == ['5.0', '600 W, 1,800,000 pairs per kWh']
    line = self.line(
      'checkpoint', {'checkpoint': self.record(tokens_per_s=1, checkpoint_stall_s=0.08)}
    )
    assert line[-1] == 'a checkpoint stalls the loop for 0.08 s'

  def test_latency_start_and_whole_runs(self):
    def one(p50, ratio):
      return {'p50_ms': p50, 'p95_ms': 2 * p50, 'pairs_per_s': 1.0, 'first_is_faster': ratio}

    ours = {'ours jax': one(4.0, 1.0)}
    records = {
      'latency': self.record() | {'answer': ours | {'torch bf16': one(8.0, 2.0)}},
      'latency_compiled': self.record() | {'answer': ours | {'torch bf16 compiled': one(6.0, 1.5)}},
      'start': self.record(start={'cold': {'start_s': 30.0}, 'warm': {'start_s': 12.0}}),
      'run_tiny': self.record(),
    }
    line = self.line('latency', records)
    assert line[2:5] == ['4.0 ms', '8.0', '2.00']
    assert line[-1] == '95 %: 8.0 ms'
    line = self.line('latency_compiled', records)
    assert line[3:5] == ['6.0', '1.50'] and line[-1] == '95 %: 8.0 ms; torch.compile'
    assert self.line('start', records)[2] == '30.0 s'
    assert self.line('run_tiny', records)[2] == '61 s'

  def test_planned_figures_are_flops_by_a_share_of_the_peak(self):
    # docs/performance.md: 1,791 GFLOPs per pair of 128 tokens; a large matrix for each word.
    found = _accelerator_table.planned([row('score_128'), row('score_int8')])
    assert list(found) == ['score_128']  # the peak of 8 bits is another
    layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 4096 * 14336 * 3
    attention = 32 * 4 * 4096 * 1024 * 1025 // 2 / 1024
    per_pair = 128 * (2 * 32 * layer + attention)
    assert found['score_128'] == pytest.approx(0.55 * 790e12 / per_pair, rel=0.001)


@pytest.mark.slow  # starts four processes, one of which compiles
def test_a_small_row_is_measured(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(accelerator, 'device_kind', lambda: '')
  command.main(['accelerator', f'--out={tmp_path}', '--small', '--rows=sft_lora_dots'])
  record = json.loads((tmp_path / 'rows.jsonl').read_text())
  assert record['status'] == 'measured', record['reason']
  assert record['answer']['tokens_per_s'] > 0 and 'tokens/s' in capsys.readouterr().out


def test_a_line_that_was_cut_is_skipped_and_the_next_one_is_whole(tmp_path, capsys):
  results = accelerator.Results(tmp_path)
  results.add({'row': 'sft', 'status': 'measured'})
  with results.file.open('a') as file:
    file.write('{"row": "cpt", "sta')
  again = accelerator.Results(tmp_path)
  assert 'rows.jsonl:2: cannot be read; skipped' in capsys.readouterr().err
  again.add({'row': 'cpt', 'status': 'measured'})
  third = accelerator.Results(tmp_path)
  assert third.last('sft') and third.last('cpt')
