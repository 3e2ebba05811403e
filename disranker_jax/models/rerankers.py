"""Ready rerankers: whether the head in a folder gives the score that is read here.

A ready reranker is a sequence classifier with one label, as sentence-transformers' CrossEncoder and
transformers write it. Scores are raw, before the activation that its files name.
"""

import dataclasses
import json
from pathlib import Path

from disranker_jax.data.prompts import PairPrompt
from disranker_jax.errors import UserError

# Activations of one score that keep the order, so that raw scores rank as they do.
KEEP_ORDER = (
  'Identity',
  'Sigmoid',
  'LogSigmoid',
  'Tanh',
  'Softplus',
  'Softsign',
  'LeakyReLU',
  'ELU',
)
FILES = ('config.json', 'config_sentence_transformers.json', 'sentence_bert_config.json')
TASK = 'sequence-classification'


def check(folder: str | Path) -> None:
  """Checks that a folder's head, if it has one, is one score of one token's hidden state.

  Raises: UserError for several labels, another pooling, and an activation that changes the order.
  """
  folder = Path(folder)
  config, cross_encoder, text = (_read(folder / name) for name in FILES)
  if is_classifier(config):
    names = config.get('id2label')
    labels = len(names) if names and isinstance(names, dict) else config.get('num_labels', 2)
    if labels != 1:
      raise UserError(
        f'{folder}: is not a sequence classifier with one label, it has {labels}; use a reranker '
        'with one score, or the base model that it was made from'
      )
  elif cross_encoder.get('model_type') != 'CrossEncoder':
    return  # a base model, which gets a new head
  _check_modules(folder, cross_encoder, text)
  name = _activation(config, cross_encoder)
  if name and name.rpartition('.')[2] not in KEEP_ORDER:
    raise UserError(
      f'{folder}: its activation {name!r} may change the order of scores, and raw scores are what '
      f'is computed here; supported are {", ".join(KEEP_ORDER)}'
    )


def as_trained(prompt, folder: str | Path):
  """The prompt of a folder's model, without token types if its head was trained without them.

  Generic tokenizers make no token types unless `model_input_names` says so, and transformers then
  computes with type 0. A base model has no head yet, and gets types.
  """
  if not isinstance(prompt, PairPrompt) or not is_classifier(_read(Path(folder) / FILES[0])):
    return prompt
  typed = 'token_type_ids' in prompt.tokenizer.model_input_names
  return prompt if typed else dataclasses.replace(prompt, typed=False)


def architecture(config: dict) -> str:
  """The first class that config.json names; '' if it names none."""
  names = config.get('architectures')
  return str(names[0]) if names and isinstance(names, list) else ''


def is_classifier(config: dict) -> bool:
  return architecture(config).endswith('ForSequenceClassification')


def _check_modules(folder: Path, cross_encoder: dict, text: dict) -> None:
  """Raises: UserError for a CrossEncoder that reads its score from next-token logits.

  Heads of Pooling, Dense and LayerNorm modules are read and checked in modules.py.
  """
  if cross_encoder.get('model_type') != 'CrossEncoder':
    return
  modules = _read(folder / 'modules.json', [])
  rows = [module for module in modules if isinstance(module, dict)]
  kinds = [str(module.get('type', '')).rpartition('.')[2] for module in rows]
  others = [kind for kind in kinds if kind != 'Transformer']
  task = text.get('transformer_task', TASK)
  if 'LogitScore' in others or (not others and task != TASK):
    what = ', '.join(others) or task
    raise UserError(
      f'{folder}: its score comes from another head than a classifier ({what} in modules.json and '
      'sentence_bert_config.json), which is not supported here; `disranker llm-rank` reads logits '
      'of words'
    )


def _activation(config: dict, cross_encoder: dict) -> str:
  """The class that sentence-transformers puts on the score; '' for its default, a sigmoid."""
  own = config.get('sentence_transformers')
  names = (
    cross_encoder.get('activation_fn'),
    own.get('activation_fn') if isinstance(own, dict) else None,
    config.get('sbert_ce_default_activation_function'),
  )
  named = next((name for name in names if name and isinstance(name, str)), '')
  return named if named.startswith('torch.') else ''  # it imports no other code either


def _read(path: Path, default=None):
  """A JSON file's content; `default`, or {}, if there is none."""
  if not path.is_file():
    return {} if default is None else default
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f'{path} cannot be read: {error}') from None
  if not isinstance(value, dict if default is None else type(default)):
    raise UserError(f'{path} is not what sentence-transformers and transformers write there')
  return value
