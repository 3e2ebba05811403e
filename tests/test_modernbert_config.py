"""ModernBERT's config.json: keys of all versions, what they mean, and values that are refused."""

import dataclasses

import pytest
import transformers
from test_modernbert import CASES

from disranker_jax.errors import UserError
from disranker_jax.models import families, kinds
from disranker_jax.models.kinds import FULL, SLIDING
from disranker_jax.models.network import Network
from disranker_jax.models.rope import Rope

PUBLISHED = {  # the keys of ModernBERT-base's file that matter, as transformers 4 wrote them
  'model_type': 'modernbert', 'vocab_size': 50368, 'hidden_size': 768, 'intermediate_size': 1152,
  'num_hidden_layers': 22, 'num_attention_heads': 12, 'global_attn_every_n_layers': 3,
  'local_attention': 128, 'global_rope_theta': 160000.0, 'local_rope_theta': 10000.0,
  'norm_eps': 1e-5, 'layer_norm_eps': 1e-12, 'position_embedding_type': 'absolute',
  'max_position_embeddings': 8192, 'pad_token_id': 50283, 'classifier_pooling': 'mean',
}  # fmt: skip


def test_keys_of_earlier_versions_mean_what_transformers_takes_them_for():
  new = transformers.AutoConfig.for_model(**PUBLISHED).to_dict()
  assert 'rope_parameters' in new and 'global_rope_theta' not in new
  old_config, new_config = families.from_hf(PUBLISHED), families.from_hf(new)
  assert old_config.kinds == new_config.kinds
  config = dataclasses.replace(old_config, tokens=new_config.tokens)
  assert config == new_config
  assert config.kinds[0] == kinds.Kind(None, Rope(160000.0))
  assert config.kinds[1] == kinds.Kind(65, Rope(10000.0))
  assert [i for i, kind in enumerate(config.kinds) if kind.window is None] == list(range(0, 22, 3))
  assert config.norm_eps == 1e-5 and families.find('modernbert').max_len(config) == 8192
  assert Network(config).count_params() == 149_605_633  # 149M: the published size, with its head


@pytest.mark.parametrize(
  'changes, theta',
  [
    ({'local_rope_theta': 160000.0}, 160000.0),  # mmBERT
    ({'local_rope_theta': None, 'global_rope_theta': 7.0}, 7.0),
    ({'rope_parameters': {SLIDING: {'rope_type': 'default', 'rope_theta': 5.0}}}, 5.0),
  ],
)
def test_the_rotary_positions_of_local_layers(changes, theta):
  assert families.from_hf(PUBLISHED | changes).kinds[1].rope == Rope(theta)


@pytest.mark.parametrize('name', CASES)
def test_config_survives_the_trip(name):
  config = families.from_hf({'model_type': 'modernbert', **CASES[name]})
  written = families.find('modernbert').to_hf(config)
  assert families.from_hf(written) == config
  assert (written['global_attn_every_n_layers'] is None) == (name == 'irregular')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'hidden_activation': 'silu'}, "hidden_activation 'silu'"),
    ({'classifier_activation': 'tanh'}, "classifier_activation 'tanh'"),
    ({'classifier_pooling': 'max'}, "classifier_pooling 'max'"),
    ({'num_attention_heads': 7}, '768 does not divide into 7 heads'),
    ({'head_dim': 32}, 'head_dim 32'),
    ({'layer_types': ['full_attention'] * 3}, '3 entries for 22 layers'),
    ({'layer_types': ['chunked_attention'] * 22}, 'layer_types has chunked_attention'),
    ({'local_attention': 1}, 'local_attention 1'),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "rope scaling 'yarn'"),
    ({'rope_parameters': {FULL: {'rope_type': 'dynamic', 'factor': 2.0}}}, "'dynamic'"),
  ],
)
def test_configs_that_would_compute_something_else_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    families.from_hf(PUBLISHED | changes)
