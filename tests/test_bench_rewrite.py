"""The bench of a GRPO step: parts that add up, and TRL's loss in torch."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import _compare, rewrite
from disranker_jax.rewriting import objective

LEAST = [
  '--model=tiny-decoder', '--prompts=2', '--samples=3', '--prompt-len=5', '--new=4',
  '--documents=40', '--rounds=1', '--precision=float32',
]  # fmt: skip


def answer(capsys, *argv) -> dict:
  command.main(['rewrite', *LEAST, *argv, '--json'])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_parts_of_a_step_add_up(capsys):
  found = answer(capsys, '--peers=none')
  side = found['sides']['ours']
  assert tuple(side['parts_s']) == rewrite.PARTS and found['bench'] == 'rewrite'
  # What is left is a few lines between the parts.
  assert sum(side['parts_s'].values()) == pytest.approx(side['step_s'], rel=0.2)
  tokens = side['tokens_per_s'] * side['step_s']  # both are rounded
  assert side['decoded_per_s'] > 0 and tokens == pytest.approx(24, rel=1e-3)


@pytest.mark.slow  # it imports torch and compiles two models
def test_beside_transformers(capsys):
  pytest.importorskip('torch')
  found = answer(capsys)
  for name in _compare.TORCH:
    assert found[f'ratio_to_{name}'] > 0 and found['sides'][name]['parts_s']['update'] > 0


def test_both_sides_have_the_same_work():
  args = rewrite.parse_args(LEAST)
  first, second = (rewrite.Work(args, 64) for _ in range(2))
  assert first.queries == second.queries and len(first.documents) == 40
  prompt = rewrite.Prompts()
  ids = prompt(first.queries[0].text)
  assert len(ids) == 5 and min(ids) >= rewrite.RESERVED and max(ids) < 64
  [text] = prompt.texts([ids])
  assert text == first.queries[0].text
  # A rewrite that is its page's text is found first, whatever the others are.
  query = first.queries[0]
  found = first.reward()([query], [[query.positives[0].summary, 'nothing', text]]).rewards_GS
  assert found[0, 0] > 0 and found[0, 1:].tolist() == [0, 0]


def test_torch_has_the_loss_of_the_stage():
  torch = pytest.importorskip('torch')
  from benchmarks import _grpo_torch

  rng = np.random.default_rng(0)
  logprobs, old, reference = -rng.exponential(size=(3, 6, 4)).astype(np.float32)
  mask = np.arange(4)[None] < np.array([4, 1, 2, 4, 3, 2])[:, None]
  rewards = rng.normal(size=(2, 3)).astype(np.float32)
  advantages_B = _grpo_torch.advantages(rewards).reshape(-1)
  np.testing.assert_allclose(advantages_B, objective.advantages(rewards).reshape(-1), rtol=1e-5)
  owner_AP = np.where(mask, np.arange(6)[:, None], -1).reshape(1, -1)
  advantages_AP = objective.of_samples(advantages_B[None], owner_AP)
  for beta in (0.0, 0.04):
    loss_AP = objective.surrogate(logprobs.reshape(1, -1), old.reshape(1, -1), advantages_AP)
    loss_AP += beta * objective.kl(logprobs.reshape(1, -1), reference.reshape(1, -1))
    total, weight = objective.aggregate(loss_AP, owner_AP, np.ones((1, 6), bool))
    tensors = map(torch.tensor, (logprobs, old, reference, advantages_B, mask))
    theirs = _grpo_torch.trl_loss(*tensors, beta, 0.2, 0.2)
    assert float(theirs) == pytest.approx(float(total / weight), rel=1e-5)
