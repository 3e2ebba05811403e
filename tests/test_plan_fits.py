"""Every launch config fits the slice it is planned for: the TPU's own compiler, no TPU (slow).

Needs libtpu, which `make test-plan` and `make test-all` put beside the environment.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs libtpu: run make test-plan'
  ),
]

PAPER = 'configs/disranker_mistral_7b.py'
TODAY = 'configs/qwen3_modernbert.py'
REWRITER = 'configs/tongsearch_qwen_1_5b.py'
GENERATIONS = [
  (PAPER, 'distill', 'v5e:4x4'),
  (PAPER, 'score', 'v5p:2x2x2'),
  (PAPER, 'student_sft', 'v6e:2x4'),
]
SLICES = [
  (PAPER, 'cpt', 'v5e:8x8'),
  (PAPER, 'sft', 'v5e:8x8'),
  (PAPER, 'score', 'v5e:8x8'),
  (PAPER, 'student_sft', 'v5e:8x8'),
  (PAPER, 'distill', 'v5e:8x8'),
  (PAPER, 'cpt', 'v5e:4x4'),
  (PAPER, 'cpt', 'v6e:4x4'),
  (PAPER, 'sft', 'v5p:2x2x4'),
  *((TODAY, s, 'v5e:8x8') for s in ('cpt', 'sft', 'score', 'distill')),
  ('configs/own_data.py', 'cpt', 'v5p:2x2x4'),
  ('configs/own_data.py', 'sft', 'v5p:2x2x4'),
  ('configs/own_data.py', 'score', 'v5p:2x2x4'),
  ('configs/own_data.py', 'distill', 'v5p:2x2x4'),
  *(('configs/python_docs.py', s, 'v5e:1x1') for s in ('cpt', 'sft', 'score', 'distill')),
]


def plan(config, stage, topology) -> dict:
  args = (f'--config={config}', f'--stage={stage}', f'--topology={topology}', '--json')
  done = subprocess.run(
    [sys.executable, '-m', 'disranker_jax', 'plan', *args],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(('config', 'stage', 'topology'), GENERATIONS)
def test_a_slice_of_each_generation_fits(config, stage, topology):
  answer = plan(config, stage, topology)
  assert answer['fits'] and answer['bytes_per_device'] < answer['hbm_bytes']
  assert answer['collectives'] and answer['chip_hours'] > 0


@pytest.mark.parametrize(('config', 'stage', 'topology'), SLICES)
def test_every_stage_fits_the_slice_that_its_config_names(config, stage, topology):
  assert plan(config, stage, topology)['fits']
  assert topology in (ROOT / config).read_text()


def test_the_papers_grpo_fits_eight_small_chips_and_counts_its_rollouts():
  answer = plan(REWRITER, 'rewrite', 'v5e:2x4')
  assert answer['fits'] and max(answer['phases'].values()) < answer['hbm_bytes']
  assert answer['steps'] == 150 and '150 steps' in (ROOT / REWRITER).read_text()
  seconds = answer['seconds']
  rollout = [seconds[k] for k in ('prefill', 'decoding', 'reference')]
  assert min(rollout) > 0
  assert seconds['step'] == pytest.approx(seconds['update'] + sum(rollout), rel=1e-4)
  assert 'v5e:2x4' in (ROOT / REWRITER).read_text()
