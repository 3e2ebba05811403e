"""The page at `/`: first-stage and re-ranked results of a query, side by side.

With a rewriter the first stage searches the rewritten query; the re-ranker reads the query itself.
"""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse

from disranker_jax.data.prompts import CHARS_PER_TOKEN, document_text
from disranker_jax.evaluation import fusion
from disranker_jax.rankers.loaded import order
from disranker_jax.rewriting.engines import ENGINES
from disranker_jax.rewriting.loaded import Rewritten
from disranker_jax.serve import apis
from disranker_jax.serve.admission import Visit
from disranker_jax.serve.errors import Refused

TEMPLATE = (Path(__file__).parent / 'page.html').read_text(encoding='utf-8')
# The page loads nothing from other hosts, and other sites may not frame it.
HEADERS = {
  'content-security-policy': "default-src 'none'; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
}
SUMMARY_CHARS = 300
REMEMBERED = 1024  # queries with their rewrites


class Asked(NamedTuple):
  """What a request to `/search` asks for."""

  query: str
  raw: bool  # scores without a sigmoid
  fuse: bool | float = False  # with BM25: by the weight of the model folder, or by this one
  rewrite: bool = True  # where the server has a rewriter


def named(address: str) -> str:
  """What callers may know of a collection's address: neither its folder nor its options."""
  scheme, colon, rest = address.partition(':')
  if scheme == 'ir_datasets':  # a name, not a path
    return address.partition('?')[0]
  if not colon:
    return PurePath(address).name
  if scheme not in ('jsonl', 'parquet'):  # whose question marks are part of a pattern
    rest = rest.partition('?')[0]
  return f'{scheme}:{PurePath(rest).name}'.removesuffix(':')


def read(body: dict) -> Asked:
  """The fields of `/search`. Raises: Refused if one of them is wrong."""
  fuse = body.get(apis.FUSE)
  if fuse is not None and not isinstance(fuse, bool):
    apis.weight(fuse)
  rewrite = apis.get(body, 'rewrite', bool, True)
  return Asked(apis.query(body), apis.raw_scores(body), False if fuse is None else fuse, rewrite)


class Search:
  """A collection with a BM25 index; `load` calls `documents()` and `rewriter()` once.

  Args:
    rewriter: returns a rewriting.loaded.LoadedRewriter; None: queries are searched as they are.
    name: of the collection, which answers have.
  """

  def __init__(
    self, documents, depth: int = 20, rewriter: Callable | None = None, name: str = 'the collection'
  ):
    self._documents, self._depth, self._open_rewriter = documents, depth, rewriter
    self._name = name
    self.rewrites = rewriter is not None
    # One at a time, so that a thread is left for the queries of others.
    self._turn = asyncio.Semaphore()

  def load(self) -> None:
    self._docs, engine = tuple(self._documents()), 'bm25'
    if self._open_rewriter:
      rewriter = self._open_rewriter()
      rewriter('a')  # compiles
      self._rewriter, engine = rewriter, rewriter.engine
      self._rewrite = functools.lru_cache(REMEMBERED)(rewriter)
    self._index = ENGINES[engine](self._docs)

  async def _searched(self, service, words: str, asked: Asked, visit: Visit) -> tuple[str, dict]:
    """(the text that is searched, what the answer says of the rewrite)."""
    if not (self.rewrites and asked.rewrite):
      return words, {}
    with visit.step('rewrite'):
      async with self._turn:
        rewrite = await service.aside(self._rewritten, asked.query[: self._rewriter.reads])
    text = self._rewriter.searched(words, rewrite)
    return text, Rewritten(rewrite, text)._asdict()

  def _rewritten(self, query: str) -> str:
    try:
      return self._rewrite(query).rewrite
    except BaseException as e:  # a panic of the Rust tokenizer is no Exception
      raise Refused(500, 'Rewriter', f'the rewriter failed: {type(e).__name__}') from None

  async def answer(self, service, asked: Asked, visit: Visit):
    """(body, headers): documents in BM25's order, each with both ranks and both scores."""
    # The re-ranker reads the beginning of a query only, and BM25's time grows with each word. A
    # rewriter may read more.
    words = asked.query[: service.ranker.prompt.max_query_len * CHARS_PER_TOKEN]
    text, rewritten = await self._searched(service, words, asked, visit)
    depth = min(self._depth, service.limits.texts)
    with visit.step('search'):
      [hits] = await service.aside(self._index.top, [text], depth)
    docs = [self._docs[i] for i, _ in hits]
    of = {'documents': len(self._docs), 'collection': self._name, 'model': service.name}
    if not docs:
      return {'results': [], 'texts': [], **of, **rewritten}, {}
    texts = [document_text(doc) for doc in docs]
    pairs = [(asked.query, text) for text in texts]
    request = apis.ScoreRequest(pairs, lambda scores, _: scores)
    if asked.fuse is not False:
      recorded = service.ranker.fusion
      signal = recorded.signal if recorded else 'scores'
      first = {i: score for i, (_, score) in enumerate(hits)}
      if signal == 'ranks':
        first = fusion.of_ranks({i: i + 1 for i in first})
      weight = None if asked.fuse is True else asked.fuse
      request.first = apis.FirstStage(first, weight, signal)
    raw, headers = await service.score(request, visit)
    scores = apis.shown(raw, asked.raw or request.first is not None)
    rank = {index: n for n, index in enumerate(order(raw), 1)}
    results = [
      {
        'doc_id': doc.doc_id,
        'title': doc.title,
        'summary': doc.summary[:SUMMARY_CHARS],
        'bm25': score,
        'first': i + 1,
        'score': scores[i],
        'rank': rank[i],
      }
      for i, (doc, (_, score)) in enumerate(zip(docs, hits, strict=True))
    ]
    return {'results': results, 'texts': texts, **of, **rewritten}, headers


def show(service):
  """The endpoint of the page; it has a field for the token if the server requires one."""

  async def endpoint(_: Request) -> HTMLResponse:
    options = {'search': bool(service.search), 'token': bool(service.access.token)}
    recorded = service.ranker and service.ranker.fusion
    options |= {'fuse': recorded.signal if recorded else False}  # what the weight is for
    options |= {'rewrite': bool(service.search and service.search.rewrites)}
    attributes = ' '.join(f'data-{k}="{str(v).lower()}"' for k, v in options.items())
    return HTMLResponse(TEMPLATE.replace('<body>', f'<body {attributes}>', 1), headers=HEADERS)

  return endpoint
