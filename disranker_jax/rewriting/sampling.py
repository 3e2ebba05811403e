"""Samples of a decoder with their log-probabilities, in batches of one shape."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from disranker_jax.models import generate
from disranker_jax.models.network import Network

FILLING = [0]  # a prompt that fills a batch up; what follows it is not used


class Sample(NamedTuple):
  """A completion: token ids with the end token, if the model wrote one; their log-probabilities."""

  ids: np.ndarray  # [N] int32, at least one
  logprobs: np.ndarray  # [N] float32, of softmax(logits / temperature)
  ended: bool  # False: it was cut off at `max_new`


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Draws `samples` completions of each prompt; of several processes all make the same calls.

  The samples of a prompt depend on the parameters, `seed`, the step and the prompt's number, not on
  the other prompts. With temperature 0 they are greedy.

  Args:
    stops: the tokens that end a completion.
    rows: prompts that are written from at a time; fewer are filled up.
    longest: tokens of the longest prompt there is, so that every batch has the same shape.
  """

  network: Network
  mesh: Mesh
  stops: Collection[int]
  rows: int
  longest: int
  max_new: int
  samples: int = 1
  temperature: float = 1.0
  top_p: float = 1.0
  seed: int = 0
  top_k: int = 0

  def __call__(
    self, variables: dict, prompts: Sequence[list[int]], numbers: Sequence[int], step: int
  ) -> list[list[Sample]]:
    """The samples of each prompt."""
    variables = gathered(self.network, variables, self.mesh)
    found: list[list[Sample]] = []
    for first in range(0, len(prompts), self.rows):
      part = slice(first, first + self.rows)
      found += self._batch(variables, prompts[part], numbers[part], step)
    return found

  def _batch(self, variables, prompts, numbers, step: int) -> list[list[Sample]]:
    filling = self.rows - len(prompts)
    with jax.set_mesh(self.mesh):
      rows, logprobs = generate.generate(
        self.network, variables, [*prompts, *[FILLING] * filling], max_new=self.max_new,
        eos_id=self.stops, temperature=self.temperature, top_p=self.top_p, samples=self.samples,
        seed=seed_of(self.seed, step), at_least=self.longest, numbers=[*numbers, *[0] * filling],
        with_logprobs=True, top_k=self.top_k,
      )  # fmt: skip
    each = [
      Sample(np.array(ids, np.int32), logs, ids[-1] in self.stops)
      for ids, logs in zip(rows, logprobs, strict=True)
    ]
    return [each[i : i + self.samples] for i in range(0, len(prompts) * self.samples, self.samples)]


def seed_of(seed: int, step: int) -> int:
  """The seed of a step's draws."""
  return int(np.random.SeedSequence((seed, step)).generate_state(1)[0] >> 1)


def gathered(network: Network, variables: dict, mesh: Mesh) -> dict:
  """The variables without sharding over `fsdp`, which would gather them for every token.

  They are in the dtypes that sampling reads, so a device holds all of them in half the memory.
  """
  if mesh.shape['fsdp'] == 1:
    return variables
  return gathering(network, variables)(variables)


def gathering(network: Network, variables: dict):
  """`gathered` as a compiled function of variables with these shardings."""
  leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, variables))
  return _gathering(network, tuple(leaves), structure)


@functools.lru_cache(maxsize=4)  # compiled once, not at each step
def _gathering(network: Network, leaves: tuple[NamedSharding, ...], structure):
  where = jax.tree.unflatten(structure, leaves)

  def cast(variables):
    # Before they travel: half as much does.
    return jax.lax.with_sharding_constraint(generate.narrow(network, variables), where)

  return jax.jit(cast, out_shardings=jax.tree.map(whole, where))


def whole(where: NamedSharding) -> NamedSharding:
  """A sharding without `fsdp`."""
  axes = (None if axis == 'fsdp' else axis for axis in where.spec)
  return NamedSharding(where.mesh, PartitionSpec(*axes))
