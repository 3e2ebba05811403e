"""GRPO on a tiny decoder: it learns, resumes bitwise, and says when it has collapsed."""

import dataclasses
import functools
import itertools
import json

import gang
import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest

from disranker_jax.data.encoded import Encoded
from disranker_jax.errors import UserError
from disranker_jax.models import tree
from disranker_jax.rewriting import facts, objective, packed
from disranker_jax.rewriting.policy import log_probabilities
from disranker_jax.rewriting.rewards import RewardResult
from disranker_jax.training import optimizer, train


@pytest.fixture(scope='module')
def start():
  return policies.start()


def drawn(start, c, tmp_path, **options):
  """(the first micro-batches, the variables, the task) of a training."""
  _, feed, task, _ = policies.setup(c, tmp_path, 1, **options)
  variables = start | task.more(start)
  return feed.next(variables)[0], variables, task


@pytest.mark.parametrize(
  ('aggregate', 'scale'), [('token', 'group'), ('sequence', 'batch'), ('constant', 'none')]
)
def test_the_policy_learns_what_is_rewarded(start, tmp_path, aggregate, scale):
  c = policies.section(aggregate=aggregate, scale=scale, learning_rate=0.05)
  policies.fit(start, c, tmp_path, 40)
  rewards = [row['reward'] for row in policies.logged(tmp_path)]
  assert rewards[0] < 0.2 and np.mean(rewards[-5:]) > 0.9


def test_with_a_large_beta_the_policy_stays(start, tmp_path):
  last = {}
  for beta in (0.0, 100.0):
    c = policies.section(beta=beta, stop_kl=1e9)
    policies.fit(start, c, tmp_path / str(beta), 12)
    last[beta] = policies.logged(tmp_path / str(beta))[-1]
  assert last[0.0]['reward'] > 0.8 and last[0.0]['kl'] > 3
  assert last[100.0]['reward'] < 0.3 and abs(last[100.0]['kl']) < 0.1


@pytest.mark.parametrize(
  'changes',
  [{'beta': 0.1}, {'iterations': 2, 'gradient_accumulation_steps': 2, 'beta': 0.1, 'drawn': 9}],
)
def test_resume_is_bitwise_the_unbroken_run(start, tmp_path, changes):
  """Also between two updates from the same samples."""
  c = policies.section(**changes)
  whole = policies.fit(start, c, tmp_path / 'whole', 6)
  policies.fit(start, c, tmp_path / 'broken', 3)
  resumed = policies.fit(start, c, tmp_path / 'broken', 6)
  for path, value in tree.flatten(whole).items():
    np.testing.assert_array_equal(value, tree.flatten(resumed)[path], err_msg=path)
  rows = [
    [{k: v for k, v in row.items() if k != 'seconds'} for row in policies.logged(tmp_path / run)]
    for run in ('whole', 'broken')
  ]
  assert rows[0] == rows[1] and rows[0][0]['reward'] != rows[0][-1]['reward']


def test_several_updates_use_the_same_samples_and_clip(start, tmp_path):
  policies.fit(start, policies.section(iterations=3, epsilon=0.1, epsilon_high=0.1), tmp_path, 6)
  rows = policies.logged(tmp_path)
  assert len({row['reward'] for row in rows[:3]}) == 1 != len({row['reward'] for row in rows})
  assert rows[0]['outside_clip'] == 0 < rows[2]['outside_clip']


def test_of_more_samples_those_with_the_most_different_rewards_are_learned_from(start, tmp_path):
  seen = []

  def reward(queries, rewrites):
    seen.append((rewrites, policies.share_of_wanted(queries, rewrites)))
    return seen[-1][1]

  c = policies.section(drawn=20, samples=4)
  _, feed, task, _ = policies.setup(c, tmp_path, 1, reward=reward)
  [batch], _ = feed.next(start)
  [(rewrites, found)] = seen
  assert found.rewards_GS.shape == (c.prompts, 20)
  kept_GS = objective.widest(found.rewards_GS, 4)
  learned_GS = np.take_along_axis(found.rewards_GS, kept_GS, 1)
  learned = samples_of(feed, policies.Numbers())
  expected = [rewrites[g][s] for g, kept in enumerate(kept_GS) for s in kept]
  assert policies.Numbers().texts([ids for _, ids, _ in learned]) == expected
  advantages = np.ravel(objective.advantages(learned_GS))
  np.testing.assert_allclose([a for *_, a in learned], advantages, atol=1e-6)
  logged = jax.jit(task.loss)(start, batch)[2]
  assert logged['examples'] == c.prompts * 4
  np.testing.assert_allclose(logged['reward'], found.rewards_GS.mean(), atol=1e-6)
  np.testing.assert_allclose(logged['reward_best'], found.rewards_GS.max(1).mean(), atol=1e-6)
  assert learned_GS.std(1).mean() > found.rewards_GS.std(1).mean() > 0


