"""The plan as a command: its errors, and that the paper's run fits its slices (slow)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = '--config=configs/tiny.py'


def command(*args, before='pass'):
  code = f"import sys, runpy; {before}; runpy.run_module('disranker_jax.plan', run_name='__main__')"
  return subprocess.run(
    [sys.executable, '-c', code, *args], capture_output=True, text=True, cwd=ROOT
  )


@pytest.mark.parametrize(
  ('args', 'said'),
  [
    ((TINY, '--stage=cpt', '--topology=v5e:many'), r"--topology='v5e:many' is unknown"),
    (
      (TINY, '--stage=evaluate', '--topology=v5e:4x4'),
      "--stage='evaluate' is unknown; there are cpt",
    ),
    ((TINY, '--stage=cpt', '--topology=v5e:4x4'), "pip install 'disranker_jax[tpu]'"),
  ],
)
def test_errors_of_the_command_are_one_line(args, said):
  done = command(*args, before="sys.modules['libtpu'] = None")
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.splitlines()[-1].startswith('error: ') and said in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs the extra tpu')
@pytest.mark.parametrize(
  ('stage', 'topology'), [('cpt', 'v5e:8x8'), ('sft', 'v6e:4x4'), ('score', 'v5p:2x2x2')]
)
def test_the_papers_run_fits_its_slices(stage, topology):
  done = command(
    '--config=configs/disranker_mistral_7b.py',
    f'--stage={stage}',
    f'--topology={topology}',
    '--json',
  )
  assert done.returncode == 0, done.stderr[-3000:]
  answer = json.loads(done.stdout.splitlines()[-1])
  assert answer['fits'] and answer['bytes_per_device'] < answer['hbm_bytes']
  assert answer['collectives'] and answer['chip_hours'] > 0
