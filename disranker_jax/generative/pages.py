"""The collection as one text of token ids, in which every view of a page can be found.

  TITLE title END  body END  QUERY pseudo-query END  QUERY pseudo-query END ...

for each page, one page after the other. The anchors TITLE and QUERY are two ids behind the model's
vocabulary: they are never written, and mark where a title or a pseudo-query begins. A page without
a title has no anchor TITLE.
"""

import array
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.generative.prompts import Prompts
from disranker_jax.progress import amount, say

ARRAYS = ('text_N', 'starts_P', 'keys_P')  # of Pages
# Characters that are tokenised at once. What a tokenizer returns takes about 100 bytes for a token,
# three times as much as it takes to sort the suffixes.
PIECE = 2**20
NOTHING = 'with nothing of any view, so no search finds them'


def key(title: str, summary: str) -> int:
  """A hash of a page's text."""
  text = f'{title}\n{summary}'.encode('utf-8', 'surrogatepass')
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


@dataclasses.dataclass(frozen=True)
class Page:
  """The tokens of a page: its title and pseudo-queries with the end token, its body without."""

  title: np.ndarray  # empty if it has none
  body: np.ndarray
  queries: tuple[np.ndarray, ...]

  def of_view(self, view: str) -> tuple[np.ndarray, ...]:
    """What can be written of the page in a view."""
    one = {'title': (self.title,), 'body': (self.body,), 'query': self.queries}[view]
    return tuple(tokens for tokens in one if len(tokens))


