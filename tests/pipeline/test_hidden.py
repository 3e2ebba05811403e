"""Distillation with a term on hidden states: an encoder teaches another, layer by layer."""

import dataclasses
import json
import shutil
import types

import helpers
import jax
import numpy as np
import pytest

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import hf, load, tree, weights
from disranker_jax.models.network import from_hf
from disranker_jax.pipeline import runner, steps
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import distill, distill_hidden, roles
from disranker_jax.training import checkpoint, optimizer


def config(**changes):
  """An encoder as the teacher; the student has one of its two layers."""
  encoders = {'teacher__model': 'tiny-encoder', 'student__layers': (1,)}
  stages = ('prepare', 'sft', 'score', 'distill')
  return helpers.config(**({'stages': stages, 'distill__hidden_weight': 0.5} | encoders | changes))


def opened(tmp_path, **changes):
  """(what is computed, its variables) before any stage has trained anything."""
  c = config(**changes)
  c.stages = ('prepare', 'distill')
  run = Run(c, tmp_path, sharding.make_mesh(c.mesh))
  student = load.open_model(c.student)
  states, more = distill_hidden.open_hidden(run, student)
  return states, student.pretrained(0, run.mesh) | more


def batch():
  """Two rows; the second is half empty."""
  rng = np.random.default_rng(0)
  segments_BT = np.array([[1] * 8, [1] * 4 + [0] * 4])
  return {
    'tokens_BT': rng.integers(5, 500, (2, 8)) * (segments_BT > 0),
    'segments_BT': segments_BT,
    'positions_BT': np.tile(np.arange(8), (2, 1)) * (segments_BT > 0),
    'types_BT': np.zeros((2, 8), int),
    'index_AX': np.array([[0, 8]]),
    'mask_GN': np.ones((1, 2), bool),
  }


def test_scores_are_the_students_own_and_the_gap_is_over_real_tokens(tmp_path):
  states, variables = opened(tmp_path, distill__hidden_layers=(-1, 2))
  scores_GN, gap = jax.jit(states)(variables, batch())
  student = dataclasses.replace(states.student, states=False)
  own = {'params': variables['params']}
  np.testing.assert_allclose(scores_GN, student.scores(own, batch()), atol=1e-5)
  ours_BTD = student.hidden(own, batch())
  teacher = dataclasses.replace(states.teacher, states=False)
  theirs_BTD = teacher.hidden({'params': variables['frozen']}, batch())
  squares_BT = np.square(np.asarray(ours_BTD) - np.asarray(theirs_BTD)).mean(-1)
  # Rows count alike, however many of their places are empty.
  np.testing.assert_allclose(gap, (squares_BT[0].mean() + squares_BT[1, :4].mean()) / 2, rtol=1e-5)


def test_a_student_that_is_its_teacher_has_no_gap(tmp_path):
  states, variables = opened(tmp_path, student__layers=())
  assert float(jax.jit(states)(variables, batch())[1]) == 0


def test_other_widths_are_compared_through_a_projection_that_learns(tmp_path):
  folder = shutil.copytree(weights.find('tiny-encoder'), tmp_path / 'wide')
  config_file = folder / 'config.json'
  config_file.write_text(json.dumps(helpers.load(config_file) | {'hidden_size': 48}))
  (folder / 'model.safetensors').unlink()
  wide = from_hf(folder)
  hf.save(tmp_path / 'saved', wide, wide.init(jax.random.key(1)))
  (tmp_path / 'saved' / 'model.safetensors').rename(folder / 'model.safetensors')
  states, variables = opened(tmp_path, teacher__model=str(folder))
  assert variables['hidden']['projection'].shape == (32, 48)
  slopes = jax.jit(jax.grad(lambda v: states(v, batch())[1]))(variables)
  assert np.abs(slopes['hidden']['projection']).max() > 0
  trained, frozen = optimizer.split(variables, '.*')
  assert 'hidden/projection' in trained
  assert frozen and all(path.startswith('frozen/') for path in frozen)


def test_the_stage_learns_from_the_teachers_layers_and_leaves_the_teacher_out(tmp_path):
  c = config(distill__hidden_weight=10.0, distill__max_steps=12, distill__learning_rate=1e-2)
  runner.run(c, tmp_path)
  lines = (tmp_path / 'distill' / 'metrics.jsonl').read_text().splitlines()
  gaps = [json.loads(line)['hidden'] for line in lines]
  assert gaps[-1] < 0.8 * gaps[0]
  mesh = sharding.make_mesh(c.mesh)
  saved = checkpoint.load_params(tmp_path / 'distill' / 'checkpoints', mesh)
  assert all(path.startswith('params/') for path in tree.flatten(saved))


def test_the_teacher_counts_in_what_the_stage_is_expected_to_hold():
  """Before anything is loaded."""
  held = {}
  for weight in (0.0, 0.5):
    c = config(distill__hidden_weight=weight)
    mesh, network = sharding.make_mesh(c.mesh), load.open_model(c.student).network
    held[weight] = steps.training(c, distill.STAGE, network, mesh).held
  more = held[0.5].pop('parameters') - held[0.0].pop('parameters')
  assert more == 4 * load.open_model(c.teacher).network.count_params()
  assert held[0.5] == held[0.0]


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'teacher__model': 'tiny-decoder'}, "must be an encoder, and 'tiny-decoder' is not"),
    ({'distill__hidden_layers': (0,)}, r'hidden_layers=\(0,\): must be 2 numbers'),
    ({'distill__hidden_layers': (0, 3)}, 'the teacher 0 to 2'),
    ({'data__teachers': ('trec:x.run',)}, 'data.teachers give scores and no hidden states'),
  ],
)
def test_what_cannot_be_compared_is_said(tmp_path, changes, says):
  with pytest.raises(UserError, match=says):
    opened(tmp_path, **changes)


def test_other_tokens_cannot_be_compared(tmp_path, monkeypatch):
  other = types.SimpleNamespace(get_vocab=dict)
  opener = roles.open_role
  monkeypatch.setattr(
    roles, 'open_role', lambda *role: dataclasses.replace(opener(*role), tokenizer=other)
  )
  with pytest.raises(UserError, match='different tokens'):
    opened(tmp_path)


def test_an_encoder_cannot_rank_without_training(tmp_path):
  c = config(evaluate__models=('zero_shot',), distill__hidden_weight=0.0)
  c.stages = ('prepare', 'evaluate')
  with pytest.raises(UserError, match=r"zero_shot.*'tiny-encoder' does not compute"):
    runner.run(c, tmp_path)
