"""The plan as a command: its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = '--config=configs/tiny.py'


def command(*args, before='pass'):
  run = "runpy.run_module('disranker_jax.commands.plan', run_name='__main__')"
  code = f'import sys, runpy; {before}; {run}'
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
