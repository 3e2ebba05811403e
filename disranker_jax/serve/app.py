"""The ASGI application: routes, limits, and the path of a request from body to response."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from disranker_jax import __version__
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.prompts import CHARS_PER_TOKEN
from disranker_jax.errors import UserError
from disranker_jax.rankers import loaded
from disranker_jax.serve import access, apis, bodies, page
from disranker_jax.serve.access import Access
from disranker_jax.serve.admission import TEXT_BYTES, Admission, Visit
from disranker_jax.serve.batching import Batcher
from disranker_jax.serve.errors import Refused
from disranker_jax.serve.metrics import Metrics


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of a request and of the queue; a request beyond them gets an error status."""

  texts: int = 1000  # per request: 413
  body_bytes: int = 2_000_000  # 413
  requests: int = 512  # inside the server, from head to answer: 429
  held_bytes: int = 100_000_000  # of all requests together (`admission`): 429
  batch_tokens: int = 16384  # batched together
  timeout_s: float = 30.0  # from the end of the body to the scores: 503
  body_timeout_s: float = 10.0  # for a client to send its body: 408
  idle_s: float = 75.0  # between two requests of a connection, which is then closed


# Characters that one step in a thread tokenises. Requests take turns step by step, and those of a
# client that has left take no further one.
PART_CHARS = 16 * 1024


