"""The ASGI application: routes, limits, and the path of a request from body to response."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import hmac
import json
import time
import zlib
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from disranker_jax import __version__
from disranker_jax.serve import apis, page
from disranker_jax.serve.batching import Batcher
from disranker_jax.serve.encoding import KINDS, Inflater
from disranker_jax.serve.errors import Refused
from disranker_jax.serve.metrics import Metrics


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of a request and of the queue; a request beyond them gets an error status."""

  texts: int = 1000  # per request: 413
  body_bytes: int = 2_000_000  # 413
  requests: int = 512  # in the queue: 429
  batch_tokens: int = 16384  # batched together
  timeout_s: float = 30.0  # from the end of the body to the scores: 503
  body_timeout_s: float = 10.0  # for a client to send its body: 408


class Service:
  """The loaded model with its queue of requests: the state that all routes share."""

  def __init__(self, load: Callable, name: str, limits: Limits, token: str = '', search=None):
    """`load()` returns a LoadedRanker and may take long; `search` is a page.Search or None."""
    self.load, self.name, self.limits, self.token, self.search = load, name, limits, token, search
    self.metrics = Metrics()
    self.ranker = self.batcher = self.failure = None
    self.on_failure = lambda: None  # called when loading fails
    self._threads = concurrent.futures.ThreadPoolExecutor(2, 'tokenise')

  async def start(self) -> None:
    """Loads the model in a thread; until then requests get status 503."""
    loop = asyncio.get_running_loop()
    try:
      self.ranker = await loop.run_in_executor(self._threads, self.load)
      if self.search:
        await loop.run_in_executor(self._threads, self.search.load)
    except Exception as e:
      self.failure = e
      self.on_failure()
      return
    limits = self.limits
    self.batcher = Batcher(self.ranker.backend, self.metrics, limits.batch_tokens, limits.requests)
    self.metrics.watch(self.batcher.waiting)

  async def stop(self) -> None:
    if self.batcher:
      await self.batcher.close()
    self._threads.shutdown(wait=True)

  def check_ready(self) -> None:
    if not self.batcher:
      raise Refused(503, 'Unhealthy', 'the model is loading; try again soon')

  async def score(self, request: apis.ScoreRequest) -> tuple[object, dict[str, str]]:
    """(body, headers) of the response to a checked request."""
    self.check_ready()
    count, most = len(request.pairs), self.limits.texts
    if count > most:
      raise Refused(413, 'Validation', f'the request has {count} texts; the limit is {most}')
    begin = time.perf_counter()
    loop = asyncio.get_running_loop()
    pairs = request.pairs
    encode = functools.partial(self.ranker.encode, pairs, **request.limits)
    encoded = await loop.run_in_executor(self._threads, encode)
    tokenised = time.perf_counter()
    truncated = sum(pair.cut for pair in encoded)
    if truncated and not request.truncate:
      most = self.ranker.prompt.max_len
      raise Refused(413, 'Validation', f'{truncated} texts are longer than {most} tokens')
    job = await self.batcher.score(encoded)
    total = time.perf_counter() - begin
    seconds = {
      'tokenise': tokenised - begin,
      'queue': max(0.0, (job.started or tokenised) - tokenised),
      'infer': job.infer_s,
      'total': total,
    }
    self.metrics.scored(count, truncated, seconds)
    headers = {
      'x-compute-time': f'{1000 * total:.1f}',
      'x-tokenization-time': f'{1000 * seconds["tokenise"]:.1f}',
      'x-queue-time': f'{1000 * seconds["queue"]:.1f}',
      'x-inference-time': f'{1000 * (total - seconds["tokenise"] - seconds["queue"]):.1f}',
      'x-compute-tokens': str(job.tokens),
      'x-compute-characters': str(sum(len(text) for _, text in pairs)),
      'x-truncated': str(truncated),
    }
    return request.answer(job.scores, job.tokens), headers

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