def reinforce(network, variables, samples, temperature):
  """-sum of advantage x log-probability over the tokens of (prompt, completion, advantage)s."""
  texts = [prompt + completion for prompt, completion, _ in samples]
  tokens_BT, segments_BT = np.zeros((2, len(texts), max(map(len, texts))), int)
  advantages_BT = np.zeros(tokens_BT.shape)
  for row, (text, (prompt, _, advantage)) in enumerate(zip(texts, samples, strict=True)):
    tokens_BT[row, : len(text)], segments_BT[row, : len(text)] = text, 1
    advantages_BT[row, len(prompt) : len(text)] = advantage
  positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
  batch = {'tokens_BT': tokens_BT, 'segments_BT': segments_BT, 'positions_BT': positions_BT}
  logits = network.module.apply(variables, network.hidden(variables, batch), method='logits')
  logs = jax.nn.log_softmax(logits / temperature)[:, :-1]
  chosen_BT = jnp.take_along_axis(logs, tokens_BT[:, 1:, None], axis=-1)[..., 0]
  return -jnp.sum(advantages_BT[:, 1:] * chosen_BT)


def samples_of(feed, prompt) -> list[tuple]:
  """(prompt, completion, advantage) of every sample of the feed's rollout."""
  record = {name: x[0] for name, x in feed._record.items()}
  size = len(record['lengths_S']) // len(feed._asked[0])
  queries = [query for query in feed._asked[0] for _ in range(size)]
  return [
    (prompt(query.text), ids[:length].tolist(), advantage)
    for query, ids, length, advantage in zip(
      queries, record['ids_SN'], record['lengths_S'], record['advantages_S'], strict=True
    )
  ]


@pytest.mark.parametrize('row_len', [21, 11], ids=['shared', 'apart'])
def test_on_policy_its_gradient_is_that_of_reinforce(start, tmp_path, row_len):
  """Whether samples share their prompt in a row or not."""
  c = policies.section(temperature=0.8)
  _, feed, task, _ = policies.setup(c, tmp_path, 1, row_len=row_len)
  [batch], _ = feed.next(start)
  samples = samples_of(feed, policies.Numbers())
  tokens = sum(len(completion) for _, completion, _ in samples)

  def ours(variables):
    total, weight, _ = task.loss(variables, batch)
    return total / weight

  def wanted(variables):
    return reinforce(policies.network(), variables, samples, 0.8) / tokens

  found, expected = (tree.flatten(jax.jit(jax.grad(f))(start)) for f in (ours, wanted))
  assert max(np.abs(x).max() for x in expected.values()) > 0.01
  for path, value in expected.items():
    np.testing.assert_allclose(found[path], value, atol=2e-6, err_msg=path)


@pytest.mark.parametrize('row_len', [64, 11], ids=['shared', 'apart'])
def test_the_sampler_and_the_packed_forward_pass_give_the_same_log_probabilities(
  start, tmp_path, row_len
):
  c = policies.section(temperature=0.7)
  [batch], _, _ = drawn(start, c, tmp_path, row_len=row_len)
  assert ('parents_BT' in batch) == (row_len == 64)
  computed = jax.jit(functools.partial(log_probabilities, policies.network(), 0.7))
  packed_AP = computed(start, batch)
  np.testing.assert_allclose(packed_AP, batch['sampled_AP'], atol=1e-4)
  assert np.ptp(batch['sampled_AP']) > 1


def test_the_number_of_an_end_token_that_pads_counts_once_per_sample(start, tmp_path):
  """What is predicted follows from lengths, not from ids: here padding is the end token."""
  [batch], _, _ = drawn(start, policies.section(prompts=12), tmp_path)
  owners = np.asarray(batch['owner_AP'])
  ends = np.bincount(owners[(np.asarray(batch['targets_AP']) == policies.END) & (owners >= 0)])
  lengths = np.bincount(owners[owners >= 0])
  assert set(ends.tolist()) == {0, 1} and lengths.min() < 5 == lengths.max()
  cut = np.asarray(batch['truncated_GN']).ravel()
  np.testing.assert_array_equal(cut[: len(ends)], 1 - ends)


