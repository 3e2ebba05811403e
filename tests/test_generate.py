"""Cached generation against the plain forward pass, stopping, and sampling."""

import dataclasses

import hf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.errors import UserError
from disranker_jax.models.generate import common, generate, narrow, share
from disranker_jax.models.network import Network


@pytest.fixture(scope='module')
def tiny():
  return reference.network('mistral', 6.0, head='lm')


# One of each type of decoder; local_global is a Qwen2 with a window in some layers.
KINDS = ('mistral', 'llama', 'local_global', 'qwen3', 'gemma', 'gemma3', 'smollm3', 'ministral')
KINDS += ('ministral3', 'phi3')


@pytest.mark.parametrize('kind', KINDS)
def test_greedy_with_cache_is_the_argmax_of_the_full_forward_repeated(kind):
  model, variables = reference.network(kind, 6.0, head='lm')
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


@pytest.mark.parametrize('precision', ['bfloat16', 'bfloat16_dots', 'float32'])
def test_variables_in_the_dtypes_that_are_read_write_the_same(tiny, precision):
  model, variables = dataclasses.replace(tiny[0], precision=precision), tiny[1]
  options = {'max_new': 6, 'eos_id': -1, 'temperature': 1.2, 'with_logprobs': True}
  small = narrow(model, variables)
  prompts = reference.sequences((5, 2))
  (rows, logs), (others, other_logs) = (
    generate(model, each, prompts, **options) for each in (variables, small)
  )
  assert rows == others
  np.testing.assert_array_equal(logs, other_logs)
  sizes = {str(x.dtype) for x in jax.tree.leaves(small)}
  assert sizes == ({'float32'} if precision == 'float32' else {'float32', 'bfloat16'})


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


def test_samples_of_a_prompt_are_those_of_the_prompt_repeated(tiny):
  model, variables = tiny
  prompts = reference.sequences((4, 6))
  options = {'max_new': 5, 'eos_id': -1, 'temperature': 1.2, 'top_p': 0.9}
  shared = generate(model, variables, prompts, samples=3, **options)
  repeated = [prompt for prompt in prompts for _ in range(3)]
  assert shared == generate(model, variables, repeated, **options)
  assert len({tuple(row) for row in shared}) > 2


def test_a_row_does_not_depend_on_later_rows_or_their_length(tiny):
  model, variables = tiny
  prompts = reference.sequences((4, 6, 40))
  options = {'max_new': 5, 'eos_id': -1, 'temperature': 1.2, 'top_p': 0.9}
  together = generate(model, variables, prompts, **options)
  assert generate(model, variables, prompts[:2], **options) == together[:2]


def test_draws_belong_to_a_prompts_number_not_to_its_place(tiny):
  model, variables = tiny
  first, second = reference.sequences((4, 6))
  options = {'max_new': 5, 'eos_id': -1, 'temperature': 1.2, 'samples': 2, 'at_least': 16}
  there = generate(model, variables, [first, second], numbers=[7, 2**32 - 1], **options)
  back = generate(model, variables, [second, first], numbers=[2**32 - 1, 7], **options)
  assert back == [*there[2:], *there[:2]]
  others = generate(model, variables, [first, second], numbers=[8, 9], **options)
  assert all(a != b for a, b in zip(there, others, strict=True))


def test_no_row_ends_before_min_new_tokens(tiny):
  model, variables = tiny
  prompts = reference.sequences((5, 2, 9))
  free = generate(model, variables, prompts, max_new=5, eos_id=-1)
  stops = {row[0] for row in free} | {row[1] for row in free}
  assert {len(row) for row in generate(model, variables, prompts, max_new=5, eos_id=stops)} == {1}
  late = generate(model, variables, prompts, max_new=5, eos_id=stops, min_new=3)
  assert all(not stops & set(row[:3]) and len(row) > 3 for row in late)


