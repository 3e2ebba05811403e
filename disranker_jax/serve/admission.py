"""Admission: one counter of everything inside the server, in requests and in bytes.

A request is counted before its body is read and until its answer is handed over, so whoever comes
too many is refused before any work. The bytes are those of bodies that arrive, of requests in work
(their body, and TEXT_BYTES for each text), and of answers that clients have not taken yet. A client
that sends its body slowly is sent away when the server is full, so slow ones cannot keep it full.
"""

import asyncio
import contextlib
import time

from disranker_jax.serve.errors import Refused

# What a text costs besides its own bytes: its token ids, and those of the query, which is repeated.
TEXT_BYTES = 1024
SMALL_BYTES = 64 * 1024  # requests beyond this share half of the bytes; the rest is for small ones
GRACE_S = 1.0  # for a body to arrive, however full the server is


class Admission:
  """How much is inside, and the limits; everything runs in the event loop, so nothing locks."""

  def __init__(self, requests: int, held_bytes: int):
    self._most_requests, self._most_bytes = requests, held_bytes
    self.requests = self.bytes = 0
    self.arriving: dict[Visit, float] = {}  # since when; the oldest first

  def inside(self) -> int:
    """The number of requests inside."""
    return self.requests

  def has_place(self) -> bool:
    """Whether one more request may come in; if not, sends away the slowest body, if one is slow."""
    return self.requests < self._most_requests or self._send_away()

  def has_room(self, more: int, whole: int) -> bool:
    """The same for `more` bytes of a request that then has `whole` bytes."""
    most = self._most_bytes if whole <= SMALL_BYTES else self._most_bytes // 2
    return self.bytes + more <= most or self._send_away()

  def _send_away(self) -> bool:
    for visit, since in self.arriving.items():
      if time.monotonic() - since < GRACE_S:
        break
      del self.arriving[visit]
      visit.send_away()
      return True
    return False


class Visit:
  """One request's share of an Admission; as a context manager it gives everything back.

  `seconds` has the time of each step that has ended, for the metrics.
  """

  def __init__(self, admission: Admission):
    self._admission, self._inside, self._bytes = admission, False, 0
    self._arrived: float | None = None
    self.seconds: dict[str, float] = {}

  def __enter__(self) -> 'Visit':
    return self

  def __exit__(self, *_) -> None:
    self._admission.requests -= self._inside
    self._admission.bytes -= self._bytes

  def enter(self) -> None:
    """Counts the request. Raises: Refused if the server is full."""
    if not self._admission.has_place():
      raise Refused(429, 'Overloaded', 'too many requests are waiting; try again later')
    self._admission.requests += 1
    self._inside = True

  def hold(self, more: int) -> None:
    """Counts `more` bytes. Raises: Refused if all requests together hold too many."""
    if not self._admission.has_room(more, self._bytes + more):
      raise Refused(429, 'Overloaded', 'the waiting requests are too large; try again later')
    self._admission.bytes += more
    self._bytes += more

  @contextlib.asynccontextmanager
  async def arriving(self, seconds: float):
    """While the body arrives. Raises: TimeoutError after `seconds`, or when it is sent away."""
    async with asyncio.timeout(seconds) as self._timeout:
      self._admission.arriving[self] = time.monotonic()
      try:
        yield
        self._arrived = time.perf_counter()
      finally:
        self._admission.arriving.pop(self, None)

  @contextlib.contextmanager
  def step(self, name: str):
    """Measures a step; one that fails or is cancelled is not counted."""
    begin = time.perf_counter()
    yield
    self.seconds[name] = time.perf_counter() - begin

  def waited(self) -> float | None:
    """Seconds since the end of the body; None if it has not arrived."""
    return None if self._arrived is None else time.perf_counter() - self._arrived

  def send_away(self) -> None:
    self._timeout.reschedule(asyncio.get_running_loop().time())
