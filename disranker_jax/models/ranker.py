"""What the stages see of a model: tokens in, document scores or token log-probabilities out."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.models import hf
from disranker_jax.models.decoder import Decoder, DecoderConfig
from disranker_jax.models.encoder import Encoder, EncoderConfig
from disranker_jax.models.layers import activation_dtype, constrain

LOGPROB_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Ranker:
  """A network and how to run it; holds no arrays, hashable, static under jit.

  variables  {'params': tree} and, with `lora_rank` > 0, 'lora': tree, both plain nested dicts
  batch      tokens_BT, segments_BT (0 = padding), positions_BT (restart in each segment), for an
             encoder types_BT, and for scores index_GN (flat position row * T + position of a
             document's last real token, of its [CLS] for an encoder; 0 where absent), mask_GN
  head       'rank' for a scalar score; decoders also 'lm' for next-token log-probabilities, 'both'
  """

  config: DecoderConfig | EncoderConfig
  precision: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0
  remat: str = 'none'
  head: str = 'rank'
  scan: bool = True

  def __post_init__(self):
    activation_dtype(self.precision)
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
    }
    if self.is_decoder:
      return Decoder(self.config, head=self.head, **options)
    return Encoder(self.config, **options)

  def init(self, key):
    """Random variables; run it under jit with out_shardings to have them born sharded."""
    zeros_BT = jnp.zeros((1, 2), jnp.int32)
    arrays = (zeros_BT,) * (3 if self.is_decoder else 4)
    return dict(self.module.init(key, *arrays, method='everything'))

  def hidden(self, variables, batch):
    """Final hidden states [B, T, D] in activation dtype."""
    keys = ('tokens_BT', 'segments_BT', 'positions_BT', *(() if self.is_decoder else ('types_BT',)))
    return self.module.apply(variables, *(batch[key] for key in keys))

  def score_at(self, variables, hidden_BTD, index_GN):
    """Scores [G, N] fp32 of the hidden states at flat positions."""
    hidden_XD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    picked_PD = jnp.take(hidden_XD, index_GN.reshape(-1), axis=0)
    return self.module.apply(variables, picked_PD, method='score').reshape(index_GN.shape)

  def scores(self, variables, batch):
    """Relevance scores [G, N] fp32, 0 where mask_GN is False."""
    scores_GN = self.score_at(variables, self.hidden(variables, batch), batch['index_GN'])
    return jnp.where(batch['mask_GN'], scores_GN, 0.0)

  def logprobs(self, variables, hidden_BTD, index_P, targets_P):
    """Log-probabilities [P] fp32 of targets at flat positions, without ever holding [P, V].

    Softmax runs over chunks of positions that are recomputed in the backward pass; the caller
    masks positions that only fill up P.
    """
    hidden_XD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    count = index_P.shape[0]
    chunk = min(LOGPROB_CHUNK, count)
    padding = -count % chunk
    index_P, targets_P = (jnp.pad(x, (0, padding)) for x in (index_P, targets_P))

    @jax.checkpoint
    def one_chunk(pair):
      index_C, targets_C = pair
      hidden_CD = constrain(jnp.take(hidden_XD, index_C, axis=0))
      logits_CV = self.module.apply(variables, hidden_CD, method='logits')
      chosen_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
      return chosen_C - jax.nn.logsumexp(logits_CV, axis=-1)

    chunks = (index_P.reshape(-1, chunk), targets_P.reshape(-1, chunk))
    return jax.lax.map(one_chunk, chunks).reshape(-1)[:count]

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


def from_hf(
  folder,
  *,
  precision='float32',
  lora_rank=0,
  lora_alpha=16.0,
  remat='none',
  layers=None,
  head='rank',
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
  return Ranker(config, precision, lora_rank, lora_alpha, remat, head)