def test_without_an_end_token_min_new_bars_no_token(tiny):
  model, variables = tiny
  last = model.config.vocab - 1
  louder = np.array(variables['params']['lm_head']['kernel'])
  louder[:, -1] *= 50  # the last token's logit is the largest wherever it is not negative
  variables = {'params': {**variables['params'], 'lm_head': {'kernel': louder}}}
  prompts = reference.sequences((5, 2, 9, 7))
  free = generate(model, variables, prompts, max_new=5, eos_id=-1)
  assert last in {token for row in free for token in row}
  assert generate(model, variables, prompts, max_new=5, eos_id=-1, min_new=5) == free


@pytest.mark.parametrize('kind', ['llama', 'local_global', 'gemma3', 'ministral'])
def test_with_a_shared_prefix_the_tokens_are_the_same(kind):
  # Rests of 1, 3 and 20 tokens: prompts begin in different slots, the windows with them.
  model, variables = reference.network(kind, 6.0, head='lm')
  prefix, *rests = reference.sequences((19, 1, 3, 20))
  prompts = [prefix + rest for rest in rests]
  shared = share(model, variables, prefix)
  options = {'max_new': 6, 'eos_id': -1, 'samples': 2, 'temperature': 1.2, 'top_p': 0.9}
  assert generate(model, variables, prompts, shared=shared, **options) == generate(
    model, variables, prompts, **options
  )
  short = share(model, variables, prefix[:5])
  rows, logprobs = generate(
    model, variables, prompts, max_new=6, eos_id=-1, at_least=50, shared=short, with_logprobs=True
  )
  plain, expected = generate(model, variables, prompts, max_new=6, eos_id=-1, with_logprobs=True)
  assert rows == plain
  for got, want in zip(logprobs, expected, strict=True):
    assert got == pytest.approx(want, abs=1e-3)


def test_the_shared_prefix_is_read_from_the_cache_alone():
  model, variables = reference.network('llama', 6.0, head='lm')  # without a window
  prefix, rest, other = reference.sequences((30, 18, 30))  # 48 tokens: no padding
  shared = share(model, variables, prefix)
  mixed = shared._replace(caches=share(model, variables, other).caches)
  options = {'max_new': 3, 'eos_id': -1, 'with_logprobs': True}
  _, [right] = generate(model, variables, [prefix + rest], shared=shared, **options)
  _, [wrong] = generate(model, variables, [prefix + rest], shared=mixed, **options)
  assert np.abs(right - wrong).max() > 0.01


def test_what_all_prompts_begin_with():
  assert common([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]]) == [1, 2]
  assert common([[1, 2], [1, 2, 5]]) == [1]  # a prompt goes on after it
  assert common([[7, 8]]) == [7]
  assert common([[1, 2], [2, 2]]) == []


@pytest.mark.parametrize('wrong', [[1, 2, 4, 9], [1, 2, 3], [1]])
def test_a_prompt_without_the_shared_tokens_is_refused(tiny, wrong):
  model, variables = tiny
  shared = share(model, variables, [1, 2, 3])
  with pytest.raises(UserError, match='does not begin with the 3 shared tokens'):
    generate(model, variables, [[1, 2, 3, 4], wrong], shared=shared)


@pytest.mark.parametrize('precision', ['bfloat16', 'bfloat16_dots'])
def test_greedy_in_bf16_is_the_argmax_of_the_forward_pass_in_bf16(precision):
  model, variables = reference.network('local_global', 6.0, head='lm', precision=precision)
  prompts = reference.sequences((9, 3))
  ours = generate(model, variables, prompts, max_new=4, eos_id=-1)
  for prompt, got in zip(prompts, ours, strict=True):
    ids = [*prompt, *got]
    hidden = jax.jit(model.hidden)(variables, reference.rows([ids]))[0, len(prompt) - 1 : -1]
    logits = model.module.apply(variables, hidden, method='logits')
    chosen = jnp.take_along_axis(logits, jnp.array(got)[:, None], axis=-1)[:, 0]
    assert (logits.max(-1) - chosen).max() <= 0.02 * jnp.abs(logits).max()


def test_wrong_head_and_empty_prompts_are_refused(tiny):
  model, variables = tiny
  with pytest.raises(UserError, match='empty'):
    generate(model, variables, [[1], []])
  with pytest.raises(UserError, match="head='lm'"):
    generate(Network(model.config), variables, [[1]])
