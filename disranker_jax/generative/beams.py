"""Beam search that writes n-grams of a collection only; the loop over tokens runs on the device.

The collection decides what may follow, the model which of it is best: a score is the sum of
log-probabilities in the whole vocabulary. Source: SEAL (arXiv:2204.10628), MINDER
(arXiv:2305.16675).
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from disranker_jax.devices import memory, sharding
from disranker_jax.errors import UserError
from disranker_jax.generative import decoding, frontier
from disranker_jax.generative.decoding import Plan, View
from disranker_jax.generative.frontier import Rows, Widths
from disranker_jax.generative.records import Ngram
from disranker_jax.generative.suffixes import Suffixes
from disranker_jax.models import generate, layers
from disranker_jax.models.network import Network

ANCHORS = 2  # symbols of an index text above the vocabulary's
MODEL = 'model'  # the mesh axis over which the parts of an index are sharded
# What makes the index on a device smaller.
SHARDED = (
  'raise config.mesh.model if there are more devices (it divides the documents of the index among '
  'them), or index fewer pseudo-queries with config.index.queries and --rerun=index'
)


@dataclasses.dataclass(frozen=True)
class Written:
  """What the model writes for a prompt.

  ngrams    all that were found, best first
  unigrams  (token, log-probability) of the likeliest first tokens, best first; of `View.unigrams`
  """

  ngrams: list[Ngram]
  unigrams: list[tuple[int, float]]


class Searcher:
  """Writes n-grams of a collection for prompts, in batches of `rows` prompts.

  Batches are always full and of one shape, so that what a prompt gets does not depend on others.
  Of several processes all make the same calls and get the same results.

  variables   on the mesh; with or without LoRA
  suffixes    of the whole collection, or its parts from `Suffixes.split`, which are sharded over
              the mesh's model axis if it divides them; rows are always those of the whole
  end         the token that ends titles, texts and pseudo-queries
  prompt_len  tokens of the longest prompt
  """

  def __init__(
    self,
    network: Network,
    variables: dict,
    suffixes: Suffixes | Sequence[Suffixes],
    views: Sequence[View],
    end: int,
    mesh: jax.sharding.Mesh,
    rows: int,
    prompt_len: int,
  ):
    parts = [suffixes] if isinstance(suffixes, Suffixes) else list(suffixes)
    generate.check_writes(network)
    _check(network, parts, views, end, mesh, rows, prompt_len)
    self.network, self.variables, self.mesh, self.rows = network, variables, mesh, rows
    self.prompt_len = prompt_len
    prompt = generate.padded_len(prompt_len)
    self.plans = {v.name: _plan(network, parts, v, end, prompt) for v in views}
    slack = max(max(plan.first.heavy, plan.later.heavy) for plan in self.plans.values())
    spec = P(MODEL) if len(parts) > 1 and len(parts) % mesh.shape[MODEL] == 0 else P()
    where = NamedSharding(mesh, spec)

    def place(tree):
      return jax.tree.map(lambda x: sharding.place(x, where), tree)

    stacked = frontier.stack(parts, slack)
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), stacked)

    def needed() -> dict[str, int]:
      return {'parameters': memory.per_device(variables), 'index': memory.per_device(whole)}

    with memory.limited('retrieval: the index', needed, SHARDED):
      self.index = jax.block_until_ready(place(stacked))
    self.starts = {v.name: place(_start(parts, v)) for v in views}

  def __call__(self, view: str, prompts: Sequence[Sequence[int]]) -> list[Written]:
    """What the model writes in a view, by name, for each prompt's token ids.

    Raises: UserError for empty and too long prompts, and for a model whose scores are no numbers.
    """
    for number, prompt in enumerate(prompts):
      if not 0 < len(prompt) <= self.prompt_len:
        raise UserError(
          f'prompt {number} has {len(prompt)} tokens, and the search is made for 1 to '
          f'{self.prompt_len}; cut the query or raise prompt_len'
        )
    out = []
    for begin in range(0, len(prompts), self.rows):
      batch = [list(prompt) for prompt in prompts[begin : begin + self.rows]]
      filled = batch + [[0]] * (self.rows - len(batch))
      arrays = self.run(view, filled)
      out += _written(self.plans[view], arrays, len(batch))
    return out

  def run(self, view: str, prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """The arrays of one full batch; see `decoding.search`."""
    plan = self.plans[view]
    beams = plan.view.beams
    tokens_BT, segments_BT = generate.left_pad(prompts, plan.prompt)
    with jax.set_mesh(self.mesh):
      last_RD, caches = generate.prefill(
        self.network, plan.slots, beams, self.variables, tokens_BT, segments_BT
      )
      segments_RS = generate.with_room(np.repeat(segments_BT, beams, axis=0), plan.slots)
      arrays, _ = decoding.search(
        self.network, plan, self.variables, self.index, self.starts[view], caches,
        last_RD[::beams], segments_RS,
      )  # fmt: skip
    return {name: sharding.on_host(x) for name, x in arrays.items()}

  def needs(self) -> dict[str, int]:
    """Bytes on each device: parameters, the index, and the cache of the view with the largest."""
    c = self.network.config
    slot = 2 * c.layers * c.kv_heads * c.head_dim
    slot *= np.dtype(layers.operand_dtype(self.network.precision)).itemsize
    rows = self.rows // sharding.parts(self.mesh)
    return {
      'parameters': memory.per_device(self.variables),
      'index': memory.per_device(self.index),
      'cache': max(plan.slots * plan.view.beams for plan in self.plans.values()) * rows * slot,
    }


def _check(network, parts, views, end, mesh, rows, prompt_len):
  """Raises: UserError for what does not go together."""
  vocab = network.config.vocab
  if {part.symbols for part in parts} != {vocab + ANCHORS}:
    raise UserError(
      f'the index has the tokens of a vocabulary of {parts[0].symbols - ANCHORS}, and the model '
      f'{vocab}; make the index with the tokenizer of this model'
    )
  if not isinstance(end, int) or not 0 <= end < vocab:
    raise UserError(f'end={end!r} is not a token of the model, which has {vocab}')
  if rows < 1 or rows % sharding.parts(mesh):
    raise UserError(
      f'{rows} queries at a time: must be a multiple of mesh data x fsdp = {sharding.parts(mesh)}'
    )
  longest = network.family.max_len(network.config)
  for view in views:
    name = f'view {view.name!r}'
    if view.length < 1 or view.beams < 1:
      raise UserError(f'{name}: length={view.length}, beams={view.beams}: both must be at least 1')
    depth = min(part.depth for part in parts)
    if len(view.start) + view.length > depth:
      raise UserError(
        f'{name}: n-grams of {len(view.start) + view.length} tokens, and the index is sorted by '
        f'{depth}; build it with a larger depth, or write less'
      )
    if prompt_len < 1 or prompt_len + view.length > longest:
      raise UserError(
        f'{name}: prompts of {prompt_len} tokens with {view.length} written ones, and the model '
        f'reads 1 to {longest}; cut the query or write less'
      )
    if not any(np.subtract(*part.interval(view.start)) for part in parts):
      raise UserError(
        f'{name}: no page of the collection has one; leave the view out, or make the index with it'
      )


def _plan(network, parts, view, end, prompt) -> Plan:
  sizes = [frontier.widest(p, view.start, end, network.config.vocab, view.length) for p in parts]
  first, later = (max(column) for column in zip(*sizes, strict=True))
  light = min(parts[0].window, max(map(len, parts)))
  starts_light = any(size == 0 for size, _ in sizes)
  return Plan(view, end, prompt, Widths(light if starts_light else 0, first), Widths(light, later))


def _start(parts, view) -> Rows:
  """The rows of what is given, [S] each."""
  rows = [(*part.interval(view.start), part.number(view.start)) for part in parts]
  return Rows(*np.array(rows, np.int32).T)


def _written(plan: Plan, arrays: dict[str, np.ndarray], count: int) -> list[Written]:
  """The results of the first `count` prompts of a batch."""
  if any(np.isnan(x).any() for x in (arrays['score'], arrays.get('end_score', np.zeros(1)))):
    raise UserError(
      "the model's log-probabilities are not numbers: its parameters are damaged, or precision is "
      'too low'
    )
  return [_of_prompt(plan, {k: x[..., b, :] for k, x in arrays.items()}) for b in range(count)]


def _of_prompt(plan: Plan, arrays: dict[str, np.ndarray]) -> Written:
  """The results of one prompt from its arrays [length, M]."""
  view, ngrams = plan.view, []

  def add(tokens, score, lo, hi):
    if np.isfinite(score):
      ngrams.append(Ngram(view.name, tokens, float(score), int(lo), int(hi)))

  before = [()] * view.beams
  for number in range(view.length):
    row = {k: x[number] for k, x in arrays.items() if not k.startswith('unigram')}
    if view.anchor is not None:
      for beam, tokens in enumerate(before):
        ended = (row[f'end_{name}'][beam] for name in ('score', 'lo', 'hi'))
        add((*tokens, plan.end), *ended)
    pairs = zip(row['parent'].tolist(), row['token'].tolist(), strict=True)
    before = [(*before[parent], token) for parent, token in pairs]
    if view.anchor is None:
      for tokens, *values in zip(before, row['score'], row['lo'], row['hi'], strict=True):
        add(tokens, *values)
  ngrams.sort(key=lambda ngram: (-ngram.logprob, ngram.tokens))
  pairs = zip(arrays.get('unigram', ()), arrays.get('unigram_score', ()), strict=True)
  return Written(ngrams, [(int(t), float(s)) for t, s in pairs if np.isfinite(s)])
