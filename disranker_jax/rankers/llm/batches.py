"""Answers prompts on the devices: label logits of packed rows, permutations, and texts.

All are `scheduler.Answering`. Each has one static shape, so it compiles once.
"""

import collections
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from disranker_jax.data.batches import Shape, join
from disranker_jax.data.contract_prompts import ContractPrompt
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.pool import Pool, bundled
from disranker_jax.devices import memory, sharding
from disranker_jax.errors import UserError
from disranker_jax.models.generate import PROMPT_MULTIPLE, generate
from disranker_jax.models.permutations import Permutations
from disranker_jax.rankers.pointwise import mean_logprob, predicted_per_row
from disranker_jax.rankers.work import Work


class LabelLogits:
  """The logits of the labels at the last position of each prompt: float32 [C].

  Prompts are packed into `rows` rows of `row_len` tokens. The formulas 'head' and 'likelihood' give
  one value instead: the score of the linear head, or the mean log-probability of the query.
  """

  def __init__(self, network, variables, prompt: ContractPrompt, mesh, rows: int, row_len: int):
    self._network, self._variables, self._mesh = network, variables, mesh
    self._formula, self._labels = prompt.contract.formula, tuple(prompt.label_ids)
    predicted = predicted_per_row('query', row_len) if self._formula == 'likelihood' else 0
    self.blocks = sharding.even_parts(mesh, rows)
    shares = network.shares(prompt.max_len)
    self.shape = Shape(rows, row_len, 1, predicted, shares).block(self.blocks)
    self._pool, self._capacity = Pool(self.shape), rows * row_len
    self._compiled, self.work = None, Work()

  def add(self, prompts: Sequence[Encoded], docs: Sequence[int], keys: Sequence[Any]) -> None:
    for bundle, numbers in bundled(prompts, self.shape):
      self._pool.add(bundle, [keys[i] for i in numbers])

  def __len__(self) -> int:
    return len(self._pool)

  @property
  def full(self) -> bool:
    """Twice as much as a batch: the pool has a choice of prompts that fill rows."""
    return self._pool.tokens >= 2 * self._capacity

  def begin(self) -> tuple:
    drawn = [self._pool.batch() for _ in range(self.blocks)]
    batch = join([block for _, block in drawn])
    placed = sharding.put_batch(batch, self._mesh, self.blocks)
    if self._compiled is None:  # compiling is not the devices' work
      self._compiled = self.lower(self._variables, placed).compile()
    begun, tokens = time.monotonic(), int((batch['segments_BT'] > 0).sum())
    logits = self._compiled(self._variables, placed)
    return [keys for keys, _ in drawn], begun, tokens, logits

  def end(self, batch: tuple) -> list[tuple[Any, np.ndarray]]:
    drawn, begun, tokens, logits = batch
    logits_AXC = np.asarray(logits)
    self.work.add(begun, time.monotonic(), tokens, self._capacity)
    found = [
      (key, logits_C)
      for keys, logits_XC in zip(drawn, logits_AXC, strict=True)
      for key, logits_C in zip(keys, logits_XC, strict=False)
    ]
    if not all(np.isfinite(logits_C).all() for _, logits_C in found):
      raise UserError('the model gives logits that are not finite; its parameters are broken')
    return found

  def needs(self) -> dict[str, int]:
    """Expected bytes per device, as for memory.limited."""
    held = {'parameters': memory.per_device(self._variables)}
    if self._compiled is None:
      return held
    peak = memory.peak(self._compiled.memory_analysis())
    return held | {'activations': max(0, peak - held['parameters'])}

  def lower(self, variables, batch):
    """The step, lowered, of arrays or shapes on the mesh."""
    return self.trace(variables, batch).lower()

  def trace(self, variables, batch):
    """The step, traced."""
    network, everywhere = self._network, NamedSharding(self._mesh, PartitionSpec())

    def step(variables, batch):
      hidden_BTD, index_AX = network.hidden(variables, batch), batch['index_AX']
      if self._formula == 'likelihood':
        return mean_logprob(network, variables, hidden_BTD, batch).reshape(*index_AX.shape, 1)
      if self._formula == 'head':
        return network.score_at(variables, hidden_BTD, batch).reshape(*index_AX.shape, 1)
      logits_PC = network.label_logits(variables, hidden_BTD, index_AX, self._labels)
      return logits_PC.reshape(*index_AX.shape, len(self._labels))

    with jax.set_mesh(self._mesh):
      return jax.jit(step, out_shardings=everywhere).trace(variables, batch)


