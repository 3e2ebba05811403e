"""HTTP: uvicorn, with connections that wait for a request's head only so long."""

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024  # of a request's line and headers
HEAD_S = 10.0  # from when the connection or the request began


class Connection(HttpToolsProtocol):
  """uvicorn's, closed where a head is too long or too slow, of which uvicorn bounds neither.

  Bodies have limits of their own (`app.Limits`).
  """

  _timer, _taken = None, 0  # while a head is awaited

  def connection_made(self, transport):
    super().connection_made(transport)
    self._begin()

  def connection_lost(self, exc):
    self._end()
    super().connection_lost(exc)

  def on_message_begin(self):
    super().on_message_begin()
    self._begin()

  def on_headers_complete(self):
    self._end()
    super().on_headers_complete()

  def data_received(self, data):
    super().data_received(data)
    if self._timer:
      self._taken += len(data)
      if self._taken > HEAD_BYTES:
        self.transport.close()

  def _begin(self):
    self._end()
    self._timer, self._taken = self.loop.call_later(HEAD_S, self.transport.close), 0

  def _end(self):
    if self._timer:
      self._timer.cancel()
    self._timer = None


def open_server(app, host: str, port: int, **options) -> uvicorn.Server:
  """A server of the application, not yet running."""
  config = uvicorn.Config(
    app, host, port, http=Connection, access_log=False, server_header=False,
    limit_concurrency=4096, **options,
  )  # fmt: skip
  return uvicorn.Server(config)
