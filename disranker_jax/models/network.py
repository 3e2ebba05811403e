"""A model as the stages use it: tokens in, document scores or token log-probabilities out."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, tensors
from disranker_jax.models.attention import Tree
from disranker_jax.models.attention_choice import check_kernel
from disranker_jax.models.layers import activation_dtype, constrain
from disranker_jax.models.pooling import POOLINGS, pick

LOGPROB_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Network:
  """A network and how to run it; holds no arrays, is hashable and static under jit.

  variables  {'params': tree} and, with `lora_rank` > 0, 'lora': tree, both plain nested dicts
  batch      the arrays of `family.inputs`: tokens_BT, segments_BT (0 = padding), positions_BT
             (start at 0 in each segment), and types_BT where the family has token types; for
             scores also mask_GN and index_AX, the position in the block's flattened rows of each
             document's scored token (the last one for a decoder, [CLS] for an encoder; 0 if absent)
  head       one of `family.heads`: 'rank' for a scalar score, 'lm' for next-token
             log-probabilities, 'both'
  """

  config: families.Config
  precision: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0
  remat: str = 'none'
  head: str = 'rank'
  scan: bool = True
  attention: str = 'xla'
  sequence: bool = False
  share_prefixes: bool = True  # where it can, see `shares`
  states: bool = False  # `hidden` gives all layers, embeddings first: [L + 1, B, T, D]

  def __post_init__(self):
    activation_dtype(self.precision)
    check_kernel(self.attention)
    family = self.family
    if self.head not in family.heads:
      raise UserError(
        f'head {self.head!r}: a {self.config.model_type} model has only {", ".join(family.heads)}'
      )
    if self.states and not family.layer_states:
      raise UserError(f'a {self.config.model_type} model does not return hidden states of layers')

  @property
  def family(self) -> families.Family:
    return families.find(self.config.model_type)

  @property
  def causal(self) -> bool:
    """Whether positions attend to earlier ones only."""
    return self.family.is_causal(self.config)

  @property
  def module(self) -> nn.Module:
    """The Flax module; parameters live outside it."""
    return self.family.module(
      self.config,
      head=self.head,
      states=self.states,
      precision=self.precision,
      lora_rank=self.lora_rank,
      lora_alpha=self.lora_alpha,
      remat=self.remat,
      scan=self.scan,
      attention=self.attention,
      sequence=self.sequence,
    )

  @property
  def end_ids(self) -> tuple[int, ...]:
    """The tokens that end a text by the model's config.json; a tokenizer may know another one."""
    found = getattr(self.config, 'eos_id', None)
    found = found if isinstance(found, tuple | list) else (found,)
    return tuple(i for i in found if i is not None)

  def init(self, key: jax.Array) -> dict:
    """Random variables; under jit with out_shardings they are created sharded.

    Compiled as one program, which drops the forward pass that Flax creates parameters by.
    """
    zeros_BT = jnp.zeros((1, 2), jnp.int32)
    # Shapes of parameters are also needed where the attention kernel cannot run. A loop over the
    # layers has the same parameters as unrolled ones and compiles in half the time.
    module = dataclasses.replace(self, attention='xla', states=False, scan=True).module
    init = functools.partial(module.init, method='everything')
    return dict(jax.jit(init)(key, *(zeros_BT for _ in self.family.inputs)))

  def shapes(self) -> dict:
    """The shapes of `init`'s variables; treat them as read-only, because they are cached."""
    return _shapes(self)

  def shares(self, longest: int) -> bool:
    """Whether texts of up to `longest` tokens can share their first tokens in a row.

    A layer with a shorter window would have to tell how far tokens are apart, which positions in
    the row no longer say.
    """
    windows = [kind.window for kind in getattr(self.config, 'kinds', ()) if kind.window]
    whole = self.causal and self.family.pooling(self.config) == 'token'
    return self.share_prefixes and whole and longest <= min(windows, default=longest)

  def hidden(self, variables: dict, batch: dict) -> jax.Array:
    """Final hidden states [B, T, D] in activation dtype; with `states` those of all layers."""
    if offset := self.family.position_offset(self.config):
      batch = batch | {'positions_BT': batch['positions_BT'] + offset}
    if 'parents_BT' in batch:
      tree = Tree(batch['segments_BT'], batch['parents_BT'])
      batch = batch | {'segments_BT': tree}
    return self.module.apply(variables, *(batch[key] for key in self.family.inputs))

  def score_at(self, variables: dict, hidden_BTD: jax.Array, batch: dict) -> jax.Array:
    """Scores [A * X] fp32 of the documents of a batch, from the batch's hidden states."""
    pooled_AXD = POOLINGS[self.family.pooling(self.config)](hidden_BTD, batch)
    pooled_PD = pooled_AXD.reshape(-1, hidden_BTD.shape[-1])
    return self.module.apply(variables, pooled_PD, method='score')

  def scores(self, variables: dict, batch: dict) -> jax.Array:
    """Relevance scores [G, N] fp32, 0 where mask_GN is False."""
    scores_P = self.score_at(variables, self.hidden(variables, batch), batch)
    return jnp.where(batch['mask_GN'], scores_P.reshape(batch['mask_GN'].shape), 0.0)

  def label_logits(
    self,
    variables: dict,
    hidden_BTD: jax.Array,
    index_AX: jax.Array,
    label_ids_C: Sequence[int],
  ) -> jax.Array:
    """Next-token logits [A * X, C] fp32 of a few tokens at positions of blocks.

    Only the rows of these tokens are taken from the vocabulary's table, and the sums are fp32
    under every precision, because scores are differences of logits that are close together.
    """
    name, leaf = self.family.logits_path(self.config).split('/')
    table = variables['params'][name][leaf]
    ids_C = jnp.asarray(label_ids_C, jnp.int32)
    rows_CD = jnp.take(table, ids_C, axis=0) if self.config.tied else jnp.take(table, ids_C, 1).T
    picked_PD = pick(hidden_BTD, index_AX).reshape(-1, hidden_BTD.shape[-1])
    return jnp.einsum(
      'pd,cd->pc', picked_PD.astype(jnp.float32), rows_CD.astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip

  def logprobs(
    self,
    variables: dict,
    hidden_BTD: jax.Array,
    index_AP: jax.Array,
    targets_AP: jax.Array,
    real_AP: jax.Array,
    temperature: float = 1.0,
  ) -> jax.Array:
    """Log-probabilities [A, P] fp32 of targets at positions of blocks, without holding [P, V].

    They are those of softmax(logits / temperature). The softmax runs over chunks of positions,
    which the backward pass recomputes. Padding up to P (`real_AP` False) gives 0; it is at the end
    of each block, and chunks of padding are skipped.
    """
    blocks, count = index_AP.shape
    chunk = logprob_chunk(blocks, count)
    padding = -count % chunk

    def chunks(x_AP):
      return jnp.pad(x_AP, ((0, 0), (0, padding))).reshape(blocks, -1, chunk).swapaxes(0, 1)

    def of_chunk(head, hidden_BTD, index_AC, targets_AC):
      hidden_PD = constrain(pick(hidden_BTD, index_AC).reshape(-1, hidden_BTD.shape[-1]))
      logits_PV = self.module.apply(head, hidden_PD, method='logits') / temperature
      chosen_P = jnp.take_along_axis(logits_PV, targets_AC.reshape(-1, 1), axis=-1)[:, 0]
      return (chosen_P - jax.nn.logsumexp(logits_PV, axis=-1)).reshape(index_AC.shape)

    def one_chunk(arrays):
      index_AC, targets_AC, real_AC = arrays
      return unless_empty(of_chunk, real_AC.any(), (head, hidden_BTD), (index_AC, targets_AC))

    head = self.vocabulary(variables)
    with jax.named_scope('logprobs'):
      out = jax.lax.map(one_chunk, (chunks(index_AP), chunks(targets_AP), chunks(real_AP)))
    out_AP = out.swapaxes(0, 1).reshape(blocks, -1)[:, :count]
    return jnp.where(real_AP, out_AP, 0.0)

  def vocabulary(self, variables: dict) -> dict:
    """The variables that the module's `logits` needs."""
    name, _ = self.family.logits_path(self.config).split('/')
    return {'params': {name: variables['params'][name]}}

  def merge_lora(self, params: dict, lora: dict) -> dict:
    """The base params with the low-rank updates added to their kernels: the tree without LoRA."""
    if 'lora_a' in lora:
      delta = jnp.einsum(
        '...ir,...ro->...io', lora['lora_a'], lora['lora_b'], precision=jax.lax.Precision.HIGHEST
      )
      return {**params, 'kernel': params['kernel'] + delta * (self.lora_alpha / self.lora_rank)}
    return params | {name: self.merge_lora(params[name], lora[name]) for name in lora}

  def count_params(self) -> int:
    """The number of base parameters that a file of the model has, without LoRA."""
    return sum(math.prod(row.shape) for row in tensors.rows_of(self).values())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def unless_empty(f, some, inexact, exact):
  """f(*inexact, *exact), or zeros where `some` is False; computed again in the backward pass.

  `exact` are integers, which have no gradient. It has its own gradient because autodiff of `cond`
  copies the operands, here the vocabulary's table, from the forward to the backward pass.
  """
  like = jax.eval_shape(f, *inexact, *exact)
  none = lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)  # noqa: E731
  return jax.lax.cond(some, f, none, *inexact, *exact)


