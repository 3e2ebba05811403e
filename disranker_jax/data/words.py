"""The words of a text, in any script, and what makes two texts the same."""

import itertools
import re
import unicodedata

import regex

# Letters, numbers, underscores, and marks: without these a word of Hindi or Thai falls apart.
LETTER = r'\p{L}\p{N}_\p{Mn}\p{Mc}'
WORD = regex.compile(f'[{LETTER}]+')
# As bm25s and scikit-learn split English. A single letter of a script without case is a word too.
LONG_ASCII = re.compile(r'[a-zA-Z0-9_]{2,}')
# Scripts that write sentences without blanks; U+30FC lengthens a vowel of Japanese.
UNSPACED = r'\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc'
RUN = regex.compile(f'[{UNSPACED}]+')
LONG = regex.compile(rf'(?V1)([{UNSPACED}]+)|[[{LETTER}]--[{UNSPACED}]]{{2,}}|\p{{Lo}}')
SIGN = regex.compile(r'.\p{M}*')
# A sign that ends a sentence. Those of ASCII are also parts of words, such as os.path, so a blank
# follows them; the module re reads \x1c to \x1f as blanks, and regex does not.
POINT, STOP = r'[.!?\uff0e]', r'[.\uff0e]'
BLANK = r'[\s\x1c-\x1f]'
# Words before a point that is theirs. After the others the next letter tells, as in 'approx. 3'.
# In upper case CA is a state, and in lower case st. is no saint.
SHORT = '(?i:vs|mr|mrs|dr|prof|bzw|inkl|vgl)|St|ca'
# A stop after one letter, as in 'z. B.', or after a number that begins the text, as in a list, ends
# no sentence, and none does before a lower-case letter or a digit, unless this is the 1 of a list.
INITIAL = rf'(?:^|[^{LETTER}\'\u2019-])\p{{L}}\p{{M}}*'
NO_STOP = rf'(?:{INITIAL}|^{BLANK}*\p{{N}}+|(?<![{LETTER}])(?:{SHORT}))'
FIRST = rf'1[.)](?:{BLANK}|$)'
WITH = r'+#%)\]'  # after a letter they are part of the text: C++
END = regex.compile(
  rf'(?![{WITH}])(?<=[{LETTER}][{WITH}]*)(?:[^{LETTER}]|_)*?(?:'
  rf'(?!{STOP}){POINT}(?={BLANK}|$)'
  rf'|(?<!{NO_STOP}){STOP}(?={BLANK}|$)(?!{BLANK}+(?:\p{{Ll}}|(?!{FIRST})\p{{N}}))'
  rf'|(?!{POINT})\p{{Sentence_Terminal}})'
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
  """The words of two letters or more, and single letters of scripts without case.

  Where a script writes no blanks between words, each pair of neighbouring letters is a word, as in
  Lucene's CJKAnalyzer, because only a dictionary tells where a word ends.
  """
  if text.isascii():
    return LONG_ASCII.findall(text)
  return [word for found in LONG.finditer(text) for word in _pairs(found[1]) or [found[0]]]


def _pairs(run: str | None) -> list[str]:
  """The pairs of neighbouring letters, each with its marks; a single letter stays alone."""
  signs = SIGN.findall(run or '')
  return [a + b for a, b in itertools.pairwise(signs)] or signs
