"""Samples belong to their prompt, whatever else is in the batch; greedy rewrites need no draws."""

import jax
import numpy as np
import policies
import pytest

from disranker_jax.devices import sharding
from disranker_jax.rewriting.sampling import gathered

MESH = sharding.make_mesh(policies.ONE)
PROMPTS = [policies.Numbers()(str(i)) for i in range(5)]


@pytest.fixture(scope='module')
def start():
  return policies.start()


def sampler(**changes):
  return policies.sampler(policies.network(), policies.section(max_new=8), MESH, **changes)


def ids(groups) -> list[list[list[int]]]:
  return [[sample.ids.tolist() for sample in group] for group in groups]


def test_the_samples_of_a_prompt_are_those_it_has_alone(start):
  """With the prefill shared, in batches of another size, and in another order."""
  numbers = [3, 1, 4, 15, 9]
  together = sampler(rows=4)(start, PROMPTS, numbers, 7)
  alone = [
    sampler(rows=1)(start, [prompt], [number], 7)[0]
    for prompt, number in zip(PROMPTS, numbers, strict=True)
  ]
  assert ids(together) == ids(alone)
  for ours, theirs in zip(together, alone, strict=True):
    for a, b in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
  assert all(len({tuple(sample) for sample in group}) > 3 for group in ids(together))


def test_other_steps_numbers_and_seeds_give_other_samples(start):
  draws = [
    ids(sampler(seed=seed)(start, PROMPTS[:2], [number, number + 1], step))
    for seed, number, step in [(0, 0, 1), (0, 0, 2), (0, 5, 1), (1, 0, 1), (0, 0, 1)]
  ]
  assert draws[0] == draws[-1]
  assert all(draws[0] != other for other in draws[1:-1])


def test_a_row_that_ends_early_changes_no_other(start):
  free = ids(sampler(stops=set())(start, PROMPTS, range(5), 1))
  for stop in (0, 7):
    rows = sampler(stops={stop})(start, PROMPTS, range(5), 1)
    for group, whole in zip(rows, free, strict=True):
      for sample, row in zip(group, whole, strict=True):
        until = row.index(stop) + 1 if stop in row else len(row)
        assert sample.ids.tolist() == row[:until] and sample.ended == (stop in row)
        assert len(sample.logprobs) == until
    assert len({len(sample.ids) for group in rows for sample in group}) > 2


def read_at_once(start, prompt: list[int], written: list[int], temperature: float) -> jax.Array:
  """The log-probabilities of all tokens in each place of a text, in one forward pass."""
  network, whole = policies.network(), np.array([*prompt, *written])
  batch = {
    'tokens_BT': whole[None], 'segments_BT': np.ones((1, len(whole)), int),
    'positions_BT': np.arange(len(whole))[None],
  }  # fmt: skip
  hidden = jax.jit(network.hidden)(start, batch)[0, len(prompt) - 1 : -1]
  return jax.nn.log_softmax(network.module.apply(start, hidden, method='logits') / temperature)


def test_log_probabilities_are_of_all_tokens_at_the_temperature(start):
  """The nucleus decides what is drawn, not what its probability is."""
  [[sample]] = sampler(samples=1, temperature=0.5, top_p=0.3)(start, PROMPTS[:1], [0], 1)
  logs = read_at_once(start, PROMPTS[0], sample.ids, 0.5)[np.arange(len(sample.ids)), sample.ids]
  np.testing.assert_allclose(sample.logprobs, logs, atol=1e-5)


def test_of_the_likeliest_token_alone_samples_are_greedy(start):
  [greedy] = sampler(samples=1, temperature=0.0)(start, PROMPTS[:1], [0], 1)
  [limited] = sampler(samples=3, top_k=1, temperature=2.0)(start, PROMPTS[:1], [0], 1)
  assert ids([limited]) == [[greedy[0].ids.tolist()] * 3]
  free, all_of_them, two = (
    ids(sampler(top_k=k)(start, PROMPTS, range(5), 1)) for k in (0, policies.VOCAB, 2)
  )
  assert free == all_of_them != two


def test_a_limited_draw_is_one_of_the_k_likeliest_and_has_its_whole_probability(start):
  [[sample]] = sampler(samples=1, top_k=3, temperature=1.5)(start, PROMPTS[:1], [0], 1)
  logs = read_at_once(start, PROMPTS[0], sample.ids, 1.5)
  assert all(i in np.argsort(row)[-3:] for i, row in zip(sample.ids, logs, strict=True))
  drawn = logs[np.arange(len(sample.ids)), sample.ids]
  np.testing.assert_allclose(sample.logprobs, drawn, atol=1e-5)


def test_without_fsdp_variables_are_given_as_they_are(start):
  assert gathered(policies.network(), start, MESH) is start
