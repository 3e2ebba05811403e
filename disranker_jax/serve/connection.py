"""HTTP connections: uvicorn with limits on the size and the time of a request's head."""

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024  # of a request's line and headers
HEAD_S = 10.0  # from the start of the connection or of the request


class Connection(HttpToolsProtocol):
  """Closes a connection whose request head is too large or too slow; uvicorn has no such limits.

  Bodies have their own limits (`app.Limits`).
  """

  _timer, _received = None, 0  # set while waiting for a head

  def connection_made(self, transport):
    super().connection_made(transport)
    self._start()

  def connection_lost(self, exc):
    self._stop()
    super().connection_lost(exc)

  def on_message_begin(self):
    super().on_message_begin()
    self._start()

  def on_headers_complete(self):
    self._stop()
    super().on_headers_complete()

  def data_received(self, data):
    super().data_received(data)
    if self._timer:
      self._received += len(data)
      if self._received > HEAD_BYTES:
        self.transport.close()

  def _start(self):
    self._stop()
    self._timer, self._received = self.loop.call_later(HEAD_S, self.transport.close), 0

  def _stop(self):
    if self._timer:
      self._timer.cancel()
    self._timer = None


def open_server(app, host: str, port: int, **options) -> uvicorn.Server:
  """A server of the application; the caller runs it."""
  config = uvicorn.Config(
    app, host, port, http=Connection, access_log=False, server_header=False,
    limit_concurrency=4096, **options,
  )  # fmt: skip
  return uvicorn.Server(config)
