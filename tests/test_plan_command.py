"""`disranker plan`: its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

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
