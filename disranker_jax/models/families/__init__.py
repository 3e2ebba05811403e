"""The kinds of models that can be teachers and students, by the `model_type` of their config.json.

A new family is one module with a subclass of `Family` (see base.py), and one line in `FAMILIES`.
"""

from disranker_jax.errors import UserError
from disranker_jax.models.families.base import Config, Family
from disranker_jax.models.families.bert import Bert
from disranker_jax.models.families.distilbert import DistilBert
from disranker_jax.models.families.electra import Electra
from disranker_jax.models.families.gemma import Gemma
from disranker_jax.models.families.gemma3 import Gemma3
from disranker_jax.models.families.llama import Llama
from disranker_jax.models.families.mistral import Ministral, Ministral3, Mistral
from disranker_jax.models.families.modernbert import ModernBert
from disranker_jax.models.families.phi3 import Phi3
from disranker_jax.models.families.qwen2 import Qwen2
from disranker_jax.models.families.qwen3 import Qwen3
from disranker_jax.models.families.roberta import Roberta
from disranker_jax.models.families.smollm3 import SmolLM3

TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
FAMILIES: dict[str, Family] = {
  'bert': Bert(),
  'distilbert': DistilBert(),
  'electra': Electra(),
  'gemma': Gemma(),
  'gemma3_text': Gemma3(),
  'llama': Llama(),
  'ministral': Ministral(),
  'ministral3': Ministral3(),
  'mistral': Mistral(),
  'modernbert': ModernBert(),
  'phi3': Phi3(),
  'qwen2': Qwen2(),
  'qwen3': Qwen3(),
  'roberta': Roberta(),
  'smollm3': SmolLM3(),
  'xlm-roberta': Roberta('xlm-roberta', 'XLMRoberta'),
}

# Models of images and text: the type of their `text_config` if it does not say.
WITH_IMAGES = {'gemma3': 'gemma3_text', 'mistral3': 'mistral'}


def of_text(config: dict) -> dict:
  """The config of the text model alone, from that of a model which may read images too."""
  inner = config.get('text_config')
  if config.get('model_type') not in WITH_IMAGES or not isinstance(inner, dict):
    return config
  ids = {name: config[name] for name in TOKEN_IDS if config.get(name) is not None}
  return {'model_type': WITH_IMAGES[config['model_type']]} | inner | ids


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
  config = of_text(config)
  family = find(config.get('model_type'))
  if config.get('is_decoder') and not family.causal:
    raise UserError(
      'is_decoder true is not supported for an encoder, whose tokens see the whole text here; set '
      'it to false if the model was trained so'
    )
  return family.from_hf(config)
