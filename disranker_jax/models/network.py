"""What the stages see of a model: tokens in, document scores or token log-probabilities out."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.models import hf
from disranker_jax.models.attention import check_kernel
from disranker_jax.models.decoder import Decoder, DecoderConfig
from disranker_jax.models.encoder import Encoder, EncoderConfig
from disranker_jax.models.layers import activation_dtype, constrain

LOGPROB_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Network:
  """A network and how to run it; holds no arrays, hashable, static under jit.

  variables  {'params': tree} and, with `lora_rank` > 0, 'lora': tree, both plain nested dicts
  batch      tokens_BT, segments_BT (0 = padding), positions_BT (restart in each segment), for an
             encoder types_BT, and for scores index_AX (where in its block's flattened rows a
             document's last real token is, for an encoder its [CLS]; 0 where absent), mask_GN
  head       'rank' for a scalar score; decoders also 'lm' for next-token log-probabilities, 'both'
  """

  config: DecoderConfig | EncoderConfig
  precision: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0
  remat: str = 'none'
  head: str = 'rank'
  scan: bool = True
  attention: str = 'xla'
  sequence: bool = False
  states: bool = False  # an encoder's `hidden` has all layers', embeddings first: [L + 1, B, T, D]

  def __post_init__(self):
    activation_dtype(self.precision)
    check_kernel(self.attention)
    if self.head not in (('rank', 'lm', 'both') if self.is_decoder else ('rank',)):
      raise UserError(f"head {self.head!r} is unknown: 'rank'; or 'lm', 'both' for a decoder")

  @property
  def is_decoder(self):
    return isinstance(self.config, DecoderConfig)

  @property
  def module(self):
    """The Flax module; parameters live outside it."""
    options = {
      'precision': self.precision,
      'lora_rank': self.lora_rank,
      'lora_alpha': self.lora_alpha,
      'remat': self.remat,
      'scan': self.scan,
      'attention': self.attention,
      'sequence': self.sequence,
    }
    if self.is_decoder:
      return Decoder(self.config, head=self.head, **options)
    return Encoder(self.config, states=self.states, **options)

  def init(self, key):
    """Random variables; run it under jit with out_shardings to have them born sharded.

    Compiled as one program, which leaves out the forward pass that Flax makes them by.
    """
    zeros_BT = jnp.zeros((1, 2), jnp.int32)
    arrays = (zeros_BT,) * (3 if self.is_decoder else 4)
    # Shapes of parameters are also asked for where the kernel cannot run.
    module = dataclasses.replace(self, attention='xla', states=False).module
    init = functools.partial(module.init, method='everything')
    return dict(jax.jit(init)(key, *arrays))

  def hidden(self, variables, batch):
    """Final hidden states [B, T, D] in activation dtype."""
    keys = ('tokens_BT', 'segments_BT', 'positions_BT', *(() if self.is_decoder else ('types_BT',)))
    return self.module.apply(variables, *(batch[key] for key in keys))

  def score_at(self, variables, hidden_BTD, index_AX):
    """Scores [A * X] fp32 of the hidden states at positions of blocks."""
    picked_PD = pick(hidden_BTD, index_AX).reshape(-1, hidden_BTD.shape[-1])
    return self.module.apply(variables, picked_PD, method='score')

  def scores(self, variables, batch):
    """Relevance scores [G, N] fp32, 0 where mask_GN is False."""
    scores_P = self.score_at(variables, self.hidden(variables, batch), batch['index_AX'])
    return jnp.where(batch['mask_GN'], scores_P.reshape(batch['mask_GN'].shape), 0.0)

  def logprobs(self, variables, hidden_BTD, index_AP, targets_AP, real_AP):
    """Log-probabilities [A, P] fp32 of targets at positions of blocks, without holding [P, V].

    Softmax runs over chunks of positions of every block that are recomputed in the backward pass.
    Positions that only fill up P (`real_AP` False) give 0; they are at the blocks' ends, and chunks
    of nothing else are skipped.
    """
    blocks, count = index_AP.shape
    chunk = logprob_chunk(blocks, count)
    padding = -count % chunk

    def chunks(x_AP):
      return jnp.pad(x_AP, ((0, 0), (0, padding))).reshape(blocks, -1, chunk).swapaxes(0, 1)

    def of_chunk(head, hidden_BTD, index_AC, targets_AC):
      hidden_PD = constrain(pick(hidden_BTD, index_AC).reshape(-1, hidden_BTD.shape[-1]))
      logits_PV = self.module.apply(head, hidden_PD, method='logits')
      chosen_P = jnp.take_along_axis(logits_PV, targets_AC.reshape(-1, 1), axis=-1)[:, 0]
      return (chosen_P - jax.nn.logsumexp(logits_PV, axis=-1)).reshape(index_AC.shape)

    def one_chunk(arrays):
      index_AC, targets_AC, real_AC = arrays
      return unless_empty(of_chunk, real_AC.any(), (head, hidden_BTD), (index_AC, targets_AC))

    name = 'embed' if self.config.tied else 'lm_head'
    head = {'params': {name: variables['params'][name]}}
    with jax.named_scope('logprobs'):
      out = jax.lax.map(one_chunk, (chunks(index_AP), chunks(targets_AP), chunks(real_AP)))
    out_AP = out.swapaxes(0, 1).reshape(blocks, -1)[:, :count]
    return jnp.where(real_AP, out_AP, 0.0)

  def merge_lora(self, params, lora):
    """Base params with the low-rank updates added to their kernels (the tree without LoRA)."""
    if 'lora_a' in lora:
      delta = jnp.einsum(
        '...ir,...ro->...io', lora['lora_a'], lora['lora_b'], precision=jax.lax.Precision.HIGHEST
      )
      return {**params, 'kernel': params['kernel'] + delta * (self.lora_alpha / self.lora_rank)}
    return params | {name: self.merge_lora(params[name], lora[name]) for name in lora}

  def count_params(self):
    """How many values the base parameters hold, without LoRA."""
    shapes = jax.eval_shape(self.init, jax.random.key(0))['params']
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def unless_empty(f, some, inexact, exact):
  """f(*inexact, *exact), or zeros where `some` is False; computed again in the backward pass.

  `exact` are integers, which have no gradient. Own gradients because autodiff of `cond` hands its
  operands from one pass to the other as copies, here of the vocabulary's table.
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


def logprob_chunk(blocks, count):
  """Of `count` positions of a block, how many have their logits held at once.

  More where there are several blocks, hence devices: for each chunk they send each other the
  vocabulary's table, and its gradient.
  """
  return max(1, min(count, LOGPROB_CHUNK if blocks == 1 else 2 * LOGPROB_CHUNK))


def pick(hidden_BTD, index_AX):
  """Hidden states [A, X, D] at positions of each block's flattened rows.

  A gather inside blocks, so that a device that holds whole blocks asks no other for its rows.
  """
  blocks, width = index_AX.shape[0], hidden_BTD.shape[-1]
  hidden_AYD = hidden_BTD.reshape(blocks, -1, width)
  return jnp.take_along_axis(hidden_AYD, index_AX[:, :, None], axis=1)


def from_hf(
  folder,
  *,
  precision='float32',
  lora_rank=0,
  lora_alpha=16.0,
  remat='none',
  scan=True,
  layers=None,
  head='rank',
  attention='xla',
  sequence=False,
):
  """The Ranker of a Hugging Face model folder; `layers` lists the ones a shallow student keeps."""
  config = hf.read_config(folder)
  kind = EncoderConfig if config.get('model_type') == 'bert' else DecoderConfig
  try:
    config = kind.from_hf(config)
  except UserError as error:
    raise UserError(f'{folder}/config.json: {error}') from None
  except KeyError as error:
    raise UserError(f'{folder}/config.json: {error} is missing') from None
  if layers is not None:
    wrong = [i for i in layers if not 0 <= i < config.layers]
    if wrong or not layers or len(set(layers)) < len(layers):
      raise UserError(
        f'layers {list(layers)}: pick different ones from 0..{config.layers - 1} of {folder}'
      )
    config = dataclasses.replace(config, layers=len(layers))
  return Network(
    config,
    precision,
    lora_rank,
    lora_alpha,
    remat,
    head,
    scan,
    attention=attention,
    sequence=sequence,
  )
