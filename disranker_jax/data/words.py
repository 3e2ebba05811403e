"""The words of a text, in any script, and what makes two texts the same."""

import re
import unicodedata

import regex

# Letters, numbers, underscores, and marks: without these a word of Hindi or Thai falls apart.
LETTER = r'\p{L}\p{N}_\p{Mn}\p{Mc}'
WORD = regex.compile(f'[{LETTER}]+')
# As bm25s and scikit-learn split English. A single letter of a script without case, such as that of
# Chinese, is a word too.
LONG_ASCII = re.compile(r'[a-zA-Z0-9_]{2,}')
LONG = regex.compile(rf'[{LETTER}]{{2,}}|\p{{Lo}}')
# A sign that ends a sentence; those of ASCII are also parts of words, such as os.path.
END = regex.compile(
  rf'(?<=[{LETTER}])(?:[^{LETTER}]|_)*?(?:[.!?\uff0e](?=\s|$)|(?![.!?\uff0e])\p{{Sentence_Terminal}})'
)


def folded(text: str) -> str:
  """A text without differences in case and in the form of its characters (NFKC of Unicode)."""
  if text.isascii():
    return text.casefold()
  # Folding an upper-case letter may give another form of the lower-case one.
  return unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', text).casefold())


def all_of(text: str) -> list[str]:
  """The words of a text, single letters too."""
  return WORD.findall(text)


def long(text: str) -> list[str]:
  """The words of two letters or more, and single letters of scripts without case."""
  return LONG_ASCII.findall(text) if text.isascii() else LONG.findall(text)
