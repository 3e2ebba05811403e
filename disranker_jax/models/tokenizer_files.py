"""A tokenizer's files as the model beside them needs them, for programs that read the folder."""

import json
from pathlib import Path

from disranker_jax.models import recorded
from disranker_jax.models.families.base import Family


def fit(folder: Path, family: Family, model_config: dict, typed: bool = True) -> None:
  """Adapts the files to the model: padding, maximum length, token types, names in texts.

  `typed` is False for a model that was trained without token types.
  """
  paths = folder / 'tokenizer.json', folder / 'tokenizer_config.json'
  if not all(path.exists() for path in paths):
    return
  tokenizer, config = (json.loads(path.read_text(encoding='utf-8')) for path in paths)
  if family.served:
    # Generic tokenizer classes leave token types out, which changes the scores without an error.
    # Others make them where the model has none.
    names = [n for n in family.tokenizer_inputs if typed or n != 'token_type_ids']
    config['model_input_names'] = names
    # transformers, and what uses it, then reads `[SEP]` in a text as text, as the prompts here do.
    config['split_special_tokens'] = True
  vocab = tokenizer['model'].get('vocab')
  tokens = {i: token for token, i in vocab.items()} if isinstance(vocab, dict) else {}
  tokens |= {token['id']: token['content'] for token in tokenizer.get('added_tokens', ())}
  if model_config.get('pad_token_id') in tokens:
    config['pad_token'] = tokens[model_config['pad_token_id']]
  if max_len := recorded.of(model_config, f'{folder}/config.json').max_len:
    # Clients cut texts at the tokenizer's maximum length.
    config['model_max_length'] = max_len
  if tokenizer.get('padding') or tokenizer.get('truncation'):
    # Left there by another task; readers of this file alone would apply its lengths.
    tokenizer |= {'padding': None, 'truncation': None}
    paths[0].write_text(json.dumps(tokenizer, ensure_ascii=False) + '\n', encoding='utf-8')
  paths[1].write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
