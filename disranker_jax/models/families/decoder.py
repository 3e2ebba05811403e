"""What decoders have in common: config.json, Hugging Face tensors, prompts and exports.

A type of decoder is a module of its own, which says how its config differs. decoder_network.py has
the network.
"""

import dataclasses

import flax.linen as nn

from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.errors import UserError
from disranker_jax.models import kinds, rope
from disranker_jax.models.families.base import Family
from disranker_jax.models.families.decoder_network import ACTIVATIONS, DecoderConfig, DecoderModule
from disranker_jax.models.kinds import Kind, Kinds
from disranker_jax.models.pooling import POOLINGS

USE = """It scores text as `disranker_jax.template` in `config.json` has it; `transformers`
loads it as `{architecture}`. Scores are raw: any real number, larger is better.
"""

BIDIRECTIONAL_USE = """
Its attention is bidirectional, as `is_causal` in `config.json` says. `transformers` reads this key
from version 5.2 on; earlier versions compute other scores without a message.
"""

OWN_USE = """It scores text as `disranker_jax.template` in `config.json` has it. Its score is that
of the mean over tokens, which the classes of `transformers` do not compute:

```python
import disranker_jax

ranker = disranker_jax.load('{name}')
ranker.score([('{query}', 'open : Open file and return a stream.')])
```

Scores are raw: any real number, larger is better.
"""
# Keys of config.json. transformers has the second for Gemma 3 alone, the third for ModernBERT; our
# earlier folders have the second without the first.
CAUSAL, BIDIRECTIONAL = 'is_causal', 'use_bidirectional_attention'
POOLING = 'classifier_pooling'

TENSORS = {
  'model.embed_tokens.weight': 'embed/embedding',
  'model.norm.weight': 'norm/scale',
  'model.layers.{}.input_layernorm.weight': 'blocks/attn_norm/scale',
  'model.layers.{}.post_attention_layernorm.weight': 'blocks/mlp_norm/scale',
  **{
    f'model.layers.{{}}.self_attn.{n}_proj.{theirs}': f'blocks/{n}/{ours}'
    for n in 'qkvo'
    for theirs, ours in (('weight', 'kernel'), ('bias', 'bias'))
  },
  'model.layers.{}.mlp.gate_proj.weight': 'blocks/gate/kernel',
  'model.layers.{}.mlp.up_proj.weight': 'blocks/up/kernel',
  'model.layers.{}.mlp.down_proj.weight': 'blocks/down/kernel',
  'lm_head.weight': 'lm_head/kernel',
  'score.weight': 'score/kernel',
}
QK_NORMS = {f'model.layers.{{}}.self_attn.{n}_norm.weight': f'blocks/{n}_norm/scale' for n in 'qk'}


