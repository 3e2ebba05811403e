"""The tokenizer in a llama.cpp file (GGUF), written as Hugging Face's files."""

import dataclasses
import json
import pathlib

from disranker_jax.errors import UserError

NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6  # types of tokens
SPACE = '\u2581'  # SentencePiece's

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_START = r'[^\r\n\p{L}\p{N}]?'


@dataclasses.dataclass(frozen=True)
class Split:
  """How a tokenizer of byte-level BPE cuts a text into words.

  regex   of words; '': GPT-2's
  digits  each digit is a word
  whole   a word that is a token is that token, whatever the merges
  nfc     the text is normalised first
  """

  regex: str = ''
  digits: bool = False
  whole: bool = False
  nfc: bool = False


_LLAMA3 = Split(_LETTERS + r'\p{N}{1,3}' + _OTHERS, whole=True)
_QWEN2 = Split(_LETTERS + r'\p{N}' + _OTHERS, nfc=True)
# By `tokenizer.ggml.pre`.
SPLITS = {
  'smollm': Split(digits=True),
  'gpt-2': Split(),
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'llama-bpe': _LLAMA3,
  'qwen2': _QWEN2,
  'deepseek-r1-qwen': _QWEN2,
  'tekken': Split(
    rf'{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}'
    + _OTHERS.replace(r'[\r\n]*', r'[\r\n/]*'),
    whole=True,
  ),
}  # fmt: skip
# llama.cpp starts texts with bos unless the file says otherwise.
STARTED = ('llama3', 'llama-v3', 'llama-bpe', 'tekken')
# Their files name a bos which their tokenizers do not have.
UNSTARTED = ('qwen2', 'qwen3')


def write(meta, folder: pathlib.Path, config) -> None:
  """Writes tokenizer.json and tokenizer_config.json to `folder`.

  `meta(name)` is a metadatum of the file, `config` the network's.

  Raises: UserError for a tokenizer that cannot be rebuilt.
  """
  model = meta('tokenizer.ggml.model')
  if model not in ('gpt2', 'llama'):
    raise UserError(
      f'tokenizer {model!r} is not supported: only gpt2 (byte BPE) and llama (SentencePiece) are'
    )
  tokens, types = meta('tokenizer.ggml.tokens'), meta('tokenizer.ggml.token_type')
  if len(tokens) > config.vocab:
    raise UserError(f'{len(tokens)} tokens, but only {config.vocab} embeddings')
  build = _byte_level if model == 'gpt2' else _sentencepiece
  tokenizer = build(meta, tokens, types)
  _add_whole_tokens(tokenizer, tokens, types)
  named = {
    'bos_token': None if meta.architecture in UNSTARTED else config.bos_id,
    'eos_token': config.eos_id,
    'unk_token': meta('tokenizer.ggml.unknown_token_id', 0),
    'pad_token': config.pad_id,
  }
  named = {name: tokens[i] for name, i in named.items() if i is not None}
  is_started = model == 'llama' or meta('tokenizer.ggml.pre', '') in STARTED
  if 'bos_token' in named and meta('tokenizer.ggml.add_bos_token', is_started):
    _start_with(tokenizer, named['bos_token'])
  tokenizer.save(str(folder / 'tokenizer.json'))
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': config.max_positions,
    'clean_up_tokenization_spaces': False,
    **named,
  }
  template = meta('tokenizer.chat_template', None)
  settings |= {'chat_template': template} if template else {}
  text = json.dumps(settings, indent=2, ensure_ascii=False)
  (folder / 'tokenizer_config.json').write_text(text + '\n', encoding='utf-8')


def _byte_level(meta, tokens, types):
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

  pre = meta('tokenizer.ggml.pre', 'default')
  if pre not in SPLITS:
    known = ', '.join(SPLITS)
    raise UserError(f'pre-tokenizer {pre!r} is not supported: only {known} are')
  split = SPLITS[pre]
  merges = [tuple(m.split(' ')) for m in meta('tokenizer.ggml.merges')]
  vocab = {token: i for i, token in enumerate(tokens)}
  whole = {'ignore_merges': True} if split.whole else {}
  tokenizer = Tokenizer(models.BPE(vocab, merges, **whole))
  steps = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
  if split.regex:
    steps.append(pre_tokenizers.Split(Regex(split.regex), 'isolated'))
  steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.regex))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
  if split.nfc:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _sentencepiece(meta, tokens, types):
  from tokenizers import Tokenizer, decoders, models, normalizers

  # Runs of spaces are written as spaces, but looked up as SentencePiece writes them.
  tokens[:] = [SPACE * len(token) if not token.strip(' ') else token for token in tokens]
  vocab = {token: i for i, token in enumerate(tokens)}
  merges = _merges(vocab, types, meta('tokenizer.ggml.scores'))
  unknown = tokens[meta('tokenizer.ggml.unknown_token_id', 0)]
  tokenizer = Tokenizer(
    models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in types)
  )
  is_prefixed = meta('tokenizer.ggml.add_space_prefix', meta.architecture == 'llama')
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend(SPACE)] * is_prefixed + [normalizers.Replace(' ', SPACE)]
  )
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
    + [decoders.Strip(' ', 1, 0)] * is_prefixed
  )
  return tokenizer


def _merges(vocab: dict[str, int], types, scores) -> list[tuple[str, str]]:
  """Pairs of tokens that make a token, best first: SentencePiece has no list of merges.

  It merges the pair whose result has the best score, and finds tokens of type USER before others.
  """
  usable = {token: i for token, i in vocab.items() if types[i] in (NORMAL, USER)}
  found = []
  for token, i in usable.items():
    for cut in range(1, len(token)):
      pair = token[:cut], token[cut:]
      if pair[0] in usable and pair[1] in usable:
        rank = (types[i] != USER, 0.0 if types[i] == USER else -scores[i], i)
        found.append((rank, usable[pair[0]], usable[pair[1]], pair))
  return [pair for *_, pair in sorted(found)]


def _add_whole_tokens(tokenizer, tokens, types) -> None:
  """Tokens that are found in a text before it is cut into words."""
  from tokenizers import AddedToken

  control = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
  tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
  user = [t for t, kind in zip(tokens, types, strict=True) if kind == USER and t.strip(SPACE)]
  tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in user])


def _start_with(tokenizer, bos: str) -> None:
  from tokenizers import processors

  tokenizer.post_processor = processors.TemplateProcessing(
    single=f'{bos} $A',
    pair=f'{bos} $A {bos}:1 $B:1',
    special_tokens=[(bos, tokenizer.token_to_id(bos))],
  )
