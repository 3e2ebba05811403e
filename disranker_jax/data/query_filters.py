"""Decides which generated queries are kept. What is left out is counted by its reason.

A query is compared with its document, with the queries before it, and with those of a test.
"""

import collections
import unicodedata
from collections.abc import Iterable

from disranker_jax.data import words
from disranker_jax.data.records import Document

EMPTY, BROKEN, LONG = 'empty', 'broken characters', 'too long'
TITLE, SCRIPT, TEST = 'the title copied', 'in another script', 'a query of the test'
DUPLICATE, NOT_FOUND = 'duplicate', 'page not found'
# In the order in which they are looked at: of several faults the first one counts.
REASONS = (EMPTY, BROKEN, LONG, TITLE, SCRIPT, TEST, DUPLICATE, NOT_FOUND)
QUOTES = ' "\'`*\u201c\u201d\u2018\u2019\u00ab\u00bb'


class Filters:
  """Takes queries one after the other, and counts.

  Args:
    tests: the texts of test queries.
    max_words: a query with more words is too long.
  """

  def __init__(self, tests: Iterable[str], max_words: int):
    self._tests = {key(text) for text in tests}
    self._seen: set[str] = set()
    self._max_words = max_words
    self.counts: collections.Counter[str] = collections.Counter()

  def reason(self, doc: Document, query: str, ended: bool) -> str:
    """Why a query is left out; '' if it is kept.

    Args:
      query: as `tidy` returns it.
      ended: whether the model ended it; False if it was cut.
    """
    why = self._reason(doc, query, ended)
    self.counts[why] += 1
    if not why:
      self._seen.add(key(query))
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
    written = scripts(query)
    if written and written.most_common(1)[0][0] not in scripts(f'{doc.title} {doc.summary}'):
      return SCRIPT
    if same in self._tests:
      return TEST
    return DUPLICATE if same in self._seen else ''

  def not_found(self) -> None:
    """Counts a query that was kept and whose document the round trip does not find."""
    self.counts[''] -= 1
    self.counts[NOT_FOUND] += 1

  def by_reason(self) -> dict[str, int]:
    """{reason: how many} in the order of REASONS, without zeros."""
    return {why: self.counts[why] for why in REASONS if self.counts[why]}


def tidy(text: str) -> str:
  """The first line of a text, without quotes around it and with single spaces."""
  lines = text.strip().splitlines()
  return ' '.join(lines[0].split()).strip(QUOTES) if lines else ''


def first_sentence(query: str, ended: bool) -> tuple[str, bool]:
  """(the first sentence without its full stop, whether it is whole)."""
  end = words.END.search(query)
  return (query[: end.start()].strip(QUOTES), True) if end else (query, ended)


def key(text: str) -> str:
  """Letters and digits without case: two queries with the same key are the same query."""
  return ' '.join(words.all_of(words.folded(text)))


def scripts(text: str) -> collections.Counter[str]:
  """How many letters of each script a text has, such as LATIN, CYRILLIC or CJK."""
  letters = filter(str.isalpha, text)
  return collections.Counter(unicodedata.name(x, 'UNKNOWN').split()[0] for x in letters)
