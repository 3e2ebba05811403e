"""A decoder and an encoder with a few thousand random parameters, as Hugging Face folders.

They are for tests and for trying a config in seconds; `weights.find` creates them under the names
'tiny-decoder' and 'tiny-encoder'.
"""

import builtins
import json
from collections.abc import Iterable
from pathlib import Path

import jax
from tokenizers import (
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from disranker_jax.models import files, hf
from disranker_jax.models.network import from_hf

VERSION = 3  # part of the cached folders' names: raise it when their content changes
VOCABULARY = 600
SIZES = {
  'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4,
  'max_position_embeddings': 512, 'vocab_size': VOCABULARY,
}  # fmt: skip
CONFIGS = {
  'tiny-decoder': {
    **SIZES, 'model_type': 'mistral', 'architectures': ['MistralForCausalLM'], 'hidden_act': 'silu',
    'num_key_value_heads': 2, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'sliding_window': None,
    'bos_token_id': 1, 'eos_token_id': 2, 'tie_word_embeddings': False,
  },
  'tiny-encoder': {
    **SIZES, 'model_type': 'bert', 'architectures': ['BertModel'], 'hidden_act': 'gelu',
    'type_vocab_size': 2, 'layer_norm_eps': 1e-12, 'pad_token_id': 0,
  },
}  # fmt: skip


def make(name: str, folder: Path) -> None:
  """Writes the named model to `folder`: config, random weights, and a tokenizer."""
  with files.replacing(folder) as temporary:
    (temporary / 'config.json').write_text(json.dumps(CONFIGS[name], indent=2) + '\n')
    head = 'lm' if name == 'tiny-decoder' else 'rank'
    network = from_hf(temporary, head=head)
    write_tokenizer(temporary, bert=name == 'tiny-encoder')
    hf.save(temporary / 'model', network, network.init(jax.random.key(0)))
    (temporary / 'model' / 'model.safetensors').rename(temporary / 'model.safetensors')
    (temporary / 'model' / 'config.json').unlink()
    (temporary / 'model').rmdir()


def write_tokenizer(folder: Path, *, bert: bool) -> None:
  """WordPiece with BERT's special tokens, or byte-level BPE with `<s>` and `</s>`."""
  # Imports add names with underscores to the builtins.
  public = sorted(name for name in vars(builtins) if not name.startswith('_'))
  docs = [str(getattr(builtins, name).__doc__) for name in public]
  if bert:
    special = {'pad_token': '[PAD]', 'unk_token': '[UNK]', 'cls_token': '[CLS]',
               'sep_token': '[SEP]', 'mask_token': '[MASK]'}  # fmt: skip
    tokenizer = Tokenizer(models.WordPiece(wordpieces(docs, special.values()), unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(special.values()))
  else:
    special = {'unk_token': '<unk>', 'bos_token': '<s>', 'eos_token': '</s>'}
    tokenizer = Tokenizer(models.BPE(unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
      vocab_size=VOCABULARY, special_tokens=list(special.values()), show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(docs, trainer)
  frame = ('[CLS] $A [SEP]', '[CLS] $A [SEP] $B:1 [SEP]:1') if bert else ('<s> $A', '<s> $A $B')
  ids = [(token, tokenizer.token_to_id(token)) for token in special.values()]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=frame[0], pair=frame[1], special_tokens=ids
  )
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': 512, **special}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')


def wordpieces(docs: list[str], special: Iterable[str]) -> dict[str, int]:
  """The ids of special tokens, of letters anywhere in a word, and of BPE's pieces at its start.

  WordPiece's own trainer orders the pieces differently in each process.
  """
  bpe = Tokenizer(models.BPE())
  bpe.normalizer = normalizers.BertNormalizer()
  bpe.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False)
  bpe.train_from_iterator(docs, trainer)
  pieces = [bpe.id_to_token(i) for i in range(bpe.get_vocab_size())]
  letters = [piece for piece in pieces if len(piece) == 1]
  longer = [piece for piece in pieces if len(piece) > 1]
  tokens = [*special, *letters, *(f'##{letter}' for letter in letters), *longer][:VOCABULARY]
  return {token: i for i, token in enumerate(tokens)}