def test_samples_that_were_cut_off_are_left_out_on_request(start, tmp_path):
  [batch], _, task = drawn(start, policies.section(prompts=12), tmp_path)
  masked = dataclasses.replace(task.loss, c=policies.section(mask_truncated=True))
  found = {False: jax.jit(task.loss)(start, batch)[1], True: jax.jit(masked)(start, batch)[1]}
  owners, cut = np.asarray(batch['owner_AP']), np.asarray(batch['truncated_GN']).ravel()
  ended = sum(not cut[owner] for owner in owners[owners >= 0])
  assert found == {False: np.sum(owners >= 0), True: ended} and 0 < ended < found[False]


def test_a_sampler_that_differs_is_corrected_by_the_ratio(start, tmp_path):
  """It gave every token twice its probability: each counts half. At the cap it counts as much."""
  [batch], _, task = drawn(start, policies.section(), tmp_path)

  def slope(cap, times):
    loss = dataclasses.replace(task.loss, c=policies.section(sampler_correction=cap))
    changed = batch | {'sampled_AP': batch['sampled_AP'] + np.log(times).astype(np.float32)}
    found = jax.jit(jax.grad(lambda v: loss(v, changed)[0]))(start)
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

  plain = slope(0.0, 1.0)
  assert np.abs(plain).max() > 0.01
  for cap, times, factor in ((0.0, 2.0, 1), (2.0, 1.0, 1), (2.0, 2.0, 0.5), (2.0, 0.25, 2)):
    np.testing.assert_allclose(slope(cap, times), factor * plain, atol=2e-4 * np.abs(plain).max())


def test_micro_batches_have_the_gradient_of_the_whole(start, tmp_path):
  def gradients(parts):
    c = policies.section(gradient_accumulation_steps=parts, aggregate='sequence', beta=0.1)
    batches, variables, task = drawn(start, c, tmp_path)
    flat = optimizer.split(variables, '.*')
    return jax.jit(functools.partial(train.gradients, task.loss))(*flat, batches)[0]

  whole, halves = gradients(1), gradients(2)
  for path, value in whole.items():
    np.testing.assert_allclose(halves[path], value, atol=1e-6, err_msg=path)


def test_more_rows_have_the_same_gradient(start, tmp_path):
  """Those that four devices share, of which some stay empty."""

  def gradients(parts):
    c = policies.section(prompts=3, samples=3, beta=0.1)
    [batch], variables, task = drawn(start, c, tmp_path, parts=parts)
    flat = optimizer.split(variables, '.*')
    found, _ = jax.jit(functools.partial(train.gradients, task.loss))(*flat, [batch])
    return batch['tokens_BT'].shape[0], found

  (few, whole), (many, split) = gradients(1), gradients(4)
  assert (few, many) == (3, 12)
  assert max(np.abs(x).max() for x in whole.values()) > 0.01
  for path, value in whole.items():
    np.testing.assert_allclose(split[path], value, atol=1e-6, err_msg=path)


def test_empty_rewrites_fail_and_give_numbers(start, tmp_path):
  def every_other(queries, rewrites):
    failed = np.array([[i % 2 == 0 for i, _ in enumerate(each)] for each in rewrites])
    return RewardResult(np.where(failed, -1, 0.5).astype(np.float32), {'embedding': failed}, failed)

  policies.fit(start, policies.section(beta=0.1), tmp_path, 2, reward=every_other)
  for row in policies.logged(tmp_path):
    assert row['failures'] == 0.5 and row['reward'] == -0.25 and np.isfinite([*row.values()]).all()


@pytest.mark.parametrize('beta', [0.0, 0.1])
def test_rare_rewards_are_learned_from(start, tmp_path, beta):
  """Before the first one the gradient is 0, or only that of the divergence, which is small."""
  calls = itertools.count()

  def rare(queries, rewrites):
    found = policies.share_of_wanted(queries, rewrites)
    if next(calls) < train.NORM_STEPS + 1:
      found = dataclasses.replace(found, rewards_GS=np.zeros_like(found.rewards_GS))
    return found

  policies.fit(start, policies.section(beta=beta), tmp_path, train.NORM_STEPS + 4, reward=rare)
  rows = policies.logged(tmp_path)
  norms = [row['grad_norm'] for row in rows]
  assert max(norms[: train.NORM_STEPS + 1]) < norms[train.NORM_STEPS + 1] / 100
  assert not any(row['skipped'] for row in rows)


