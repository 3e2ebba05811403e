"""BERT's tokenizer on long texts: reads from word to word until there are enough tokens.

WordPiece needs 50 look-ups a character for words without pieces, so what is not used must not be
read. BERT splits texts at blanks and punctuation before anything else. A text that is cut there
has the same tokens as the whole, piece by piece.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence

from disranker_jax.data import tokenising

LOOK_BACK = 100  # characters before the wanted length in which a place to cut is searched


def reads(tokenizer) -> bool:
  """Whether a tokenizer of transformers splits texts as BERT does."""
  backend = tokenizer.backend_tokenizer
  parts = (backend.model, backend.pre_tokenizer, backend.normalizer)
  kinds = tuple(type(part).__name__ for part in parts)
  return (
    kinds == ('WordPiece', 'BertPreTokenizer', 'BertNormalizer')
    and backend.normalizer.handle_chinese_chars
    and backend.normalizer.clean_text
  )


def first_ids(tokenizer, texts: Sequence[str], count: int, chars: int) -> list[list[int]]:
  """Token ids of each text: at least the first `count`, or all; reads about `chars` at a time.

  No special tokens are added, and names of control tokens are text. Thread-safe.
  """
  backend = tokenising.plain(tokenizer.backend_tokenizer).backend
  ends = None
  ids, at, todo = [[] for _ in texts], [0] * len(texts), range(len(texts))
  while todo:
    pieces = []
    for i in todo:
      stop = at[i] + chars
      if stop < len(texts[i]):
        ends = ends or _ends(_marks(backend))
        stop = _cut(texts[i], at[i], stop, ends)
      pieces.append(texts[i][at[i] : stop])
      at[i] = stop
    for i, row in zip(todo, tokenising.text_ids(tokenizer, pieces), strict=True):
      ids[i] = ids[i] + row if ids[i] else row
    todo = [i for i in todo if len(ids[i]) < count and at[i] < len(texts[i])]
  return ids


def _marks(backend) -> str:
  """What is neither a letter nor a digit in the tokenizer's added tokens."""
  added = ''.join(token.content for token in backend.get_added_tokens_decoder().values())
  return ''.join(sorted({c for c in added if not c.isalnum()}))


def _cut(text: str, start: int, stop: int, ends: re.Pattern) -> int:
  """Where to cut: after the last of `ends` before `stop`, or after the next one."""
  before = list(ends.finditer(text, max(start, stop - LOOK_BACK), stop))
  found = before[-1] if before else ends.search(text, stop)
  return found.end() if found else len(text)


@functools.cache
def _ends(added: str) -> re.Pattern:
  """Characters that end a word, and are in no added token, which is found before words are."""
  # In the first Unicode that Python knows as well: the tokenizer's tables are older than Python's.
  old = unicodedata.ucd_3_2_0.category
  split = [
    c
    for c in map(chr, range(sys.maxunicode + 1))
    if (old(c) in SPLITS and unicodedata.category(c) in SPLITS) or c in '\t\n\r$+<=>^`|~'
  ]
  ranges = '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df'  # as BERT has them
  return re.compile(f'[{re.escape("".join(c for c in split if c not in added))}{ranges}]')


SPLITS = ('Zs', 'Pc', 'Pd', 'Ps', 'Pe', 'Pi', 'Pf', 'Po')