class Service:
  """The loaded model with its queue of requests: the state that all routes share."""

  def __init__(
    self, load: Callable, name: str, limits: Limits, access: Access | None = None, search=None
  ):
    """`load()` returns a LoadedRanker and may take long; `search` is a page.Search or None."""
    self.load, self.name, self.limits, self.search = load, name, limits, search
    self.access = access or Access()
    self.admission = Admission(limits.requests, limits.held_bytes)
    self.metrics = Metrics(self.admission.inside)
    self.ranker = self.batcher = self.failure = None
    self.on_failure = lambda: None  # called when loading fails
    self._large = asyncio.Semaphore()
    self._threads = concurrent.futures.ThreadPoolExecutor(2, 'tokenise')

  async def start(self) -> None:
    """Loads the model in a thread; until then requests get status 503."""
    try:
      self.ranker = await self.aside(self.load)
      if self.search:
        await self.aside(self.search.load)
    except Exception as e:
      self.failure = e
      self.on_failure()
      return
    self.batcher = Batcher(self.ranker.backend, self.metrics, self.limits.batch_tokens)

  async def stop(self) -> None:
    if self.batcher:
      await self.batcher.close()
    self._threads.shutdown(wait=True)

  def check_ready(self) -> None:
    if not self.batcher:
      raise Refused(503, 'Unhealthy', 'the model is loading; try again soon')

  async def aside(self, work: Callable, *arguments):
    """The result of `work(*arguments)`, which runs in a thread.

    A thread cannot be stopped, so a request that is cancelled stays inside until it ends.
    """
    job = self._threads.submit(work, *arguments)
    done = asyncio.wrap_future(job)
    try:
      return await asyncio.shield(done)
    except asyncio.CancelledError:
      if not job.cancel():
        await asyncio.wait([done])
        done.exception()  # so that asyncio does not report it
      raise

  async def _encode(self, request: apis.ScoreRequest) -> list[Encoded]:
    """The token ids of a request's pairs. Raises: Refused if the tokenizer fails."""

    def encode(pairs):
      try:
        return self.ranker.encode(pairs, **request.limits)
      except BaseException as e:  # a panic of the Rust tokenizer is no Exception
        raise Refused(500, 'Tokenizer', f'the tokenizer failed: {type(e).__name__}') from None

    read = CHARS_PER_TOKEN * self.ranker.prompt.max_len  # of most texts
    # Blanks and the like are read until there are enough tokens, but fast.
    size = sum(min(len(text), read) + len(text) // 64 for _, text in request.pairs)
    if size + sum(len(query) for query in {query for query, _ in request.pairs}) <= PART_CHARS:
      return await self.aside(encode, request.pairs)
    encoded = []
    for pairs in parts(request.pairs, 4 * read):
      # One step of a large request at a time, so that a thread is left for small ones.
      async with self._large:
        encoded += await self.aside(encode, pairs)
    return encoded

  async def score(self, request: apis.ScoreRequest, visit: Visit) -> tuple[object, dict[str, str]]:
    """(body, headers) of the response to a checked request."""
    count, most = len(request.pairs), self.limits.texts
    if count > most:
      raise apis.too_many(count, most)
    weight = self._weight(request.first)
    visit.hold(count * TEXT_BYTES)
    begin = time.perf_counter()
    characters = sum(len(text) for _, text in request.pairs)
    encoded = await self._encode(request)
    cut_queries = {
      query for (query, _), pair in zip(request.pairs, encoded, strict=True) if pair.cut_query
    }
    request.pairs = []  # texts stay in memory only if the answer repeats them
    tokenised = time.perf_counter()
    visit.seconds['tokenise'] = tokenising = tokenised - begin
    truncated = sum(pair.cut for pair in encoded)
    if (truncated or cut_queries) and not request.truncate:
      raise Refused(413, 'Validation', self._too_long(request, truncated, len(cut_queries)))
    job = await self.batcher.score(encoded)
    total = time.perf_counter() - begin
    queue = max(0.0, (job.started or tokenised) - tokenised)
    visit.seconds |= {'queue': queue, 'infer': job.infer_s}
    self.metrics.scored(count, sum(pair.cut or pair.cut_query for pair in encoded))
    headers = {
      'x-compute-time': f'{1000 * total:.1f}',
      'x-tokenization-time': f'{1000 * tokenising:.1f}',
      'x-queue-time': f'{1000 * queue:.1f}',
      'x-inference-time': f'{1000 * (total - tokenising - queue):.1f}',
      'x-compute-tokens': str(job.tokens),
      'x-compute-characters': str(characters),
      'x-truncated': str(truncated),
      'x-truncated-queries': str(len(cut_queries)),
    }
    scores = job.scores
    if request.first is not None:
      scores = loaded.fused(scores, request.first.scores, weight)
    return request.answer(scores, job.tokens), headers

  def _weight(self, first: apis.FirstStage | None) -> float:
    """The model's weight. Raises: Refused if neither the request nor the folder has one for it."""
    if first is None:
      return 1.0
    try:
      return loaded.weighted(self.ranker.fusion, first.weight, 'fuse', first.signal).weight
    except UserError as e:
      raise apis.invalid(str(e)) from None

  def _too_long(self, request: apis.ScoreRequest, texts: int, queries: int) -> str:
    """What does not fit, and the limits of the model or of the request."""
    prompt, limits = self.ranker.prompt, request.limits
    pair, query = (
      min(own, limits.get(name) or own)
      for own, name in (
        (prompt.max_len, 'max_tokens'), (prompt.max_query_len, 'max_query_tokens')
      )
    )  # fmt: skip
    found = []
    if queries:
      what = 'the query loses its' if queries == 1 else f'{queries} queries lose their'
      found.append(f'{what} end (most tokens of a query: {query})')
    if texts:
      what = '1 text loses its' if texts == 1 else f'{texts} texts lose their'
      most = limits.get('max_text_tokens')
      of_text = f', of a text: {most}' if most else ''
      found.append(f'{what} end (most tokens of query and text: {pair}{of_text})')
    return f'{"; ".join(found)}; shorten them, or let them be truncated'

  def info(self) -> dict:
    """The response of TEI's `/info`."""
    labels = {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
    return {
      'model_id': self.name,
      'model_sha': None,
      'model_dtype': self.ranker.backend.name,
      'model_type': {'reranker': labels},
      'max_concurrent_requests': self.limits.requests,
      'max_input_length': self.ranker.prompt.max_len,
      'max_batch_tokens': self.limits.batch_tokens,
      'max_batch_requests': None,
      'max_client_batch_size': self.limits.texts,
      'auto_truncate': True,
      'tokenization_workers': 2,
      'version': __version__,
    }


def parts(pairs: list[tuple[str, str]], most: int) -> Iterator[list[tuple[str, str]]]:
  """The pairs in parts of about PART_CHARS characters, of which at most `most` a text count."""
  part, chars, last = [], 0, None
  for query, text in pairs:
    size = min(len(text), most) + (0 if query is last else min(len(query), most))
    if part and chars + size > PART_CHARS:
      yield part
      part, chars = [], 0
    part.append((query, text))
    chars, last = chars + size, query
  if part:
    yield part


async def while_connected(request: Request, work, timeout_s: float):
  """The result of `work`, which is cancelled when the client disconnects or the time is up.

  Raises: ClientDisconnect; Refused with status 503 after `timeout_s`.
  """

  async def disconnected():
    while (await request.receive())['type'] != 'http.disconnect':
      pass

  task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
  try:
    await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
      return task.result()
    if gone.done():
      raise ClientDisconnect
    raise Refused(503, 'Overloaded', f'not scored within {timeout_s:g} seconds')
  finally:
    for each in (task, gone):
      each.cancel()
      with contextlib.suppress(asyncio.CancelledError, Exception):
        await each


class Post:
  """A POST route, as an ASGI application: a request's way from its head to its answer.

  `parse(body)` checks the JSON object and returns what is needed of it. `await work(asked, visit)`
  returns (body, headers) of the answer. `error` writes a Refused.
  """

  def __init__(self, service: Service, path: str, parse: Callable, work: Callable, error: Callable):
    self._service, self._path = service, path
    self._parse, self._work, self._error = parse, work, error

  async def __call__(self, scope, receive, send):
    service, request = self._service, Request(scope, receive)
    with Visit(service.admission) as visit:
      try:
        value, headers = await self._answer(request, visit)
        response = JSONResponse(value, headers=headers)
      except Refused as e:
        response = JSONResponse(self._error(e), e.status)
      except ClientDisconnect:
        response = Response(status_code=499)  # only for the metrics
      service.metrics.answered(self._path, response.status_code, visit.seconds, visit.waited())
      # Inside the visit, because a client that does not read can make this wait.
      await response(scope, receive, send)

  async def _answer(self, request: Request, visit: Visit):
    service, limits = self._service, self._service.limits
    access.check_page(request, service.access.origins)
    access.check_token(request, service.access.token)
    access.check_type(request.headers)
    service.check_ready()
    visit.enter()
    # The body is in no variable: only what `parse` keeps of it stays in memory while it is scored.
    asked = self._parse(
      bodies.parse(await bodies.read(request, visit, limits.body_bytes, limits.body_timeout_s))
    )
    return await while_connected(request, self._work(asked, visit), limits.timeout_s)


def scoring(service: Service, path: str) -> Post:
  """The route of one of `apis.APIS`."""

  def parse(body):
    return apis.read(path, body, service.name, service.limits.texts)

  return Post(service, path, parse, service.score, apis.APIS[path].error)


def cross_origin(origins: Sequence[str]) -> Middleware:
  """Lets pages of the origins ('*': any) call the server and read its headers."""
  return Middleware(
    CORSMiddleware,
    allow_origins=origins,
    allow_methods=['GET', 'POST'],
    allow_headers=['*'],
    expose_headers=['x-compute-time', 'x-compute-tokens', 'x-truncated', 'x-truncated-queries'],
  )


def build(service: Service) -> Starlette:
  """The application; its lifespan loads the model and stops the workers at the end."""

  @contextlib.asynccontextmanager
  async def lifespan(_):
    loading = asyncio.create_task(service.start())
    try:
      yield
    finally:
      await loading
      await service.stop()

  async def health(_):
    if not service.batcher:
      return JSONResponse(apis.tei_error(Refused(503, 'Unhealthy', 'loading')), 503)
    return Response(status_code=200)

  async def info(request):
    try:
      access.check_token(request, service.access.token)
      service.check_ready()
    except Refused as e:
      return JSONResponse(apis.tei_error(e), e.status)
    return JSONResponse(service.info())

  async def metrics(_):
    return Response(service.metrics.text(), media_type='text/plain; version=0.0.4')

  routes = [
    *(Route(path, scoring(service, path), methods=['POST']) for path in apis.APIS),
    Route('/health', health),
    Route('/info', info),
    Route('/metrics', metrics),
    Route('/', page.show(service)),
  ]
  if service.search:
    answer = functools.partial(service.search.answer, service)
    search = Post(service, '/search', page.read, answer, apis.tei_error)
    routes.append(Route('/search', search, methods=['POST']))
  middleware = [Middleware(access.Hosts, allowed=service.access.hosts)]
  if service.access.origins:
    middleware.append(cross_origin(service.access.origins))
  app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
  # A redirect to the path without its slash would name whatever host the request names.
  app.router.redirect_slashes = False
  return app
