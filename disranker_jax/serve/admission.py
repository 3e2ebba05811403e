"""Admission: one counter of everything inside the server, in requests and in bytes.

A request is counted before its body is read and until its answer is handed over, so whoever comes
too many is refused before any work. The bytes are those of bodies that arrive, of requests in work
(their body, and TEXT_BYTES for each text), and of answers that clients have not taken yet.
"""

from disranker_jax.serve.errors import Refused

# What a text costs besides its own bytes: its token ids, and those of the query, which is repeated.
TEXT_BYTES = 1024
# A string of Python takes up to four bytes a character, and a text is held twice if it is returned.
MEMORY_PER_BYTE = 8


class Admission:
  """How much is inside, and the limits; everything runs in the event loop, so nothing locks."""

  def __init__(self, requests: int, held_bytes: int):
    self._most_requests, self._most_bytes = requests, held_bytes
    self.requests = self.bytes = 0

  def inside(self) -> int:
    """The number of requests inside."""
    return self.requests

  def full(self) -> bool:
    return self.requests >= self._most_requests or self.bytes >= self._most_bytes

  def fits(self, more: int) -> bool:
    """Whether `more` bytes may be added."""
    return self.bytes + more <= self._most_bytes


class Visit:
  """One request's share of an Admission; as a context manager it gives everything back."""

  def __init__(self, admission: Admission):
    self._admission, self._inside, self._bytes = admission, False, 0

  def __enter__(self) -> 'Visit':
    return self

  def __exit__(self, *_) -> None:
    self._admission.requests -= self._inside
    self._admission.bytes -= self._bytes

  def enter(self) -> None:
    """Counts the request. Raises: Refused if the server is full."""
    if self._admission.full():
      raise Refused(429, 'Overloaded', 'too many requests are waiting; try again later')
    self._admission.requests += 1
    self._inside = True

  def hold(self, more: int) -> None:
    """Counts `more` bytes. Raises: Refused if all requests together hold too many."""
    if not self._admission.fits(more):
      raise Refused(429, 'Overloaded', 'the waiting requests are too large; try again later')
    self._admission.bytes += more
    self._bytes += more