class Decoder(Family):
  """A language model, causal unless its config says otherwise.

  A type of decoder sets `architecture`, and what differs: `own_fields`, `own_keys`, `layer_kinds`,
  `activation`.
  """

  causal = True
  can_be_bidirectional = True
  pre_norm = True
  heads = ('rank', 'lm', 'both')

  prefix = 'model'
  tensors = TENSORS
  fresh = ('score/',)
  # The head that is not in use, and what reads images.
  ignored = r'lm_head\.weight$|score\.weight$|(model\.)?(vision_tower|multi_modal_projector)\.'

  title = 'decoder'
  usage = USE
  readers = ('transformers-tokens',)
  served = False
  prompt_settings = ('template', 'scorer', 'input')

  def layer_kinds(self, config: dict) -> Kinds:
    """The kinds of the layers, by default the same for all, without a window.

    Raises: UserError for options that the network does not compute.
    """
    return (Kind(rope=rope.from_hf(config)),) * config['num_hidden_layers']

  def activation(self, config: dict) -> str:
    """The name of the gate's activation."""
    return config.get('hidden_act', 'silu')

  def own_fields(self, config: dict) -> dict:
    """The fields of DecoderConfig that this type reads in its own way.

    Raises: UserError for options that the network does not compute.
    """
    return {}

  def own_keys(self, config: DecoderConfig) -> dict:
    """The keys of config.json that only this type has; the reverse of `own_fields`."""
    raise NotImplementedError

  def from_hf(self, config: dict) -> DecoderConfig:
    if (activation := self.activation(config)) not in ACTIVATIONS:
      known = ', '.join(ACTIVATIONS)
      raise UserError(f'activation {activation!r} is not supported: decoders have one of {known}')
    if config.get('mlp_bias'):
      raise UserError('mlp_bias true is not supported: the feed-forward kernels have no bias here')
    heads = config['num_attention_heads']
    eos = config.get('eos_token_id')
    fields = dict(
      vocab=config['vocab_size'],
      width=config['hidden_size'],
      ffn=config['intermediate_size'],
      layers=config['num_hidden_layers'],
      heads=heads,
      kv_heads=config.get('num_key_value_heads') or heads,
      head_dim=config.get('head_dim') or config['hidden_size'] // heads,
      model_type=config['model_type'],
      kinds=self.layer_kinds(config),
      activation=activation,
      norm_eps=config['rms_norm_eps'],
      tied=bool(config.get('tie_word_embeddings', False)),
      pooling=self.known_pooling(config),
      max_positions=config.get('max_position_embeddings', DecoderConfig.max_positions),
      bos_id=config.get('bos_token_id'),
      eos_id=tuple(eos) if isinstance(eos, list) else eos,
      pad_id=config.get('pad_token_id'),
    )
    made = DecoderConfig(**fields | self.own_fields(config))
    return made if self.says_causal(config) else self.bidirectional(made)

  def says_causal(self, config: dict) -> bool:
    """Whether a config.json asks for causal attention. Raises: UserError if it cannot be had."""
    both = config.get(BIDIRECTIONAL)
    if both and config.get(CAUSAL):
      raise UserError(f'{CAUSAL} true contradicts {BIDIRECTIONAL} true: delete the wrong one')
    causal = bool(config.get(CAUSAL, True)) and not both
    if not causal and not self.can_be_bidirectional:
      said = f'{BIDIRECTIONAL} true' if both else f'{CAUSAL} false'
      raise UserError(f'{said} is not supported for {self.architecture}: name a causal model')
    return causal

  def bidirectional(self, config: DecoderConfig) -> DecoderConfig:
    # transformers counts a window without the token itself, if it reaches to both sides.
    if not config.causal:
      return config
    return dataclasses.replace(config, causal=False, kinds=kinds.wider(config.kinds, 1))

  def known_pooling(self, config: dict) -> str:
    """The pooling of a config.json. Raises: UserError for one that is not computed."""
    pooling = config.get(POOLING, 'token')
    if pooling not in POOLINGS:
      raise UserError(f'{POOLING} {pooling!r} is not supported: use one of {", ".join(POOLINGS)}')
    return pooling

  def to_hf(self, config: DecoderConfig) -> dict:
    c = config
    if not c.causal:
      causal = dataclasses.replace(c, causal=True, kinds=kinds.wider(c.kinds, -1))
      return {CAUSAL: False, BIDIRECTIONAL: True, **self.to_hf(causal)}
    return {
      **({} if c.pooling == 'token' else {POOLING: c.pooling}),
      'model_type': c.model_type,
      'vocab_size': c.vocab,
      'hidden_size': c.width,
      'intermediate_size': c.ffn,
      'num_hidden_layers': c.layers,
      'num_attention_heads': c.heads,
      'num_key_value_heads': c.kv_heads,
      'head_dim': c.head_dim,
      'hidden_act': c.activation,
      'rms_norm_eps': c.norm_eps,
      **kinds.ropes(c.kinds)[0].to_hf(),
      'max_position_embeddings': c.max_positions,
      'tie_word_embeddings': c.tied,
      'initializer_range': 0.02,
      'use_cache': True,
      'bos_token_id': c.bos_id,
      'eos_token_id': list(c.eos_id) if isinstance(c.eos_id, tuple) else c.eos_id,
      'pad_token_id': c.pad_id,
    } | self.own_keys(c)

  def module(self, config: DecoderConfig, *, head: str, states: bool, **options) -> nn.Module:
    return DecoderModule(config, head=head, **options)

  def is_causal(self, config: DecoderConfig) -> bool:
    return config.causal

  def pooling(self, config: DecoderConfig) -> str:
    return config.pooling

  def readers_of(self, config: DecoderConfig) -> tuple[str, ...]:
    # The classes of transformers score the last token.
    usual = config.pooling == 'token'
    return self.readers if usual else ('disranker_jax.load-documents',)

  def usage_of(self, config: DecoderConfig) -> str:
    if self.readers_of(config) != self.readers:
      return OWN_USE
    return self.usage if config.causal else self.usage + BIDIRECTIONAL_USE

  def logits_path(self, config: DecoderConfig) -> str:
    return 'embed/embedding' if config.tied else 'lm_head/kernel'

  def prompt(
    self,
    tokenizer,
    max_len: int,
    max_query_len: int,
    *,
    template: str = '',
    predict: str = 'document',
    reads: str = 'template',
  ) -> TextPrompt | PairPrompt:
    if reads == 'pair' or not template:
      return PairPrompt(tokenizer, max_len, max_query_len, scored='last')
    return TextPrompt(
      tokenizer, max_len, max_query_len, template, predict, with_end=reads == 'template'
    )

  def scoring_config(self, config: dict) -> dict:
    """With a padding token that is not the end token.

    transformers scores the last token that is not padding: with pad = `</s>` it skips our `</s>`.
    """
    eos = config['eos_token_id']
    eos = eos if isinstance(eos, list) else [eos]
    pads = (config['pad_token_id'], 0, 1, 2)
    return config | {'pad_token_id': next(i for i in pads if i is not None and i not in eos)}
