"""ELECTRA's discriminator: BERT with narrower embeddings and a head of its own."""

from disranker_jax.models.families.bert import Bert, BertConfig, linear, tensors


class Electra(Bert):
  architecture = 'Electra'
  model_type = 'electra'
  prefix = 'electra'
  head = ('classifier.dense', 'classifier.out_proj')
  head_act = 'gelu'

  tensors = tensors(prefix, *head) | linear('electra.embeddings_project', 'widen')
  ignored = r'discriminator_predictions\.|generator_(predictions|lm_head)\.|.*position_ids$'

  title = 'ELECTRA cross-encoder'

  def to_hf(self, config: BertConfig) -> dict:
    embed = config.embed_width or config.width
    return super().to_hf(config) | {'embedding_size': embed, 'summary_type': 'first'}