@dataclasses.dataclass(frozen=True)
class Pages:
  """A collection's pages as tokens.

  text_N    int32
  starts_P  int64, where each page begins
  keys_P    uint64, a hash of each page's title and text
  doc_ids   of the pages
  vocab     the model's; the anchors are `vocab` (TITLE) and `vocab + 1` (QUERY)
  end       the token that ends a title, a body and a pseudo-query
  """

  text_N: np.ndarray
  starts_P: np.ndarray
  keys_P: np.ndarray
  doc_ids: tuple[str, ...]
  vocab: int
  end: int

  def __len__(self) -> int:
    return len(self.doc_ids)

  def __getitem__(self, number: int) -> Page:
    stop = self.starts_P[number + 1] if number + 1 < len(self) else len(self.text_N)
    tokens = self.text_N[self.starts_P[number] : stop]
    # `end` is in no text, so it splits them.
    *parts, _ = np.split(tokens, np.flatnonzero(tokens == self.end) + 1)
    title = parts.pop(0)[1:] if parts[0][0] == self.vocab else parts[0][:0]
    body, *queries = parts
    return Page(title, body[:-1], tuple(query[1:] for query in queries))

  def anchor(self, view: str) -> int | None:
    """What stands before everything that can be written in a view; None: it starts anywhere."""
    return {'title': self.vocab, 'query': self.vocab + 1}.get(view)

  def find(self, title: str, summary: str) -> int | None:
    """The number of the page with this text, the first of equal ones; None if there is none."""
    return self._places.get(key(title, summary))

  @functools.cached_property
  def _places(self) -> dict[int, int]:
    return {k: i for i, k in reversed(list(enumerate(self.keys_P.tolist())))}

  @functools.cached_property
  def numbers(self) -> dict[str, int]:
    """{doc_id: the page's number}."""
    return {doc_id: i for i, doc_id in enumerate(self.doc_ids)}

  def save(self, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
      np.save(folder / f'{name[:-2]}.npy', getattr(self, name))
    facts = {'doc_ids': self.doc_ids, 'vocab': self.vocab, 'end': self.end}
    (folder / 'pages.json').write_text(json.dumps(facts) + '\n', encoding='utf-8')

  @classmethod
  def load(cls, folder: Path) -> 'Pages':
    """Raises: UserError if the folder has no index."""
    try:
      facts = json.loads((folder / 'pages.json').read_text(encoding='utf-8'))
      arrays = [np.load(folder / f'{name[:-2]}.npy', mmap_mode='r') for name in ARRAYS]
      pages = cls(*arrays, tuple(facts['doc_ids']), int(facts['vocab']), int(facts['end']))
      if not len(pages) == len(pages.starts_P) == len(pages.keys_P):
        raise ValueError(f'{amount(len(pages), "id")} for {amount(len(pages.starts_P), "page")}')
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise UserError(
        f'{folder}: has no readable index ({type(e).__name__}: {e}); build it with the stage index'
      ) from e
    return pages


def build(
  docs: Sequence[Document], queries: Mapping[str, Sequence[str]], prompts: Prompts
) -> tuple[Pages, dict[str, int]]:
  """(the pages, counts of what is missing or cut).

  Args:
    queries: the pseudo-queries of a document, by its id.

  Raises: UserError for an empty collection.
  """
  if not docs:
    raise UserError('config.data.documents: has no document; a retriever needs some to find')
  vocab, end = prompts.model.network.config.vocab, prompts.end
  views = prompts.model.settings.views
  seen: set[bytes] = set()
  counts = dict.fromkeys(('without a title', 'without a text', 'without a pseudo-query',
                          'with a cut title', 'with a cut pseudo-query',
                          'with the title of another page', NOTHING), 0)  # fmt: skip
  text, starts = array.array('i'), array.array('q')  # they grow without a copy of each page
  for doc, title, body, written in tokenised(docs, queries, prompts):
    page = []
    if doc.title.strip() and 'title' in views:
      room = prompts.length('title') - 1
      counts['with a cut title'] += len(title) > room
      counts['with the title of another page'] += (cut := title[:room].tobytes()) in seen
      seen.add(cut)
      page += [[vocab], title[:room], [end]]
    elif 'title' in views:
      counts['without a title'] += 1
    counts['without a text'] += not doc.summary.strip()
    page += [body if doc.summary.strip() else body[:0], [end]]
    room = prompts.length('query') - 1
    for query in written:
      page += [[vocab + 1], query[:room], [end]]
    counts['with a cut pseudo-query'] += any(len(query) > room for query in written)
    counts['without a pseudo-query'] += 'query' in views and not written
    has = {'title': doc.title.strip(), 'body': doc.summary.strip(), 'query': written}
    counts[NOTHING] += not any(has[view] for view in views)
    starts.append(len(text))
    text.frombytes(np.concatenate(page).astype(np.intc).tobytes())
  keys_P = np.array([key(doc.title, doc.summary) for doc in docs], np.uint64)
  doc_ids = tuple(doc.doc_id for doc in docs)
  text_N = np.frombuffer(text, np.intc).astype(np.int32, copy=False)
  found = Pages(text_N, np.array(starts, np.int64), keys_P, doc_ids, vocab, end)
  return found, {what: count for what, count in counts.items() if count}


def without(docs: Sequence[Document]) -> dict[str, int]:
  """How many documents have no title and how many no text, as `build` counts them."""
  return {
    'without a title': sum(not doc.title.strip() for doc in docs),
    'without a text': sum(not doc.summary.strip() for doc in docs),
  }


def tokenised(
  docs: Sequence[Document], queries: Mapping[str, Sequence[str]], prompts: Prompts
) -> Iterator[tuple[Document, np.ndarray, np.ndarray, list[np.ndarray]]]:
  """(document, tokens of its title, of its text, and of each pseudo-query), for all documents.

  About PIECE characters are tokenised at once.
  """
  views = prompts.model.settings.views

  def texts_of(doc: Document) -> Texts:
    title = doc.title if 'title' in views else ''
    return Texts(doc, title, queries.get(doc.doc_id, ()) if 'query' in views else ())

  for piece in pieces(map(texts_of, docs)):
    titles = prompts.texts([page.title for page in piece])
    bodies = prompts.texts([page.doc.summary for page in piece])
    written = iter(prompts.texts([query for page in piece for query in page.queries]))
    for page, title, body in zip(piece, titles, bodies, strict=True):
      yield page.doc, title, body, [next(written) for _ in page.queries]


@dataclasses.dataclass(frozen=True)
class Texts:
  """What is tokenised of a page: its title, the document's text and the pseudo-queries."""

  doc: Document
  title: str  # empty without the view
  queries: Sequence[str]

  @property
  def characters(self) -> int:
    return len(self.title) + len(self.doc.summary) + sum(map(len, self.queries))


def pieces(pages: Iterable[Texts]) -> Iterator[list[Texts]]:
  """The pages in order, in lists of at most PIECE characters, or of one page."""
  piece, size = [], 0
  for page in pages:
    if piece and size + page.characters > PIECE:
      yield piece
      piece, size = [], 0
    piece.append(page)
    size += page.characters
  if piece:
    yield piece


def say_counts(pages: Pages, counts: Mapping[str, int]) -> None:
  lost = ''.join(f'; {count:,} {what}' for what, count in counts.items())
  say(f'index: {amount(len(pages), "page")}, {amount(len(pages.text_N), "token")}{lost}')
