"""The built-in collection: search over the docstrings of Python or of packages.

It is available on every machine that runs this program, it is real text, and anyone can judge a
ranking. A page is a documented object. A query is the first sentence of a docstring; the page of
that docstring does not contain it.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from disranker_jax.data import docstrings
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import UNJUDGED, BadRows, Click, Document, Group
from disranker_jax.data.source import POOLED, SCORES, Source, Text, Want
from disranker_jax.errors import UserError

LIBRARY = (docstrings.LIBRARY,)
SHARES = {'clicks': 0.35, 'judgements': 0.20, 'candidates': 0.30, 'test': 0.15}
OWN_PAGE, SAME_SENTENCE, SAME_CLASS, SAME_MODULE, OTHER = 4, 3, 2, 1, 0
OWN_PAGE_ALONE = 1  # the label where no other page is judged
JUDGED = RULE, PAGE = 'rule', 'page'
MIN_QUERY_WORDS = 4
MIN_REST_CHARS = 40  # of a page without its first sentence, for that to be a query
MAX_SUMMARY_CHARS = 1000


class PythonDocs(Source):
  """The collection at an address, `python_docs:?packages=numpy&splits=judgements`."""

  scheme, example = 'python_docs', 'python_docs:'
  built_in = "Python's documentation"
  ranked_by_bm25 = True

  @property
  def packages(self) -> tuple[str, ...]:
    """The packages whose documentation is read."""
    options = self._options()
    more, only = (tuple(filter(None, options.get(o, '').split(','))) for o in ('packages', 'only'))
    return (*(only or LIBRARY), *more)

  def _options(self) -> dict[str, str]:
    path, options = self.options(('packages', 'only', 'judged', 'splits'))
    if path:
      raise UserError(f'{self.address}: takes no path; write python_docs:?packages=numpy,jax')
    for name, known in (('judged', JUDGED), ('splits', SHARES)):
      if wrong := [part for part in options.get(name, '').split(',') if part and part not in known]:
        raise UserError(
          f'{self.address}: {name}={",".join(wrong)} is none of {", ".join(known)}; docs/data.md '
          'has them'
        )
    return options

  def read(self, want: Want) -> Iterator[Click | Group]:
    options, packages = self._options(), self.packages
    if want.kind == 'clicks':
      if 'splits' in options:
        raise UserError(f'{self.address}: clicks are one split; leave out splits')
      return clicks(packages)
    if want.kind == SCORES:
      raise self.no_scores()
    kind = 'judgements' if want.kind == POOLED else want.kind  # this source labels every document
    splits = tuple(filter(None, options.get('splits', '').split(',')))
    judged = options.get('judged', RULE)
    return groups(kind, want.depth, packages, judged=judged, splits=splits)

  def documents(self, bad_rows: BadRows) -> Iterator[tuple[str, int, Document]]:
    for number, doc in enumerate(documents(self.packages), 1):
      yield self.address, number, doc

  def texts(self, scratch: Path) -> Iterator[tuple[str, str] | Text]:
    packages = self.packages
    yield from queries(packages)
    yield from map(Text.of, documents(packages))

  def fingerprint(self) -> list:
    return [self.address, platform.python_version(), *map(_version, self.packages)]

  def topics(self) -> dict[str, str]:
    # Those of the module: a page's own name is of no use to other queries.
    return module_words(self.packages)


def _version(package: str) -> str:
  distributions = importlib.metadata.packages_distributions().get(package, ())
  return ' '.join(map(importlib.metadata.version, distributions))


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
  """A documented object as a page of a search engine, with what determines the labels."""

  doc: Document
  module: str
  owner: str  # the class of a method, or a class itself; else empty
  sentence: str  # the first sentence of the docstring, not part of the page
  key: str  # the sentence without case and punctuation: equal keys are the same query
  is_query: bool  # whether the sentence is used as a query


def documents(packages: tuple[str, ...] = LIBRARY) -> tuple[Document, ...]:
  """All pages of the collection, sorted by name, without labels, ranks or scores."""
  return tuple(page.doc for page in _pages(packages))


def queries(packages: tuple[str, ...] = LIBRARY) -> Iterator[tuple[str, str]]:
  """(query_id, query) of all splits."""
  for kind in SHARES:
    for page in _queries(kind, packages):
      yield page.doc.doc_id, page.sentence


def clicks(packages: tuple[str, ...] = LIBRARY) -> Iterator[Click]:
  """The split `clicks`: each query with its own page."""
  for page in _queries('clicks', packages):
    yield Click(page.sentence, page.doc.title, page.doc.summary)


def groups(
  kind: str,
  depth: int = 20,
  packages: tuple[str, ...] = LIBRARY,
  *,
  judged: str = RULE,
  splits: tuple[str, ...] = (),
) -> Iterator[Group]:
  """The queries of a split, each with the top `depth` documents of BM25, their ranks and scores.

  `candidates` are unjudged. `judgements` and `test` have labels, by one of JUDGED:
    RULE  every document has a label 0..4; only the queries whose own page is among the documents
    PAGE  for retrieval from the whole collection: every query; its own page has label 1 and the
          other documents none. A page that BM25 does not find follows them, with rank 0, outside of
          the pool
  `splits` are read instead of the one that is called like the kind.
  """
  if kind not in ('judgements', 'candidates', 'test'):
    raise ValueError(f'no groups of kind {kind!r}')
  queries = [page for split in splits or (kind,) for page in _queries(split, packages)]
  pages = _pages(packages)
  ranking = _index(packages).top([page.sentence for page in queries], depth)
  for query, top in zip(queries, ranking, strict=True):
    ranked = [(pages[i], rank, score) for rank, (i, score) in enumerate(top, 1)]
    is_found = any(page is query for page, _, _ in ranked)
    if not is_found and (not ranked if kind == 'candidates' else judged != PAGE):
      continue
    docs = [
      dataclasses.replace(
        page.doc,
        label=UNJUDGED if kind == 'candidates' else label(query, page, judged),
        rank=rank,
        score=score,
      )
      for page, rank, score in ranked
    ]
    if kind != 'candidates' and not is_found:
      docs.append(dataclasses.replace(query.doc, label=label(query, query, judged), in_pool=False))
    yield Group(query.doc.doc_id, query.sentence, tuple(docs))


def module_words(packages: tuple[str, ...] = LIBRARY) -> dict[str, str]:
  """{doc_id: the words of its module's name}, such as 'http client' of every page in it."""
  return {page.doc.doc_id: _words(page.module) for page in _pages(packages)}


def label(query: Page, page: Page, judged: str = RULE) -> int:
  """The relevance of `page` for the first sentence of `query`; see `groups`."""
  if judged == PAGE:
    return OWN_PAGE_ALONE if page is query else UNJUDGED
  if page.doc.doc_id == query.doc.doc_id:
    return OWN_PAGE
  if page.key == query.key:
    return SAME_SENTENCE
  if query.owner and page.owner == query.owner:
    return SAME_CLASS
  return SAME_MODULE if page.module == query.module else OTHER


def split_of(key: str) -> str:
  """The split of a query, by a hash that is the same on every machine and Python version."""
  point = int.from_bytes(hashlib.sha1(key.encode()).digest()[:8], 'big') / 2**64
  for kind, share in SHARES.items():
    if point < share:
      return kind
    point -= share
  return 'test'  # if the sum of the shares is rounded below 1


def statistics(packages: tuple[str, ...] = LIBRARY, depth: int = 20) -> dict[str, object]:
  """Statistics of the collection: counts, quality of BM25, lengths in words."""
  pages = _pages(packages)
  queries = [page for kind in SHARES for page in _queries(kind, packages)]
  position = {page.doc.doc_id: i for i, page in enumerate(pages)}
  ranking = _index(packages).top([page.sentence for page in queries], depth)
  own = [position[page.doc.doc_id] for page in queries]
  rows = [(i, [j for j, _ in top]) for i, top in zip(own, ranking, strict=True)]
  splits = collections.Counter(split_of(page.key) for page in queries)
  kept = {
    kind: sum(1 for _ in groups(kind, depth, packages)) for kind in SHARES if kind != 'clicks'
  }
  return {
    'documents': len(pages),
    'queries': len(queries),
    'own_page_first': sum(top[:1] == [i] for i, top in rows) / len(rows),
    f'own_page_in_top_{depth}': sum(i in top for i, top in rows) / len(rows),
    'queries_per_split': dict(splits),
    'groups_per_split': {'clicks': splits['clicks'], **kept},
    'query_words_p5_p50_p95_max': _percentiles([page.sentence for page in queries]),
    'document_words_p5_p50_p95_max': _percentiles(
      [f'{page.doc.title} {page.doc.summary}' for page in pages]
    ),
  }


@functools.lru_cache(maxsize=4)
def _pages(packages: tuple[str, ...]) -> tuple[Page, ...]:
  pages = tuple(_page(entry) for entry in docstrings.find(packages))
  if not pages:
    raise UserError(
      f'python_docs: this Python has no source files of {", ".join(packages)}; '
      'use another Python, other packages or another data address'
    )
  return pages


@functools.lru_cache(maxsize=4)
def _index(packages: tuple[str, ...]) -> BM25:
  return BM25(documents(packages))


def _page(entry: docstrings.Entry) -> Page:
  sentence, rest = _first_sentence(entry.doc)
  summary = ' '.join(f'{entry.signature} {rest}'.split())
  if len(summary) > MAX_SUMMARY_CHARS:
    summary = summary[:MAX_SUMMARY_CHARS].rsplit(' ', 1)[0]
  is_query = len(sentence.split()) >= MIN_QUERY_WORDS and len(rest) >= MIN_REST_CHARS
  doc = Document(entry.name, _words(entry.name), summary)
  return Page(doc, entry.module, entry.owner, sentence, _key(sentence), is_query)


def _queries(kind: str, packages: tuple[str, ...]) -> Iterator[Page]:
  """Pages whose sentence is a query of the split; the first of pages with the same query."""
  seen = set()
  for page in _pages(packages):
    if page.is_query and page.key not in seen:
      seen.add(page.key)
      if split_of(page.key) == kind:
        yield page


def _first_sentence(doc: str) -> tuple[str, str]:
  """Splits a docstring into its first sentence and the rest, both on one line."""
  head, _, tail = doc.strip().partition('\n\n')
  head = ' '.join(head.split())
  for end in re.finditer(r'[.!?](?=\s)', head):
    # Not after "e.g.", "i.e.", "etc." or an initial.
    if not re.search(r'(?:\b[A-Za-z]|\betc|\bvs|\bcf)\.$', head[: end.end()]):
      head, tail = head[: end.end()], f'{head[end.end() :]} {tail}'
      break
  return head.strip(' .:'), ' '.join(tail.split())


def _words(name: str) -> str:
  """A dotted name as words: 'http.client.HTTPResponse' -> 'http client HTTP Response'."""
  spaced = re.sub(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', name)
  return ' '.join(re.split(r'[\s._]+', spaced.strip('_')))


def _key(sentence: str) -> str:
  return ' '.join(re.findall(r'\w+', sentence.lower()))


def _percentiles(texts: list[str]) -> list[int]:
  lengths = [len(text.split()) for text in texts]
  return [int(n) for n in np.percentile(lengths, (5, 50, 95, 100))]


if __name__ == '__main__':
  for name, value in statistics().items():
    print(f'{name}: {value}')
