"""DistilBERT: BERT without token types, with names and a head of its own."""

from disranker_jax.models.families.base import Family
from disranker_jax.models.families.bert import Bert, BertConfig, linear, norm

LAYER = 'distilbert.transformer.layer.{}'
KEYS = {
  'hidden_size': 'dim', 'intermediate_size': 'hidden_dim', 'num_hidden_layers': 'n_layers',
  'num_attention_heads': 'n_heads', 'hidden_act': 'activation',
}  # fmt: skip
SAME = ('vocab_size', 'max_position_embeddings', 'pad_token_id', 'initializer_range')


class DistilBert(Bert):
  architecture = 'DistilBert'
  model_type = 'distilbert'
  prefix = 'distilbert'
  head = ('pre_classifier', 'classifier')
  head_act = 'relu'
  inputs = Family.inputs

  tensors = {  # noqa: RUF012
    'distilbert.embeddings.word_embeddings.weight': 'words/embedding',
    'distilbert.embeddings.position_embeddings.weight': 'places/embedding',
    **norm('distilbert.embeddings.LayerNorm', 'embed_norm'),
    **linear(f'{LAYER}.attention.q_lin', 'blocks/q'),
    **linear(f'{LAYER}.attention.k_lin', 'blocks/k'),
    **linear(f'{LAYER}.attention.v_lin', 'blocks/v'),
    **linear(f'{LAYER}.attention.out_lin', 'blocks/o'),
    **norm(f'{LAYER}.sa_layer_norm', 'blocks/attn_norm'),
    **linear(f'{LAYER}.ffn.lin1', 'blocks/up'),
    **linear(f'{LAYER}.ffn.lin2', 'blocks/down'),
    **norm(f'{LAYER}.output_layer_norm', 'blocks/mlp_norm'),
    **linear(head[0], 'pooler'),
    **linear(head[1], 'classifier'),
  }
  ignored = r'vocab_(transform|layer_norm|projector)\.'

  title = 'DistilBERT cross-encoder'

  def from_hf(self, config: dict) -> BertConfig:
    sizes = {bert: config[key] for bert, key in KEYS.items() if key in config}
    return super().from_hf(config | sizes | {'type_vocab_size': 0, 'layer_norm_eps': 1e-12})

  def to_hf(self, config: BertConfig) -> dict:
    bert = super().to_hf(config)
    own = {key: bert[name] for name, key in KEYS.items()}
    return {'model_type': self.model_type} | own | {key: bert[key] for key in SAME}
