"""`disranker plan`: its errors, and its text."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from disranker_jax import config as configs
from disranker_jax.commands.plan import local, machine, workload

ROOT = Path(__file__).parents[1]
TINY = '--config=configs/tiny.py'


def command(*args, before='pass'):
  code = f'import sys; {before}; from disranker_jax.commands import cli; cli.main()'
  return subprocess.run(
    [sys.executable, '-c', code, 'plan', *args], capture_output=True, text=True, cwd=ROOT
  )


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((TINY, '--stage=cpt', '--topology=v5e:many'), r"--topology='v5e:many' is unknown"),
    (
      (TINY, '--stage=evaluate', '--topology=v5e:4x4'),
      '--stage evaluate: choose of cpt, sft, generate, score, student_sft, distill',
    ),
    ((TINY, '--stage=cpt', '--topology=v5e:4x4'), "pip install -e '.[tpu]'"),
  ],
)
def test_errors_of_the_command_are_one_line(args, message):
  done = command(*args, before="sys.modules['libtpu'] = None")
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.splitlines()[-1].startswith('error: ') and message in done.stderr


def test_a_stage_that_writes_is_planned_for_a_slice_without_its_compiler():
  flags = (TINY, '--stage=generate', '--topology=v5e:2x2', '--rows=1000')
  done = command(
    *flags, '--config.generate.max_len=96', '--config.data.documents=jsonl:none.jsonl',
    before="sys.modules['libtpu'] = None",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'v5e:2x2, 16 GiB of memory each' in done.stdout and 'texts/s' in done.stdout
  assert '63 steps, 1,000 rows (--rows)' in done.stdout  # of 16 texts


ANSWER = {
  'stage': 'cpt', 'fits': True, 'bytes_per_device': 2**20, 'memory': {'parameters': 2**20},
  'tokens_per_s': 640.0, 'pairs_per_s': 10.0, 'pair_tokens': 64, 'rows': 59_579_125,
  'rows_from': 'the paper', 'epochs': 1.0, 'steps': 6, 'hours': 0.02,
}  # fmt: skip


def said(platform='cpu', devices=1, **values) -> list[str]:
  where = machine.Machine('AMD EPYC, 2 cores', platform, devices, 2**30)
  return local.text(where, [ANSWER | values]).splitlines()


@pytest.mark.parametrize(
  ('platform', 'devices', 'memory'),
  [
    ('cpu', 1, '1 GiB of memory;'),
    ('cpu', 8, '1 GiB of memory;'),  # which the devices share
    ('gpu', 1, '1 GiB of memory;'),
    ('gpu', 2, '1 GiB of memory each;'),
  ],
)
def test_memory_is_that_of_each_device_where_there_are_several(platform, devices, memory):
  assert memory in said(platform, devices)[0]


def test_short_stages_have_minutes_and_one_epoch_is_singular():
  assert said()[2].endswith('; 1m12s: 6 steps, 59,579,125 rows (the paper), 1 epoch')
  assert said(epochs=0.5)[2].endswith('0.5 epochs')


def test_steps_that_the_config_limits_are_not_those_of_all_rows():
  assert said(steps_from='max_steps')[2].endswith('; 1m12s: 6 steps (max_steps)')


def test_a_stage_that_the_paper_lacks_has_a_speed_and_with_rows_a_time():
  c = configs.defaults('dgr')
  step = SimpleNamespace(batch={'tokens_BT': np.zeros((2, 8), np.int32)}, accumulate=1)
  work = workload.Rows(c.memorise, step, length=8)
  unknown, known = (workload.totals(c, 'memorise', work, 1, 0.5, rows) for rows in (0, 600))
  assert unknown['pairs_per_s'] == known['pairs_per_s'] == 4
  assert not unknown.keys() & {'rows', 'steps', 'hours', 'chip_hours'}
  assert known['steps'] == 300 * c.memorise.epochs
  assert known['hours'] == known['steps'] * 0.5 / 3600
  where = machine.Machine('m', 'cpu', 1, None)
  held = {key: ANSWER[key] for key in ('fits', 'bytes_per_device', 'memory')}
  answers = [{'stage': 'memorise', **held, **found} for found in (unknown, known)]
  line, other = (' '.join(local.text(where, [answer]).split()) for answer in answers)
  assert line.endswith(
    'how many rows it has is not known; set --rows for the time of the whole stage'
  )
  assert 'step' not in line.partition('compiling')[2] and '600 rows (--rows)' in other
