"""The ASGI application: routes, limits, and what happens to one request."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hmac
import json
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from disranker_jax import __version__
from disranker_jax.serve import apis, page
from disranker_jax.serve.batching import Batcher
from disranker_jax.serve.errors import Refused
from disranker_jax.serve.metrics import Metrics


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a client may ask; more is answered with an error, never with a guess."""

  texts: int = 1000  # a request
  body_bytes: int = 2_000_000
  requests: int = 512  # in line, before 429
  batch_tokens: int = 16384  # planned at a time
  timeout_s: float = 30.0  # from the body read to the scores
  body_timeout_s: float = 10.0  # for a client to send its body


class Service:
  """The loaded model with its line of requests; everything that routes share."""

  def __init__(self, load: Callable, name: str, limits: Limits, token: str = '', search=None):
    """`load()` gives (backend, prompt) and may take long; `search` is page.Search or None."""
    self.load, self.name, self.limits, self.token, self.search = load, name, limits, token, search
    self.metrics = Metrics()
    self.backend = self.prompt = self.batcher = self.failure = None
    self.failed = lambda: None  # what to do when loading fails
    self._threads = concurrent.futures.ThreadPoolExecutor(2, 'tokenise')

  async def start(self) -> None:
    """Loads and warms the model in a thread; requests are refused until then."""
    loop = asyncio.get_running_loop()
    try:
      backend, self.prompt = await loop.run_in_executor(self._threads, self.load)
      await loop.run_in_executor(self._threads, backend.warm)
      if self.search:
        await loop.run_in_executor(self._threads, self.search.load)
    except Exception as e:
      self.failure = e
      self.failed()
      return
    self.backend = backend
    limits = self.limits
    self.batcher = Batcher(backend, self.metrics, limits.batch_tokens, limits.requests)
    self.metrics.watch(self.batcher.waiting)

  async def stop(self) -> None:
    if self.batcher:
      await self.batcher.close()
    self._threads.shutdown(wait=True)

  def check_ready(self) -> None:
    if not self.batcher:
      raise Refused(503, 'Unhealthy', 'the model is being loaded; try again soon')

  async def score(self, ask: apis.Ask) -> tuple[object, dict[str, str]]:
    """(body, headers) of the answer to a checked request."""
    self.check_ready()
    if len(ask.texts) > self.limits.texts:
      raise Refused(
        413, 'Validation', f'{len(ask.texts)} texts, at most {self.limits.texts} are taken'
      )
    begin = time.perf_counter()
    loop = asyncio.get_running_loop()
    pairs = await loop.run_in_executor(self._threads, self.encode, ask)
    tokenised = time.perf_counter()
    truncated = sum(pair.cut for pair in pairs)
    if truncated and not ask.truncate:
      most = self.prompt.max_len
      raise Refused(413, 'Validation', f'{truncated} texts are longer than {most} tokens')
    job = await self.batcher.score(pairs)
    total = time.perf_counter() - begin
    seconds = {
      'tokenise': tokenised - begin,
      'queue': max(0.0, (job.started or tokenised) - tokenised),
      'infer': job.infer_s,
      'total': total,
    }
    self.metrics.scored(len(pairs), truncated, seconds)
    headers = {
      'x-compute-time': f'{1000 * total:.1f}',
      'x-tokenization-time': f'{1000 * seconds["tokenise"]:.1f}',
      'x-queue-time': f'{1000 * seconds["queue"]:.1f}',
      'x-inference-time': f'{1000 * (total - seconds["tokenise"] - seconds["queue"]):.1f}',
      'x-compute-tokens': str(job.tokens),
      'x-compute-characters': str(sum(map(len, ask.texts))),
      'x-truncated': str(truncated),
    }
    return ask.answer(job.scores, job.tokens), headers

  def encode(self, ask: apis.Ask):
    if len(ask.queries) == 1:
      return self.prompt.encode_texts(ask.queries[0], ask.texts, ask.max_text_tokens)
    return [
      self.prompt.encode_texts(q, [t], ask.max_text_tokens)[0]
      for q, t in zip(ask.queries, ask.texts, strict=True)
    ]

  def info(self) -> dict:
    """What TEI's clients want to know."""
    labels = {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
    return {
      'model_id': self.name,
      'model_sha': None,
      'model_dtype': self.backend.name,
      'model_type': {'reranker': labels},
      'max_concurrent_requests': self.limits.requests,
      'max_input_length': self.prompt.max_len,
      'max_batch_tokens': self.limits.batch_tokens,
      'max_batch_requests': None,
      'max_client_batch_size': self.limits.texts,
      'auto_truncate': True,
      'tokenization_workers': 2,
      'version': __version__,
    }


async def read_json(request: Request, limits: Limits) -> dict:
  """The body; Refused if it is too large, too slow, or not a JSON object."""
  too_large = Refused(413, 'Validation', f'the body is larger than {limits.body_bytes} bytes')
  declared = request.headers.get('content-length', '')
  if declared.isdigit() and int(declared) > limits.body_bytes:
    raise too_large
  body = bytearray()
  try:
    async with asyncio.timeout(limits.body_timeout_s):
      async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body_bytes:
          raise too_large
  except TimeoutError:
    raise Refused(408, 'Validation', 'the body took too long to arrive') from None
  try:
    value = json.loads(bytes(body))
  except (ValueError, RecursionError):
    raise Refused(422, 'Validation', 'the body is not JSON') from None
  if not isinstance(value, dict):
    raise Refused(422, 'Validation', 'the body must be a JSON object')
  return value


async def unless_gone(request: Request, work, timeout_s: float):
  """The result of `work`, which is cancelled when the client leaves or time is up."""

  async def gone():
    while (await request.receive())['type'] != 'http.disconnect':
      pass

  task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone())
  try:
    await asyncio.wait({task, left}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
      return task.result()
    if left.done():
      raise ClientDisconnect
    raise Refused(503, 'Overloaded', f'not scored within {timeout_s:g} seconds')
  finally:
    for each in (task, left):
      each.cancel()
      with contextlib.suppress(asyncio.CancelledError, Exception):
        await each


def build(service: Service) -> Starlette:
  """The application; its lifespan loads the model and, at the end, stops its workers."""

  @contextlib.asynccontextmanager
  async def lifespan(_):
    loading = asyncio.create_task(service.start())
    try:
      yield
    finally:
      await loading
      await service.stop()

  def allowed(request: Request) -> None:
    if service.token:
      given = request.headers.get('authorization', '').encode()
      if not hmac.compare_digest(given, f'Bearer {service.token}'.encode()):
        raise Refused(401, 'Validation', 'a bearer token is needed: Authorization: Bearer ...')

  def answering(handle: Callable, error: Callable, path: str) -> Callable:
    """A POST endpoint: checks, reads, computes; every failure in the shape's own words."""

    async def endpoint(request: Request) -> Response:
      try:
        allowed(request)
        service.check_ready()
        body = await read_json(request, service.limits)
        work = handle(body)
        value, headers = await unless_gone(request, work, service.limits.timeout_s)
        response = JSONResponse(value, headers=headers)
      except Refused as e:
        response = JSONResponse(error(e), e.status)
      except ClientDisconnect:
        response = Response(status_code=499)  # nobody reads it; it is counted
      service.metrics.answered(path, response.status_code)
      return response

    return endpoint

  def scoring(path: str) -> Callable:
    parse, error = apis.SHAPES[path]

    async def handle(body):
      return await service.score(parse(body, service.name))

    return answering(handle, error, path)

  async def health(_):
    if not service.batcher:
      return JSONResponse(apis.tei_error(Refused(503, 'Unhealthy', 'loading')), 503)
    return Response(status_code=200)

  async def info(request):
    try:
      allowed(request)
      service.check_ready()
    except Refused as e:
      return JSONResponse(apis.tei_error(e), e.status)
    return JSONResponse(service.info())

  async def metrics(_):
    return Response(service.metrics.text(), media_type='text/plain; version=0.0.4')

  async def search(body):
    return await service.search.answer(body, service)

  routes = [
    *(Route(path, scoring(path), methods=['POST']) for path in apis.SHAPES),
    Route('/health', health),
    Route('/info', info),
    Route('/metrics', metrics),
    Route('/', page.show(service)),
  ]
  if service.search:
    routes.append(Route('/search', answering(search, apis.tei_error, '/search'), methods=['POST']))
  return Starlette(routes=routes, lifespan=lifespan)