def _unless_empty_fwd(f, some, inexact, exact):
  return unless_empty(f, some, inexact, exact), (some, inexact, exact)


def _unless_empty_bwd(f, residuals, grad):
  some, inexact, exact = residuals

  def back(grad, *args):
    point, rest = args[: len(inexact)], args[len(inexact) :]
    return jax.vjp(lambda *x: f(*x, *rest), *point)[1](grad)

  return None, unless_empty(back, some, (grad, *inexact), exact), None


unless_empty.defvjp(_unless_empty_fwd, _unless_empty_bwd)


def logprob_chunk(blocks: int, count: int) -> int:
  """How many of a block's `count` positions have their logits in memory at once.

  More if there are several blocks, and so several devices: they exchange the vocabulary's table
  and its gradient for each chunk.
  """
  return max(1, min(count, LOGPROB_CHUNK if blocks == 1 else 2 * LOGPROB_CHUNK))


@functools.lru_cache(maxsize=64)  # tracing a network takes tenths of a second
def _shapes(network: Network) -> dict:
  # The key is made inside, because an array would start a backend.
  seed = jax.ShapeDtypeStruct((), jnp.uint32)
  return jax.eval_shape(lambda seed: network.init(jax.random.key(seed)), seed)


def from_hf(
  folder: str | pathlib.Path,
  *,
  layers: Sequence[int] | None = None,
  bidirectional: bool = False,
  pooling: str = '',
  **options,
) -> Network:
  """The network of a Hugging Face model folder; `options` are fields of Network.

  `layers` lists the folder's layers that a shallow student keeps. `bidirectional` and `pooling`
  change a decoder; without them it is what the folder says.

  Raises: UserError for a model that is not supported, and for layers that it does not have.
  """
  config = hf.open_config(folder)
  family = families.find(config.model_type)
  if (bidirectional or pooling) and 'lm' not in family.heads:
    raise UserError(
      f'{folder}: bidirectional and pooling are for decoders, and it is a {config.model_type} '
      'model; leave them out'
    )
  if bidirectional and not family.can_be_bidirectional:
    raise UserError(
      f'{folder}: bidirectional is not supported for {config.model_type}; take another decoder'
    )
  if bidirectional:
    config = family.bidirectional(config)
  if pooling:
    config = dataclasses.replace(config, pooling=pooling)
  if layers is not None:
    wrong = [i for i in layers if not 0 <= i < config.layers]
    if wrong or not layers or len(set(layers)) < len(layers):
      raise UserError(
        f'layers={list(layers)}: {folder} has the layers 0 to {config.layers - 1}; name different '
        'ones of them, or () for all'
      )
    config = family.take(config, layers)
  return Network(config, **options)
