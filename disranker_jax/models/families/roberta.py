"""RoBERTa and XLM-RoBERTa: BERT without token types, with positions that start after padding's."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from disranker_jax.models.families.base import Family
from disranker_jax.models.families.bert import Bert, BertConfig, BertModule, tensors


class RobertaModule(BertModule):
  """BERT's network, where every token has type 0."""

  def __call__(self, tokens_BT, segments_BT, positions_BT):
    return super().__call__(tokens_BT, segments_BT, positions_BT, jnp.zeros_like(tokens_BT))


@dataclasses.dataclass(frozen=True)
class Roberta(Bert):
  """`model_type` and `architecture` are 'roberta' and 'Roberta', or those of XLM-RoBERTa."""

  model_type: str = 'roberta'
  architecture: str = 'Roberta'

  prefix = 'roberta'
  head = ('classifier.dense', 'classifier.out_proj')
  inputs = Family.inputs

  tensors = tensors(prefix, *head)
  fresh = ('classifier/', 'pooler/')
  ignored = r'lm_head\.|roberta\.pooler\.|roberta\.embeddings\.position_ids$'

  title = 'RoBERTa cross-encoder'
  # The smaller vocabulary is made for WordPiece and byte-level BPE with BERT's special tokens.
  vocabulary_tables = ()

  def module(self, config: BertConfig, *, head: str, states: bool, **options) -> nn.Module:
    return RobertaModule(config, states=states, head_act=self.head_act, **options)

  def position_offset(self, config: BertConfig) -> int:
    return config.pad_id + 1
