"""The feed of GRPO: prompts -> samples of the current policy -> rewards -> batches (packed.py).

Shapes: G queries, S samples (of a query after G, else of a block), A blocks, N tokens of the
longest completion, F facts, M micro-batches.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.data import batches
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.progress import amount
from disranker_jax.rewriting import facts, objective, packed
from disranker_jax.rewriting.collapse import Collapse
from disranker_jax.rewriting.policy import log_probabilities
from disranker_jax.rewriting.prompts import RewritePrompt
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.rewards import RewardResult
from disranker_jax.rewriting.sampling import Sampler
from disranker_jax.training import optimizer


class Rollouts:
  """A training.feed.Feed of samples of the current policy.

  A rollout has `prompts` prompts, in a seeded order, and is the batch of `iterations` updates. With
  several, what `positions` gives holds the current rollout, so that a resumed run goes on with it.
  Of more samples than the batch holds of a prompt, those with the most different rewards are in it.

  Args:
    c: the section `rewrite` of the config.
    prompt: the prompt of a query, and the rewrites in completions.
    reward: see rewards.Reward.
    sampler: draws at least `samples` completions of each prompt, see `draws`.
    shape: of a micro-batch, see packed.shape_of.
  """

  def __init__(
    self,
    c,
    queries: Sequence[Query],
    prompt: RewritePrompt,
    reward: Callable[[Sequence[Query], Sequence[Sequence[str]]], RewardResult],
    sampler: Sampler,
    shape: packed.Shape,
    mesh,
    seed: int,
  ):
    check_count(c, len(queries))
    self.blocks, self._mesh, self._c = c.data_shards, mesh, c
    self._queries, self._prompt, self._reward = queries, prompt, reward
    self._sampler, self._shape = sampler, shape.block(self.blocks)
    self._per_block = c.prompts // self.blocks  # prompts of a rollout
    self._order = grain.MapDataset.range(len(queries)).seed(seed).shuffle().repeat(None)
    self._own = sharding.own_blocks(mesh, self.blocks)
    self._collapse = Collapse(c)
    where = sharding.batch_shardings(self.shapes(), mesh, self.blocks)['targets_AP']
    everywhere = NamedSharding(mesh, PartitionSpec())
    logprobs = functools.partial(log_probabilities, sampler.network, c.temperature)
    self._old = jax.jit(
      lambda variables, batch: logprobs(optimizer.own(variables), batch), out_shardings=where
    )
    self._reference = jax.jit(
      functools.partial(reference, logprobs), out_shardings=(where, everywhere)
    )
    self._record: dict[str, np.ndarray] = {}  # of the own blocks
    self._used = c.iterations  # updates from the last rollout
    self._open(0)

  def shapes(self) -> dict:
    return self._shape.zeros(self.blocks)

  def next(self, variables: dict) -> tuple[list[dict], list[str]]:
    """See training.feed.Feed. Raises: UserError if the policy has collapsed."""
    if self._used == self._c.iterations:
      self._draw(variables)
    if self._placed is None:
      self._placed = self._place(variables)
    self._used += 1
    return self._placed, [query.query_id for block in self._asked for query in block]

  def nothing(self) -> tuple[list[dict], list[str]]:
    placed = self._put(self._shape.zeros(len(self._own)))
    return [placed] * self._c.gradient_accumulation_steps, []

  def positions(self) -> jax.Array:
    """[A, ...]: how many rollouts there were, and with several updates from each the last one."""
    counts = np.full((len(self._own), 1), self._rollouts, np.int32)
    parts = [counts]
    if self._c.iterations > 1:
      record = self._record or self._empty()
      parts += [np.full_like(counts, self._used)]
      parts += [x.reshape(len(self._own), -1).view(np.int32) for x in record.values()]
    return self._put({'positions_A': np.concatenate(parts, axis=1)})['positions_A']

  def seek(self, positions_A: jax.Array) -> None:
    own = sharding.own_part(positions_A, self._mesh, self.blocks)
    self._open(int(own[0, 0]))
    self._used = self._c.iterations
    if self._c.iterations > 1:
      self._used, rest, self._record = int(own[0, 1]), own[:, 2:], {}
      for name, like in self._empty().items():
        size = like[0].size
        values = np.ascontiguousarray(rest[:, :size]).view(like.dtype)
        self._record[name], rest = values.reshape(like.shape), rest[:, size:]

  def _open(self, rollouts: int) -> None:
    """Goes on with the last of so many rollouts; block a has every A-th query from a on."""
    self._rollouts, self._placed = rollouts, None
    places = (rollouts - 1) * self._per_block + np.arange(self._per_block if rollouts else 0)
    self._numbers = [
      [int(self._order[p * self.blocks + b]) for p in places.tolist()] for b in range(self.blocks)
    ]
    self._asked = [[self._queries[n] for n in self._numbers[b]] for b in self._own]

  def _draw(self, variables: dict) -> None:
    """Samples a rollout; every process draws all of it, and process 0 computes all rewards."""
    self._open(self._rollouts + 1)
    numbers = list(itertools.chain(*self._numbers))
    asked = [self._queries[n] for n in numbers]
    prompts = [self._prompt(query.text) for query in asked]
    drawn = self._sampler(optimizer.own(variables), prompts, numbers, self._rollouts)
    rewrites = [self._prompt.texts([s.ids for s in group], self._c.think) for group in drawn]
    found = processes.of_first('rewards', lambda: self._rewarded(asked, rewrites))
    self._collapse.failures(found['failed_GS'], self._step())
    self._collapse.order(found['rewards_GS'], found['failed_GS'], self._step())
    chosen = zip(drawn, found['kept_GS'].tolist(), strict=True)
    learned = [[group[s] for s in kept] for group, kept in chosen]
    facts_GF = facts.of_queries(asked, rewrites, drawn, found)
    record = {
      **packed.tokens_of(learned, self._c.max_new),
      'advantages_S': found['advantages_GS'],
      'truncated_S': facts.truncated(learned),
      'facts_SF': np.repeat(facts_GF[:, None], self._c.samples, axis=1),
    }
    by_block = lambda x: x.reshape(self.blocks, -1, *x.shape[2:])[self._own]  # noqa: E731
    self._record = {name: by_block(x) for name, x in record.items()}
    self._used = 0

  def _rewarded(self, asked, rewrites) -> dict[str, np.ndarray]:
    """The rewards of a rollout, and what follows from them."""
    found = self._reward(asked, rewrites)
    kept_GS = objective.widest(found.rewards_GS, self._c.samples)
    learned_GS = np.take_along_axis(found.rewards_GS, kept_GS, axis=1)
    return {
      'rewards_GS': found.rewards_GS,
      'failed_GS': found.failed_GS,
      'parts_FGS': np.stack(list(found.parts.values())),
      'kept_GS': kept_GS,
      'advantages_GS': np.asarray(objective.advantages(learned_GS, self._c.scale)),
    }

  def _step(self) -> int:
    """The first step that learns from the present rollout, from 1."""
    return (self._rollouts - 1) * self._c.iterations + 1

  def _empty(self) -> dict[str, np.ndarray]:
    """The shapes of a record."""
    c, samples = self._c, self._per_block * self._c.samples
    like = {
      'ids_SN': np.zeros((samples, c.max_new), np.int32),
      'logprobs_SN': np.zeros((samples, c.max_new), np.float32),
      'lengths_S': np.zeros(samples, np.int32),
      'advantages_S': np.zeros(samples, np.float32),
      'truncated_S': np.zeros(samples, np.float32),
      'facts_SF': np.zeros((samples, len(self._shape.facts)), np.float32),
    }
    places = self._shape.rows * self._shape.predicted
    like['old_MP'] = np.zeros((c.gradient_accumulation_steps, places), np.float32)
    return {name: np.repeat(x[None], len(self._own), axis=0) for name, x in like.items()}

  def _place(self, variables: dict) -> list[dict]:
    """The micro-batches of the last rollout, on the mesh."""
    c = self._c
    placed = [
      self._put(batches.join([self._block(i, m) for i in range(len(self._own))]))
      for m in range(c.gradient_accumulation_steps)
    ]
    with jax.set_mesh(self._mesh):
      if c.iterations > 1 and 'old_MP' not in self._record:
        old = [self._old(variables, batch) for batch in placed]
        parts = [sharding.own_part(x, self._mesh, self.blocks) for x in old]
        self._record['old_MP'] = np.stack(parts, axis=1)
      for m, batch in enumerate(placed if c.iterations > 1 else ()):
        batch |= self._put({'old_AP': self._record['old_MP'][:, m]})
      if packed.has_reference(c):
        found = [self._reference(variables, batch) for batch in placed]
        for batch, (reference_AP, _) in zip(placed, found, strict=True):
          batch['reference_AP'] = reference_AP
        if c.stop_kl:
          kl = sum(float(kl) for _, kl in found) / (c.prompts * c.samples)
          self._collapse.divergence(kl, self._step())
    return placed

  def _block(self, own: int, m: int) -> dict[str, np.ndarray]:
    """An own block of micro-batch m, without the log-probabilities under other parameters."""
    size, docs = self._shape.prompts, self._shape.docs
    asked = self._asked[own][m * size : (m + 1) * size]
    of = slice(m * size * docs, (m + 1) * size * docs)
    record = {name: x[own, of] for name, x in self._record.items() if name != 'old_MP'}
    prompts, names = [self._prompt(q.text) for q in asked], [q.query_id for q in asked]
    return packed.block_of(prompts, names, record, self._shape)

  def _put(self, own: dict) -> dict:
    return sharding.put_batch(own, self._mesh, self.blocks)


def draws(c) -> int:
  """Samples that are drawn of each query; `c.samples` of them are learned from."""
  return c.drawn or c.samples


def check_count(c, queries: int, held_out: int = 0) -> None:
  """Raises: UserError for fewer queries than a step has, beside those that are held out."""
  if queries < c.prompts:
    others = f' ({held_out:,} more are held out)' if held_out else ''
    share = ' or config.validation.share' if held_out else ''
    raise UserError(
      f'config.rewrite.prompts={c.prompts}: there are only {amount(queries, "query", "queries")} '
      f'to learn from{others}; lower config.rewrite.prompts{share}'
    )


def reference(logprobs: Callable, variables: dict, batch: dict):
  """(log-probabilities [A, P] under the policy of the start, sum of the divergences from it)."""
  reference_AP = logprobs(optimizer.at_start(variables), batch)
  kl_AP = objective.kl(batch['sampled_AP'], reference_AP, objective.WATCHED)
  return reference_AP, jnp.sum(jnp.where(batch['owner_AP'] >= 0, kl_AP, 0.0))
