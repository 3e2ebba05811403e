"""What the devices have done for a ranker: its time, its waiting, and how full its batches were."""

import dataclasses

import jax
import numpy as np

from disranker_jax.devices import processes


@dataclasses.dataclass
class Work:
  """The books of a ranker, over all its passes; those of one process, see `of_all`.

  seconds  the devices compute, without compiling
  idle     seconds in which they waited for the next batch of a pass
  scored   documents that have their scores
  tokens   of batches, padding excluded
  places   positions of batches, padding included
  """

  seconds: float = 0.0
  idle: float = 0.0
  scored: int = 0
  tokens: int = 0
  places: int = 0
  _ready: float | None = dataclasses.field(default=None, repr=False)  # when the last batch ended

  def begin(self) -> None:
    """Begins a pass over groups: the time since the last one does not count."""
    self._ready = None

  def add(self, begun: float, ready: float, tokens: int, places: int, scored: int = 0) -> None:
    """Counts a batch; batches that overlap are not counted twice.

    Args:
      begun, ready: when the devices got it and had computed it, by time.monotonic().
    """
    before = begun if self._ready is None else self._ready
    self.seconds += ready - max(begun, before)
    self.idle += max(0.0, begun - before)
    self._ready = ready
    self.tokens += tokens
    self.places += places
    self.scored += scored

  def of_all(self) -> 'Work':
    """The books of all processes together, in every process, which all have to ask.

    They compute side by side, so the time is the mean of theirs. The sums are added on the devices,
    in 32 bits: of large ones the last digits are lost.
    """
    if jax.process_count() == 1:
      return self
    own = self.seconds, self.idle, self.scored, self.tokens, self.places
    seconds, idle, *sums = processes.add_up(np.array(own, np.float32)).tolist()
    return Work(seconds / jax.process_count(), idle / jax.process_count(), *map(round, sums))

  def so_far(self) -> tuple[int, float]:
    """(documents scored, the seconds that they took, waiting included), for Progress."""
    return self.scored, self.seconds + self.idle

  @property
  def padding(self) -> float:
    """The share of positions without a token."""
    return 1 - self.tokens / self.places if self.places else 0.0

  @property
  def idle_share(self) -> float:
    """The share of time that the devices waited."""
    total = self.seconds + self.idle
    return self.idle / total if total else 0.0

  @property
  def ms_per_pair(self) -> float:
    """Milliseconds of the devices per document, without tokenising, waiting and compiling."""
    return self.ms_per(self.scored)

  def ms_per(self, count: int) -> float:
    """Milliseconds of the devices for each of `count` things, such as queries."""
    return 1000 * self.seconds / max(count, 1)

  def as_text(self) -> str:
    """The speed for a person."""
    if not self.seconds:
      return 'all scores were there'
    return (
      f'{self.tokens / (self.seconds + self.idle):,.0f} tokens/s, {self.padding:.1%} padding, '
      f'{self.idle_share:.1%} of the time the device waited for data'
    )
