"""Tokenizers like those of published models, trained on docstrings, as Hugging Face folders."""

import json
import string
from pathlib import Path

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [str(getattr(str, name).__doc__) for name in sorted(dir(str))]
VOCABULARY = 300


def unigram(special=('<s>', '<pad>', '</s>', '<unk>', '<mask>')) -> Tokenizer:
  """As XLM-RoBERTa's: the model's own vocabulary has the special tokens, and texts become NFKC."""
  tokenizer = Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Replace(Regex(' {2,}'), ' ')]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  trainer = trainers.UnigramTrainer(
    vocab_size=VOCABULARY, unk_token='<unk>', special_tokens=list(special), show_progress=False,
    initial_alphabet=list('<>/|_'),
  )  # fmt: skip
  tokenizer.train_from_iterator(TEXTS, trainer)
  return tokenizer


def byte_bpe(special=('<|endoftext|>', '<|im_start|>', '<|im_end|>'), words=()) -> Tokenizer:
  """As Qwen's: bytes, special tokens behind the model's vocabulary, some not declared special."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY, show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  tokenizer.train_from_iterator(TEXTS, trainer)
  tokenizer.add_special_tokens(list(special))
  tokenizer.add_tokens(
    [AddedToken(t, special=False, normalized=False) for t in ('<think>', '\n\n', *words)]
  )
  return tokenizer


def wordpiece(special=('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')) -> Tokenizer:
  """As BERT's."""
  letters = sorted({c for text in TEXTS for c in text.lower()} | set('[]<>/|_'))
  vocabulary = [*special, *letters, *(f'##{c}' for c in letters), 'the', 'string', 'return', 'sep']
  tokenizer = Tokenizer(
    models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token='[UNK]')
  )
  tokenizer.normalizer = normalizers.BertNormalizer()
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  tokenizer.add_special_tokens(list(special))
  return tokenizer


def words(special=('[PAD]', '[UNK]', '[CLS]', '[SEP]')) -> Tokenizer:
  """Whole words between blanks, so that `[SEP]` is a word of the model's own vocabulary."""
  seen = sorted({word for text in TEXTS for word in text.split()})
  tokenizer = Tokenizer(
    models.WordLevel({t: i for i, t in enumerate([*special, *seen])}, unk_token='[UNK]')
  )
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(list(special))
  return tokenizer


def merged_bpe() -> Tokenizer:
  """As those made from SentencePiece: merges that spell the end token, `</s>`."""
  pieces = ['<unk>', '<s>', '</s>', '▁', '<', '/', 's', '>', 'a', '</', 's>', '▁a']
  merges = [('<', '/'), ('s', '>'), ('</', 's>'), ('▁', 'a')]
  tokenizer = Tokenizer(
    models.BPE({t: i for i, t in enumerate(pieces)}, merges, unk_token='<unk>', fuse_unk=True)
  )
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  tokenizer.add_special_tokens(['<unk>', '<s>', '</s>'])
  return tokenizer


def llama_bpe(special=('<unk>', '<s>', '</s>')) -> Tokenizer:
  """As Llama 2's and Mistral's, made from SentencePiece: a blank before every text, and `<s>`."""
  tokenizer = Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY, show_progress=False, special_tokens=list(special),
    initial_alphabet=list('\n:?▁'),
  )  # fmt: skip
  letters = ' '.join(string.ascii_letters * 50)  # a blank and a letter are one token
  tokenizer.train_from_iterator([*TEXTS, letters], trainer)
  raw = json.loads(tokenizer.to_str()) | {'pre_tokenizer': None}
  tokenizer = Tokenizer.from_str(json.dumps(raw))
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  return framed(tokenizer, '<s> $A', '<s> $A <s> $B')


def framed(tokenizer: Tokenizer, single: str, pair: str) -> Tokenizer:
  """The tokenizer with special tokens around a text and a pair of texts."""
  names = {part.partition(':')[0] for part in f'{single} {pair}'.split() if part[0] != '$'}
  tokenizer.post_processor = processors.TemplateProcessing(
    single=single, pair=pair, special_tokens=[(n, tokenizer.token_to_id(n)) for n in names]
  )
  return tokenizer


def opened(tokenizer: Tokenizer, **special) -> PreTrainedTokenizerFast:
  """The tokenizer as transformers opens it; `special` has eos_token and the like."""
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def write(folder: Path, tokenizer: Tokenizer, **config) -> Path:
  """Writes tokenizer.json and tokenizer_config.json; `config` has eos_token and the like."""
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': 512, **config}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder
