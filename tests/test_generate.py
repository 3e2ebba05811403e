"""Cached generation against the plain forward pass, stopping, and sampling."""

import hf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models import generate as module
from disranker_jax.models.generate import generate
from disranker_jax.models.network import Network


@pytest.fixture(scope='module')
def tiny():
  return reference.network('mistral', 6.0, head='lm')


def test_greedy_with_cache_is_the_argmax_of_the_full_forward_repeated(tiny):
  model, variables = tiny
  prompts = reference.sequences((5, 2, 9))
  ours = generate(model, variables, prompts, max_new=7, eos_id=-1)
  forward = jax.jit(model.hidden)
  for prompt, got in zip(prompts, ours, strict=True):
    ids = list(prompt)
    for _ in range(7):
      batch = reference.rows([ids], length=20)
      hidden = forward(variables, batch)[:, len(ids) - 1]
      ids.append(int(jnp.argmax(model.module.apply(variables, hidden, method='logits'))))
    assert got == ids[len(prompt) :]


def test_a_row_stops_at_its_own_end_token(tiny):
  model, variables = tiny
  prompts = reference.sequences((5, 2))
  free = generate(model, variables, prompts, max_new=6, eos_id=-1)
  stop = free[0][2]
  for row, whole in zip(
    generate(model, variables, prompts, max_new=6, eos_id=stop), free, strict=True
  ):
    assert row == (whole[: whole.index(stop) + 1] if stop in whole else whole)


def test_sampling_repeats_with_its_seed_and_differs_without(tiny):
  model, variables = tiny
  prompts = reference.sequences((4, 4))

  def draw(seed, **kw):
    return generate(
      model, variables, prompts, max_new=8, eos_id=-1, temperature=1.5, seed=seed, **kw
    )

  assert draw(1) == draw(1) != draw(2)
  # A nucleus of no mass holds the likeliest token only.
  assert draw(3, top_p=0.0) == generate(model, variables, prompts, max_new=8, eos_id=-1)


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p():
  logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))

  def kept(p):
    return np.isfinite(module._nucleus(logits, p))[0].tolist()

  assert kept(0.5) == [False, True, False, False]
  assert kept(0.51) == [False, True, False, True]
  assert kept(1.0) == [True] * 4


def test_wrong_head_and_empty_prompts_are_refused(tiny):
  model, variables = tiny
  with pytest.raises(UserError, match='empty'):
    generate(model, variables, [[1], []])
  with pytest.raises(UserError, match="head='lm'"):
    generate(Network(model.config), variables, [[1]])