class Decoded:
  """What permutations and texts share: prompts that wait, and batches of `rows` of them."""

  def __init__(self, network, variables, prompt: ContractPrompt, mesh, rows: int):
    self._network, self._variables, self._mesh, self._rows = network, variables, mesh, rows
    self._prompt_len = -(-prompt.max_len // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    self._waiting: collections.deque = collections.deque()
    self.work = Work()

  def add(self, prompts: Sequence[Encoded], docs: Sequence[int], keys: Sequence[Any]) -> None:
    for encoded, count, key in zip(prompts, docs, keys, strict=True):
      self._waiting.append((encoded.ids.tolist(), count, key))

  def __len__(self) -> int:
    return len(self._waiting)

  @property
  def full(self) -> bool:
    return len(self._waiting) >= self._rows

  def needs(self) -> dict[str, int]:
    return {'parameters': memory.per_device(self._variables)}

  def begin(self) -> tuple:
    count = min(self._rows, len(self._waiting))
    taken = [self._waiting.popleft() for _ in range(count)]
    begun = time.monotonic()
    # The rows that are left over get a prompt of one token.
    filling = [([0], 1)] * (self._rows - count)
    rows = [(ids, docs) for ids, docs, _ in taken] + filling
    with jax.set_mesh(self._mesh):
      return taken, begun, self._decode([ids for ids, _ in rows], [docs for _, docs in rows])

  def end(self, batch: tuple) -> list[tuple[Any, Any]]:
    taken, begun, answers = batch
    answers = np.asarray(answers) if isinstance(answers, jax.Array) else answers
    tokens = sum(len(ids) for ids, _, _ in taken)
    self.work.add(begun, time.monotonic(), tokens, self._rows * self._prompt_len)
    return [
      (key, self._answer(answer, docs))
      for (_, docs, key), answer in zip(taken, answers, strict=False)
    ]

  def _decode(self, prompts: list[list[int]], docs: list[int]) -> Any:
    raise NotImplementedError

  def _answer(self, answer: Any, docs: int) -> Any:
    raise NotImplementedError


class PermutedLabels(Decoded):
  """Permutations of the documents, decoded under constraints: a list of places, best first."""

  def __init__(self, network, variables, prompt: ContractPrompt, mesh, rows: int):
    super().__init__(network, variables, prompt, mesh, rows)
    labels, between = tuple(prompt.label_ids), tuple(prompt.separator_ids)
    self._permute = Permutations(network, labels, between, self._prompt_len)

  def _decode(self, prompts: list[list[int]], docs: list[int]) -> jax.Array:
    return self._permute(self._variables, prompts, docs)

  def _answer(self, answer: np.ndarray, docs: int) -> list[int]:
    return answer[:docs].tolist()


class Texts(Decoded):
  """What the model writes after the prompt, greedily, up to its end token."""

  def __init__(self, network, variables, prompt: ContractPrompt, mesh, rows: int):
    super().__init__(network, variables, prompt, mesh, rows)
    self._tokenizer = prompt.tokenizer
    names = ' > '.join(f'[{label.strip()}]' for label in prompt.contract.labels[: prompt.docs])
    # A little more than a perfect answer needs.
    self._most = 8 + len(self._tokenizer.encode(names, add_special_tokens=False)) * 5 // 4
    self._ends = {self._tokenizer.eos_token_id, *network.end_ids} - {None}

  def _decode(self, prompts: list[list[int]], docs: list[int]) -> list[list[int]]:
    return generate(
      self._network, self._variables, prompts, max_new=self._most, eos_id=self._ends,
      at_least=self._prompt_len,
    )  # fmt: skip

  def _answer(self, answer: list[int], docs: int) -> str:
    return self._tokenizer.decode(answer, skip_special_tokens=True)
