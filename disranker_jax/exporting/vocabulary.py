"""Reduces a student's vocabulary to the tokens of a corpus; its texts score exactly as before.

Most of a multilingual student is its table of word pieces (92M of 135M parameters), and a corpus
uses a part of it. WordPiece takes the longest piece that fits, so removing unused pieces does not
change how the corpus is split. Single characters stay, so that other words can still be spelt.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from disranker_jax.data import tokenising
from disranker_jax.errors import UserError
from disranker_jax.models import hf, tree
from disranker_jax.models.network import Network

BATCH = 1000


def used(tokenizer_folder: Path, texts: Iterable[str]) -> set[int]:
  """The ids of every token that occurs in the texts."""
  tokenizer = tokenising.plain(open_wordpiece(tokenizer_folder)[1]).backend
  seen, waiting = set(), []

  def count():
    for row in tokenizer.encode_batch_fast(waiting, add_special_tokens=False):
      seen.update(row.ids)
    waiting.clear()

  for text in texts:
    waiting.append(text)
    if len(waiting) == BATCH:
      count()
  count()
  return seen


def open_wordpiece(folder: Path) -> tuple[dict, Tokenizer]:
  """(tokenizer.json, the tokenizer); UserError if it is not a WordPiece."""
  file = Path(folder) / 'tokenizer.json'
  raw = json.loads(file.read_text(encoding='utf-8'))
  if raw['model'].get('type') != 'WordPiece':
    raise UserError(
      f'{file}: only a WordPiece vocabulary can be reduced, this is {raw["model"].get("type")!r}; '
      "leave config.export.vocabulary=''"
    )
  tokenizer = Tokenizer.from_file(str(file))
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return raw, tokenizer


def kept(raw: dict, ids: set[int]) -> np.ndarray:
  """Old ids in the order of the new ones: used, special, and single characters."""
  prefix = raw['model'].get('continuing_subword_prefix', '##')
  vocab = raw['model']['vocab']
  single = {i for token, i in vocab.items() if len(token.removeprefix(prefix)) == 1}
  added = {token['id'] for token in raw.get('added_tokens', ())}
  return np.array(sorted(ids | single | added | {vocab[raw['model']['unk_token']]}))


def trim(
  network: Network, variables: dict, tokenizer_folder: Path, target: Path, ids: set[int]
) -> tuple[Network, dict]:
  """(network, variables) with the kept rows of the table; writes their tokenizer to `target`."""
  raw, _ = open_wordpiece(tokenizer_folder)
  old = kept(raw, ids)
  new = {int(o): n for n, o in enumerate(old)}
  shutil.copytree(
    tokenizer_folder, target, ignore=lambda _, names: set(names) - set(hf.TOKENIZER_FILES)
  )
  write_tokenizer(target, raw, new)
  pad_id = new.get(network.config.pad_id, 0)
  config = dataclasses.replace(network.config, vocab=len(old), pad_id=pad_id)
  params = tree.flatten(variables['params'])
  params |= {path: np.asarray(params[path])[old] for path in network.family.vocabulary_tables}
  smaller = dataclasses.replace(network, config=config)
  return smaller, variables | {'params': tree.unflatten(params)}


def write_tokenizer(folder: Path, raw: dict, new: dict[int, int]) -> None:
  """Writes new ids to tokenizer.json and to the files that repeat them."""
  vocab = {t: new[i] for t, i in raw['model']['vocab'].items() if i in new}
  raw['model']['vocab'] = dict(sorted(vocab.items(), key=lambda item: item[1]))
  for token in raw.get('added_tokens', ()):
    token['id'] = new[token['id']]
  processor = raw.get('post_processor') or {}
  for special in processor.get('special_tokens', {}).values():
    special['ids'] = [new[i] for i in special['ids']]
  for key in ('sep', 'cls'):  # BertProcessing: ['[SEP]', 102]
    if key in processor:
      processor[key][1] = new[processor[key][1]]
  (folder / 'tokenizer.json').write_text(
    json.dumps(raw, ensure_ascii=False) + '\n', encoding='utf-8'
  )
  if (folder / 'vocab.txt').exists():
    (folder / 'vocab.txt').write_text(
      ''.join(f'{t}\n' for t in raw['model']['vocab']), encoding='utf-8'
    )
  (folder / 'added_tokens.json').unlink(missing_ok=True)
  config_file = folder / 'tokenizer_config.json'
  config = json.loads(config_file.read_text(encoding='utf-8'))
  decoder = config.get('added_tokens_decoder', {})
  config['added_tokens_decoder'] = {str(new[int(i)]): t for i, t in decoder.items()}
  if not config['added_tokens_decoder']:
    del config['added_tokens_decoder']
  config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