async def read_json(request: Request, limits: Limits) -> dict:
  """The decoded body.

  Raises: Refused if it is too large (as sent or decoded), too slow, in another encoding than gzip
    or deflate, or not a JSON object.
  """
  too_large = Refused(413, 'Validation', f'the body is larger than {limits.body_bytes} bytes')
  declared = request.headers.get('content-length', '')
  if declared.isdigit() and int(declared) > limits.body_bytes:
    raise too_large
  kind = request.headers.get('content-encoding', 'identity').strip().lower()
  if kind not in ('', 'identity', *KINDS):
    raise Refused(415, 'Validation', f'content-encoding {kind!r}: send gzip, deflate or none')
  inflater = Inflater(kind) if kind in KINDS else None
  body, received = bytearray(), 0
  try:
    async with asyncio.timeout(limits.body_timeout_s):
      async for piece in request.stream():
        received += len(piece)
        body += inflater.decode(piece, limits.body_bytes + 1 - len(body)) if inflater else piece
        if max(received, len(body)) > limits.body_bytes:
          raise too_large
  except TimeoutError:
    raise Refused(408, 'Validation', 'the body took too long to arrive') from None
  except zlib.error:
    raise Refused(422, 'Validation', f'the body is not {kind}') from None
  if inflater and not inflater.complete:
    raise Refused(422, 'Validation', f'the body is not complete {kind}')
  try:
    value = json.loads(bytes(body))
  except (ValueError, RecursionError):
    raise Refused(422, 'Validation', 'the body is not JSON') from None
  if not isinstance(value, dict):
    raise Refused(422, 'Validation', 'the body must be a JSON object')
  return value


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


def check_token(request: Request, token: str) -> None:
  """Raises: Refused if the server has a token and the request does not carry it."""
  if token:
    # Starlette decodes headers as Latin-1, whatever the client's encoding was.
    header = request.headers.get('authorization', '').encode('latin-1')
    scheme, _, sent = header.partition(b' ')
    if scheme.lower() != b'bearer' or not hmac.compare_digest(sent.lstrip(b' '), token.encode()):
      raise Refused(401, 'Validation', 'a bearer token is needed: Authorization: Bearer ...')


def post(service: Service, path: str, handle: Callable, error: Callable) -> Route:
  """A POST route: `await handle(body)` returns (body, headers), `error` writes a Refused."""

  async def endpoint(request: Request) -> Response:
    try:
      check_token(request, service.token)
      service.check_ready()
      body = await read_json(request, service.limits)
      value, headers = await while_connected(request, handle(body), service.limits.timeout_s)
      response = JSONResponse(value, headers=headers)
    except Refused as e:
      response = JSONResponse(error(e), e.status)
    except ClientDisconnect:
      response = Response(status_code=499)  # only for the metrics
    service.metrics.answered(path, response.status_code)
    return response

  return Route(path, endpoint, methods=['POST'])


def scoring(service: Service, path: str) -> Route:
  """The route of one of `apis.APIS`."""

  async def handle(body):
    return await service.score(apis.read(path, body, service.name))

  return post(service, path, handle, apis.APIS[path].error)


def cross_origin(origins: Sequence[str]) -> Middleware:
  """Lets pages of the origins ('*': any) call the server and read its headers."""
  return Middleware(
    CORSMiddleware,
    allow_origins=origins,
    allow_methods=['GET', 'POST'],
    allow_headers=['*'],
    expose_headers=['x-compute-time', 'x-compute-tokens', 'x-truncated'],
  )


def build(service: Service, origins: Sequence[str] = ()) -> Starlette:
  """The application; its lifespan loads the model and stops the workers at the end.

  Pages of `origins` may call it from a browser.
  """

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
      check_token(request, service.token)
      service.check_ready()
    except Refused as e:
      return JSONResponse(apis.tei_error(e), e.status)
    return JSONResponse(service.info())

  async def metrics(_):
    return Response(service.metrics.text(), media_type='text/plain; version=0.0.4')

  async def search(body):
    return await service.search.answer(body, service)

  routes = [
    *(scoring(service, path) for path in apis.APIS),
    Route('/health', health),
    Route('/info', info),
    Route('/metrics', metrics),
    Route('/', page.show(service)),
  ]
  if service.search:
    routes.append(post(service, '/search', search, apis.tei_error))
  middleware = [cross_origin(origins)] if origins else []
  return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
