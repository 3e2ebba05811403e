"""The batches of GRPO: a group is a prompt, its documents are samples of the policy.

A row holds a prompt once and as many samples of it as fit, which attend to it. Every batch has all
samples of its prompts that are learned from, so they are not packed by length: a shorter one leaves
padding at the end of its row. More keys of a batch than in data/batches.py:
  advantages_GN   float32, what a sample is learned by
  truncated_GN    float32, 1 where a sample was cut off at max_new
  NAME_GN         float32, one for each of FACTS and of the reward's terms, for the logs
  sampled_AP      float32, log-probability of each predicted token when it was sampled
  reference_AP    float32, the same under the policy of the start, where it is needed
  old_AP          float32, the same before the first update, where a batch is used for several
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from disranker_jax.data import batches
from disranker_jax.data.batches import EncodedGroup, Place
from disranker_jax.data.encoded import Encoded
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import attention_choice
from disranker_jax.models.network import Network
from disranker_jax.rewriting.facts import FACTS
from disranker_jax.rewriting.rewards import parse
from disranker_jax.rewriting.sampling import Sample

LEARNED = ('advantages', 'truncated')  # of each sample
MULTIPLE = 8  # of the length of a row


@dataclasses.dataclass(frozen=True)
class Shape(batches.Shape):
  """The static shape of a block of rollouts: `prompts` groups of `docs` samples.

  Every prompt has the same number of rows, one after the other.
  """

  prompts: int = 1
  per_row: int = 1  # samples of a row, all of one prompt
  longest: int = 0  # tokens of a prompt
  new: int = 0  # tokens of a sample
  values: tuple[str, ...] = (*LEARNED, *FACTS)
  of_tokens: tuple[str, ...] = ('sampled_AP',)  # the arrays of log-probabilities

  @property
  def groups(self) -> int:
    return self.prompts

  @property
  def facts(self) -> tuple[str, ...]:
    """The names of what is known of a query's samples."""
    return self.values[len(LEARNED) :]

  def block(self, blocks: int) -> 'Shape':
    if self.prompts % blocks:
      raise UserError(
        f'prompts={self.prompts} of a micro-batch must be a multiple of data_shards={blocks}'
      )
    return dataclasses.replace(self, rows=self.rows // blocks, prompts=self.prompts // blocks)

  def on(self, parts: int) -> 'Shape':
    """The shape with as few more rows as so many parts can share; rows may stay empty."""
    rows = self.rows // self.prompts
    while self.prompts * rows % parts:
      rows += 1
    return self.with_rows(rows)

  def with_rows(self, rows: int) -> 'Shape':
    """The shape whose prompts have so many rows each, of as few samples as there can be."""
    per_row = math.ceil(self.docs / rows)
    return dataclasses.replace(
      self, rows=self.prompts * rows, per_row=per_row, predicted=per_row * self.new,
      row_len=-(-(self.longest + per_row * self.new) // MULTIPLE) * MULTIPLE, shares=per_row > 1,
    )  # fmt: skip

  def zeros(self, blocks: int = 1) -> dict[str, np.ndarray]:
    batch = super().zeros(blocks)
    tokens = np.zeros(batch['owner_AP'].shape, np.float32)
    return batch | {name: tokens.copy() for name in self.of_tokens}


def shape_of(c, network: Network, longest: int, row_len: int, mesh=None) -> Shape:
  """The shape of a micro-batch.

  Args:
    c: the section `rewrite` of the config.
    longest: tokens of the longest prompt.
    row_len: the most tokens of a row.
    mesh: where it is computed; None: not known.
  """
  most = 1
  if shares(network, longest + c.max_new, mesh):
    most = max(1, min(c.samples, (row_len - longest) // c.max_new))
  per_row = math.ceil(c.samples / math.ceil(c.samples / most))
  prompts = c.prompts // c.gradient_accumulation_steps
  used = ('sampled_AP', *(['reference_AP'] if has_reference(c) else []))
  shape = Shape(
    rows=0,
    row_len=0,
    docs=c.samples,
    prompts=prompts,
    longest=longest,
    new=c.max_new,
    values=(*LEARNED, *FACTS, *(f'reward_{name}' for name in parse(c.reward))),
    of_tokens=(*used, 'old_AP') if c.iterations > 1 else used,
  ).with_rows(math.ceil(c.samples / per_row))
  return shape if mesh is None else shape.on(sharding.parts(mesh))


def has_reference(c) -> bool:
  """Whether the policy of the start is needed."""
  return bool(c.beta or c.stop_kl)


def shares(network: Network, longest: int, mesh=None) -> bool:
  """Whether samples can share their prompt in a row, with a gradient."""
  kernel = network.attention
  if kernel == 'auto' and mesh is not None:
    where = attention_choice.device_of(mesh)
    kernel, _ = attention_choice.choose(kernel, where, network.precision, network.config.head_dim)
  # Splash's attention to the prompt's segment has no gradient.
  return network.shares(longest) and not kernel.startswith('splash')


def block_of(
  prompts: Sequence[list[int]], names: Sequence[str], record: Mapping[str, np.ndarray], shape: Shape
) -> dict[str, np.ndarray]:
  """A block without `reference_AP` and `old_AP`.

  Args:
    prompts, names: of the groups.
    record: of all samples in order: `tokens_of`, advantages_S, truncated_S, facts_SF.
  """
  ids_SN, lengths_S = record['ids_SN'], record['lengths_S']
  groups, places = [], []
  for g, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
    mine = slice(g * shape.docs, (g + 1) * shape.docs)
    rows = zip(ids_SN[mine], lengths_S[mine], strict=True)
    docs = [joined(prompt, ids[:length]) for ids, length in rows]
    values = {known: record[f'{known}_S'][mine] for known in LEARNED}
    values |= dict(zip(shape.facts, record['facts_SF'][mine].T, strict=True))
    nothing = np.zeros(len(docs), np.float32)
    groups.append(EncodedGroup(docs, nothing, nothing, name, values))
    places += placed(docs, len(prompt), g, shape)
  block = shape.zeros() | batches.lay_out(groups, places, shape)
  real_SN = np.arange(ids_SN.shape[1]) < lengths_S[:, None]
  block['sampled_AP'][0, : real_SN.sum()] = record['logprobs_SN'][real_SN]
  return block


def tokens_of(drawn: Sequence[Sequence[Sample]], most: int) -> dict[str, np.ndarray]:
  """The tokens of all samples, [G, S, ...]."""
  ids_GSN = np.zeros((len(drawn), len(drawn[0]), most), np.int32)
  logprobs_GSN = np.zeros(ids_GSN.shape, np.float32)
  for g, group in enumerate(drawn):
    for s, sample in enumerate(group):
      ids_GSN[g, s, : len(sample.ids)] = sample.ids
      logprobs_GSN[g, s, : len(sample.ids)] = sample.logprobs
  lengths = [[len(sample.ids) for sample in group] for group in drawn]
  return {
    'ids_SN': ids_GSN, 'logprobs_SN': logprobs_GSN, 'lengths_S': np.array(lengths, np.int32)
  }  # fmt: skip


def joined(prompt: list[int], completion: np.ndarray) -> Encoded:
  """The text of a sample; the completion is predicted, with the end token if it has one."""
  ids = np.array([*prompt, *completion], np.int32)
  return Encoded(ids, np.zeros_like(ids), len(ids) - 1, (len(prompt), len(ids)))


def placed(docs: Sequence[Encoded], prompt: int, group: int, shape: Shape) -> list[Place]:
  """Where the samples of a prompt of `prompt` tokens are, in the rows of the group."""
  rows = shape.rows // shape.prompts
  shared, places, start = prompt if shape.shares else 0, [], 0
  for n, doc in enumerate(docs):
    row, place = divmod(n, shape.per_row)
    start = shared if place == 0 else start
    places.append(Place(group * rows + row, start, shared, 0))
    start += len(doc) - shared
  return places
