"""Decides which generated queries are kept. What is left out is counted by its reason.

A query is compared with its document and with those of a test. Whether the first stage finds its
document is known later, and so is which of the queries that it finds are the same.
"""

import collections
import itertools
import re
import unicodedata
from collections.abc import Iterable

from disranker_jax.data import words
from disranker_jax.data.records import Document

EMPTY, BROKEN, LONG = 'empty', 'broken characters', 'too long'
TITLE, SCRIPT, TEST = 'the title copied', 'in another script', 'a query of the test'
NOT_FOUND, DUPLICATE = 'page not found', 'duplicate'
NO_OTHER = 'no other document'
# In the order in which they are looked at: of several faults the first one counts.
REASONS = (EMPTY, BROKEN, LONG, TITLE, SCRIPT, TEST, NOT_FOUND, DUPLICATE, NO_OTHER)
SHARE = 0.2  # of the letters: less of a script is a name or a quotation
KANA = 'HIRAGANA', 'KATAKANA', 'KATAKANA-HIRAGANA'  # the last one is of U+30FC
# The signs that close what another one opens, in English, German, French, Swedish, Japanese.
CLOSING = {
  '"': '"\u201d', '\u201c': '\u201d"', '\u201d': '\u201d', '\u201e': '\u201c\u201d"',
  "'": "'\u2019", '\u2018': "\u2019'", '\u2019': '\u2019', '\u201a': "\u2018\u2019'",
  '\u00ab': '\u00bb', '\u00bb': '\u00ab', '\u2039': '\u203a', '\u203a': '\u2039',
  '\u300c': '\u300d', '\u300e': '\u300f', '\uff02': '\uff02',
}  # fmt: skip
SIGNS = ''.join(dict.fromkeys(''.join([*CLOSING, *CLOSING.values()])))
QUOTES = f' *{SIGNS}'
OPENED = re.compile(rf'[^\w{re.escape(SIGNS)}][{re.escape(SIGNS)}]')  # another quotation
# Of a list, of which most begin at 1. Another number with a point may be of a name: 2. Bundesliga.
MARKER = re.compile(r'^(?:1\.|\d{1,2}\)|\d{1,2}\.$|[-*+\u2022\u2013\u2014])(?:\s+|$)')


class Filters:
  """Takes queries one after the other, and counts.

  Args:
    tests: the texts of test queries.
    max_words: a query with more words is too long.
  """

  def __init__(self, tests: Iterable[str], max_words: int):
    self._tests = {key(text) for text in tests}
    self._max_words = max_words
    self.later: dict[str, str] = {}  # why queries were left out after `reason`, by their ids
    self.counts: collections.Counter[str] = collections.Counter()

  def reason(self, doc: Document, query: str, ended: bool) -> str:
    """Why a query is left out by its text; '' if it is kept.

    Args:
      query: as `tidy` returns it.
      ended: whether the model ended it; False if it was cut.
    """
    why = self._reason(doc, query, ended)
    self.counts[why] += 1
    return why

  def _reason(self, doc: Document, query: str, ended: bool) -> str:
    same = key(query)
    if not same:
      return EMPTY
    if '\ufffd' in query:
      return BROKEN
    if not ended or len(query.split()) > self._max_words:
      return LONG
    if same == key(doc.title):
      return TITLE
    whole = f'{doc.title} {doc.summary}'
    written, of_doc = main_scripts(query), main_scripts(doc.title) | main_scripts(whole)
    # A name or a command of the document is a query in any script.
    if written and written.isdisjoint(of_doc) and not {*same.split()} <= own_words(whole):
      return SCRIPT
    return TEST if same in self._tests else ''

  def leave_out(self, query_id: str, why: str) -> None:
    """Leaves out a query that `reason` has kept."""
    self.later[query_id] = why
    self.counts[''] -= 1
    self.counts[why] += 1

  def by_reason(self) -> dict[str, int]:
    """{reason: how many} in the order of REASONS, without zeros."""
    return {why: self.counts[why] for why in REASONS if self.counts[why]}


def tidy(text: str, ended: bool, before: str = '') -> tuple[str, bool]:
  """(the query in a text, whether it is whole): the first line, with single spaces.

  Of a line that begins with a quotation mark, the query is what stands inside the pair, whole even
  if the model went on after it. Left out are marks around the line, that of a list before it ('1.',
  '2)' or '-'), and all backticks.

  Args:
    ended: whether the model ended the text.
    before: what stands before the text in the prompt; it may end in an opening mark.
  """
  lines = text.strip().splitlines() or ['']
  line = ' '.join(lines[0].replace('`', '').split())
  line = MARKER.sub('', line.lstrip(' *')).lstrip(' *')
  opening = before.rstrip()[-1:]
  if opening in CLOSING and line[:1] not in CLOSING:
    line = opening + line
  end = _closing(line)
  return line[: end or None].strip(QUOTES), bool(end) or ended


def _closing(line: str) -> int:
  """Where the quotation that a line begins with is closed; 0 if it begins with none.

  An apostrophe closes nothing, nor does the sign of inches or feet before the real closing mark. An
  apostrophe before a digit opens nothing: '90s.
  """
  if line[:1] in ("'", '\u2019') and line[1:2].isdigit():
    return 0
  signs = CLOSING.get(line[:1], '')
  places = [i for i in range(2, len(line)) if line[i] in signs and _may_close(line, i)]
  for here, after in itertools.pairwise(places):
    between = line[here + 1 : after]
    measure = line[here] in '"\'' and line[here - 1].isdigit()
    if not measure or OPENED.search(between):
      return here
  return places[-1] if places else 0


def _may_close(line: str, i: int) -> bool:
  before, goes_on = line[i - 1], line[i + 1 : i + 2].isalnum()
  if line[i] in '"\'':
    opens = before == ' ' or (before in '/-' and goes_on)
    if opens or line[:i].count('(') > line[:i].count(')'):
      return False
  return line[i] not in "'\u2018\u2019" or not goes_on


def first_sentence(query: str, ended: bool) -> tuple[str, bool]:
  """(the first sentence without its full stop, whether it is whole)."""
  end = words.END.search(query)
  return (query[: end.start()].strip(QUOTES), True) if end else (query, ended)


def key(text: str) -> str:
  """Letters and digits without case: two queries with the same key are the same query."""
  return ' '.join(words.all_of(words.folded(text)))


def own_words(text: str) -> set[str]:
  """The words of `key`, and those that letters of a script without blanks stand beside."""
  return {*key(text).split(), *key(words.RUN.sub(' ', text)).split()}


def main_scripts(text: str) -> set[str]:
  """The scripts of a real share of a text's letters, so not that of a name in another script."""
  found = scripts(text)
  return {script for script, count in found.items() if count >= SHARE * found.total()}


def scripts(text: str) -> collections.Counter[str]:
  """How many letters of each script a text has, such as LATIN or CJK, with Japan's kana."""
  letters = filter(str.isalpha, unicodedata.normalize('NFKC', text))
  names = (unicodedata.name(x, 'UNKNOWN').split()[0] for x in letters)
  return collections.Counter('CJK' if name in KANA else name for name in names)
