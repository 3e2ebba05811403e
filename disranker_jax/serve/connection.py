"""HTTP connections: uvicorn with limits of bytes and time in every phase of a message.

uvicorn limits none of them. A request that is too large or too slow ends its connection, in the
head, the body and the trailers; so does a client that does not take its answer. The app answers
what it can before that (`bodies.read`: 408, 413).
"""

import functools
import resource

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from disranker_jax.serve.admission import Admission

HEAD_BYTES = 64 * 1024  # of a request's line and headers
HEADERS = 200  # in a head; each costs more memory than its bytes
HEAD_S = 10.0  # from the start of the connection or of the request to the end of the head
LINGER_S = 5.0  # from an early answer (such as 401) to the end of its request
LINGER_BYTES = 16 << 20  # and of it: clients that send all before they read lose the answer beyond
ANSWER_S = 30.0  # for a client to take an answer
WATCH_S = 0.5  # between two looks at an answer that is not taken
CONNECTIONS = 4096
IDLE_S = 5.0  # an idle connection makes room for a new one after that
FEED_BYTES = 16 * 1024  # parsed at once, so that a message is not charged for those before it


class Connection(HttpToolsProtocol):
  """One connection: one request at a time.

  A client that sends a second request before the first is answered (pipelining) gets the first
  answer with `connection: close`, and sends the second again, as RFC 9112, section 9.3.2, has it.
  An answer that starts before its request has ended has `connection: close` too: the rest is read
  for a while, so that the answer arrives (section 9.6), but its length is unknown.
  """

  _unfinished = False  # whether a message has begun and not ended
  _in_body = False  # after its head
  _closes = False  # the answer started before the message had ended, and said `connection: close`
  _deaf = False  # what arrives is dropped
  _received = 0  # bytes of the message
  _timer = None  # runs while the client has to send something
  _watch, _untaken, _waited = None, 0, 0.0  # an answer that the client has to take

  def __init__(self, *args, admission: Admission, limits, idle: dict, **options):
    """`limits` are those of the service.

    `idle` has all connections that wait for a request, with the time since when, longest first.
    """
    super().__init__(*args, **options)
    self._admission, self._limits, self._idle = admission, limits, idle
    self._message_bytes = HEAD_BYTES + limits.body_bytes
    self._app, self.app = self.app, self._answer

  def connection_made(self, transport):
    super().connection_made(transport)
    if len(self.connections) > min(CONNECTIONS, descriptors()) and not self._make_room():
      transport.abort()
    else:
      self._expect(HEAD_S)

  def connection_lost(self, exc):
    self._expect(None)
    self._idle.pop(self, None)
    self._stop_watching()
    super().connection_lost(exc)

  def _make_room(self) -> bool:
    """Closes the connection that has been idle longest; False if none has been for IDLE_S."""
    while self._idle:
      other, since = next(iter(self._idle.items()))
      if self.loop.time() - since < IDLE_S:
        return False
      del self._idle[other]
      other.transport.close()
      if not other.transport.get_write_buffer_size():  # else it has ANSWER_S to take its answer
        return True
    return False

  # What arrives

  def data_received(self, data):
    for start in range(0, len(data), FEED_BYTES):
      if self.transport.is_closing():
        return
      piece = data[start : start + FEED_BYTES]
      if not self._deaf:
        super().data_received(piece)
      self._received += len(piece)
      if self._received > self._most_bytes():
        self.transport.abort()

  def _most_bytes(self) -> int:
    if self._closes:
      return max(LINGER_BYTES, self._message_bytes)
    return self._message_bytes if self._in_body or self._deaf else HEAD_BYTES

  def on_message_begin(self):
    if self.cycle is not None and not self.cycle.response_complete:
      self._stop_listening()
      return
    super().on_message_begin()
    self._idle.pop(self, None)
    self._unfinished, self._in_body, self._received = True, False, 0
    self._expect(HEAD_S)

  def on_url(self, url):
    if not self._deaf:
      super().on_url(url)

  def on_header(self, name, value):
    if self._deaf or self._in_body:  # trailers are dropped
      return
    super().on_header(name, value)
    if len(self.headers) > HEADERS:
      self._deaf = True
      self.transport.abort()

  def on_headers_complete(self):
    if self._deaf:
      return
    self._in_body = True
    # The app answers 408 after `body_timeout_s`.
    self._expect(self._limits.body_timeout_s + LINGER_S)
    super().on_headers_complete()

  def on_body(self, body):
    if not self._deaf:
      super().on_body(body)

  def on_message_complete(self):
    if self._deaf:
      return
    super().on_message_complete()
    self._unfinished = self._in_body = False
    self._received = 0
    if self.cycle.response_complete:
      self._rest()
    else:
      self._expect(None)
    if self.parser.should_upgrade():  # to another protocol, which this server does not speak
      self._stop_listening()

  def _stop_listening(self):
    """Drops what follows; the connection ends with the answer to the current request."""
    self._deaf, self._unfinished, self._received = True, False, 0
    self.cycle.keep_alive = False

  def _rest(self):
    """Waits for the next request, unless the answer said that there is none."""
    if self._closes:
      self._deaf = True
      self.transport.close()
      return
    self._idle[self] = self.loop.time()
    self._expect(self._limits.idle_s)

  def _expect(self, seconds: float | None):
    """The client has to go on within `seconds`; None: it has nothing to send."""
    if self._timer:
      self._timer.cancel()
    # What has been answered is still sent, for ANSWER_S.
    self._timer = self.loop.call_later(seconds, self.transport.close) if seconds else None

  # What is sent

  async def _answer(self, scope, receive, send):
    """The application, whose answer says `connection: close` if the message has not ended."""
    cycle = self.cycle

    async def sending(message):
      early = message['type'] == 'http.response.start' and self._unfinished
      if early:
        self._closes = True
        message = {**message, 'headers': [*message.get('headers', ()), (b'connection', b'close')]}
      await send(message)
      if early:
        cycle.keep_alive = True  # uvicorn would close at once, which resets a client that sends

    await self._app(scope, receive, sending)

  def on_response_complete(self):
    super().on_response_complete()
    self._unset_keepalive_if_required()  # uvicorn's timer of idle connections, which any byte stops
    self._received = 0
    if self._unfinished:
      self._expect(LINGER_S)
    else:
      self._rest()
    self._start_watching()

  def pause_writing(self):
    super().pause_writing()
    self._start_watching()

  def _start_watching(self):
    if self._watch is None and self.transport.get_write_buffer_size():
      self._waited = 0.0
      self._look()

  def _look(self):
    """Counts what the client has not taken, and gives up after ANSWER_S."""
    size = self.transport.get_write_buffer_size()
    self._admission.bytes += size - self._untaken
    self._untaken = size
    if not size:
      self._watch = None
    elif self._waited >= ANSWER_S:
      self.transport.abort()
    else:
      self._waited += WATCH_S
      self._watch = self.loop.call_later(WATCH_S, self._look)

  def _stop_watching(self):
    if self._watch:
      self._watch.cancel()
    self._watch = None
    self._admission.bytes -= self._untaken
    self._untaken = 0


@functools.cache
def descriptors() -> int:
  """How many connections the process's limit of open files allows, with some files to spare."""
  most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return CONNECTIONS if most == resource.RLIM_INFINITY else max(16, most - 64)


def open_server(app, host: str, port: int, service, **options) -> uvicorn.Server:
  """A server of the application, with the limits of its service; the caller runs it."""
  http = functools.partial(Connection, admission=service.admission, limits=service.limits, idle={})
  config = uvicorn.Config(
    app, host, port, http=http, ws='none', access_log=False, server_header=False,
    proxy_headers=False, **options,
  )  # fmt: skip
  return uvicorn.Server(config)