def test_fewer_queries_than_a_step_has_are_refused(tmp_path):
  with pytest.raises(UserError, match=r'prompts=25: there are only 24 queries'):
    policies.setup(policies.section(prompts=25), tmp_path, 1)


def test_places_of_samples_do_not_overlap():
  c = policies.section(samples=5, max_new=4)
  shape = packed.shape_of(c, policies.network(), 6, row_len=17)
  assert (shape.per_row, shape.rows, shape.row_len) == (2, 4 * 3, 16)
  docs = [Encoded(np.arange(6 + n), None, 0) for n in (4, 1, 3, 4, 2)]
  places = packed.placed(docs, 6, 1, shape)
  spans = [(p.row, p.start, p.start + len(d) - p.shared) for p, d in zip(places, docs, strict=True)]
  assert spans == [(3, 6, 10), (3, 10, 11), (4, 6, 9), (4, 9, 13), (5, 6, 8)]


@pytest.mark.parametrize(
  ('prompts', 'samples', 'row_len', 'parts', 'expected'),
  [
    (4, 6, 64, 2, (4, 6)),  # (rows, samples of a row)
    (3, 3, 64, 2, (6, 2)),
    (3, 3, 64, 4, (12, 1)),  # three of them stay empty
    (2, 5, 17, 4, (8, 2)),
    (1, 2, 11, 8, (8, 1)),
  ],
)
def test_devices_share_the_rows_whatever_their_number(prompts, samples, row_len, parts, expected):
  c = policies.section(prompts=prompts, samples=samples, max_new=4)
  alone = packed.shape_of(c, policies.network(), 6, row_len)
  shape = alone.on(parts)
  assert alone.on(1) == alone and shape.on(parts) == shape
  assert (shape.rows, shape.per_row) == expected and shape.rows % parts == 0
  assert shape.row_len <= alone.row_len and shape.shares == (shape.per_row > 1)
  docs = [Encoded(np.arange(6 + 4), None, 0)] * samples
  rows = [place.row for g in range(prompts) for place in packed.placed(docs, 6, g, shape)]
  assert max(rows) < shape.rows and len(rows) == prompts * samples


def test_the_share_of_the_querys_words():
  assert facts.common('Open a file', 'open FILE: pathlib') == pytest.approx(2 / 3)
  assert facts.common('a', '') == 0


MESHES = {
  'one': [policies.ONE, {}],
  'data': [{'data': 2, 'fsdp': 1, 'model': 1}, {}],
  'fsdp': [{'data': 1, 'fsdp': 2, 'model': 1}, {}],
  'model': [{'data': 1, 'fsdp': 1, 'model': 2}, {}],
}
SETTINGS = {
  'data_shards': 2, 'beta': 0.1, 'stop_kl': 1e9, 'iterations': 2, 'scale': 'batch', 'drawn': 9
}  # fmt: skip
STEPS = 4


def on_devices(folder, runs, count, devices) -> dict[str, list[tuple]]:
  """(loss, reward, kl) of each step of runs with SETTINGS, in processes of their own."""
  runs = {name: [sizes, SETTINGS | changes] for name, (sizes, changes) in runs.items()}
  spec = json.dumps({'folder': str(folder), 'runs': runs, 'steps': STEPS})
  assert gang.run(folder, [policies.__file__, spec], count, devices) == [0] * count
  return {
    name: [(row['loss'], row['reward'], row['kl']) for row in policies.logged(folder / name)]
    for name in runs
  }


def test_several_devices_and_processes_learn_as_one_does(tmp_path):
  runs = {name: run for name, run in MESHES.items() if name != 'one'}
  found = on_devices(tmp_path / 'devices', runs, count=1, devices=2)
  found |= on_devices(tmp_path / 'processes', {'two': MESHES['data']}, count=2, devices=1)
  [alone] = on_devices(tmp_path / 'alone', {'one': MESHES['one']}, count=1, devices=1).values()
  assert len(alone) == STEPS and np.ptp(alone, axis=0).min() > 1e-3
  for name, rows in found.items():
    np.testing.assert_allclose(rows, alone, atol=1e-4, err_msg=name)
