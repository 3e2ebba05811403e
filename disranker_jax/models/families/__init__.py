"""The kinds of models that can be teachers and students, by the `model_type` of their config.json.

A new family is one module with a subclass of `Family` (see base.py), and one line in `FAMILIES`.
"""

from disranker_jax.errors import UserError
from disranker_jax.models.families.base import Config, Family
from disranker_jax.models.families.bert import Bert
from disranker_jax.models.families.electra import Electra
from disranker_jax.models.families.llama import Llama
from disranker_jax.models.families.mistral import Mistral
from disranker_jax.models.families.modernbert import ModernBert
from disranker_jax.models.families.qwen2 import Qwen2
from disranker_jax.models.families.qwen3 import Qwen3
from disranker_jax.models.families.roberta import Roberta

FAMILIES: dict[str, Family] = {
  'bert': Bert(),
  'electra': Electra(),
  'llama': Llama(),
  'mistral': Mistral(),
  'modernbert': ModernBert(),
  'qwen2': Qwen2(),
  'qwen3': Qwen3(),
  'roberta': Roberta(),
  'xlm-roberta': Roberta('xlm-roberta', 'XLMRoberta'),
}


def find(model_type: str | None) -> Family:
  """The family of a `model_type`; UserError, which lists the supported ones, if there is none."""
  if model_type not in FAMILIES:
    supported = ', '.join(sorted(FAMILIES))
    raise UserError(f'model_type {model_type!r} is not supported: use one of {supported}')
  return FAMILIES[model_type]


def from_hf(config: dict) -> Config:
  """The network's config from the dict of a Hugging Face config.json.

  Raises: UserError for an unknown `model_type` and for options that the family does not compute.
  """
  return find(config.get('model_type')).from_hf(config)
