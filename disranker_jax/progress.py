"""What a person sees while a stage works: stage, step of steps, loss, rate, time left.

A bar on a terminal, a line every few seconds in a log.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from disranker_jax import escaping

LINE_SECONDS = 10.0
BAR = 20  # characters, on a terminal with room for them
_muted = False


def mute(yes: bool) -> None:
  """Of several processes only the first speaks."""
  global _muted
  _muted = yes


class Progress:
  """Counts steps of a stage, and the examples in them, and says so; a context manager.

  Args:
    total: steps in all, of which `start` are done.
    unit: of the examples, such as 'pairs'.
    expected: examples that are still to do, if `work` is given.
    work: () -> (examples done, the seconds that they took). The time left follows from it. Without
      it, all steps count as equally long. Queries are not: some have many documents, those of one
      batch finish at the same moment, and the first batch waits for the compiler.
    of: what the steps are.
    own: steps of this process, if each of several processes does its share of those that are not
      done. `update` and `work` count the own ones. The others are taken to be as far, so what is
      shown is about that of all.
  """

  def __init__(
    self,
    label: str,
    total: int,
    unit: str,
    start: int = 0,
    expected: float = 0.0,
    work: Callable[[], tuple[int, float]] | None = None,
    of: str = 'queries',
    own: int | None = None,
  ):
    self._label, self._total, self._unit, self._of = label, total, unit, of
    self._tty = sys.stderr.isatty() and not _muted
    self._bar = None
    if self._tty:
      form = f'{{desc}} {{bar:{BAR}}} {{n_fmt}}/{{total_fmt}} {of}'
      self._bar = tqdm(
        total=total, initial=start, desc=label, bar_format=form, leave=True, dynamic_ncols=True
      )
    self._first, self._step, self._examples = start, start, 0
    self._times = (total - start) / own if own else 1.0  # what all do for a step of this process
    self._expected, self._work = expected, work
    self._before = work()[0] if work else 0
    self._begin = self._shown = time.monotonic()
    self._second: tuple[float, int] | None = None  # the end of the first update

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.close()

  def update(self, step: int, examples: int, **values: float) -> None:
    """`step` steps are done, with `examples` more examples; `values` are shown beside them."""
    step = self._first + round((step - self._first) * self._times)
    self._examples += examples
    now = time.monotonic()
    if self._bar is not None or now - self._shown >= LINE_SECONDS or step == self._total:
      rate, left = self._speed(step, now)
      parts = [f'{k} {v:.4g}' for k, v in values.items()]
      last = f'in {clock(now - self._begin)}' if step == self._total else f'{clock(left)} left'
      parts = [f'{step}/{self._total} {self._of}', *parts, f'{rate:,.1f} {self._unit}/s', last]
      if self._bar is not None:
        self._bar.bar_format = self._form(parts)
        self._bar.update(step - self._step)
      else:
        say(f'{self._label} {", ".join(parts)}')
        self._shown = now
    self._second = self._second or (now, step)
    self._step = step

  def _form(self, parts: list[str]) -> str:
    """The line for tqdm to fill in; on a narrow terminal the bar shrinks, then the rate goes."""
    columns = self._bar.format_dict['ncols'] or math.inf
    room = lambda: columns - len(f'{self._label}  {", ".join(parts)}')  # noqa: E731
    while len(parts) > 2 and room() < 1:
      del parts[-2]
    said = ', '.join(parts).replace('{', '{{').replace('}', '}}')
    return f'{{desc}} {{bar:{max(1, min(BAR, room()))}}} {said}'

  def _speed(self, step: int, now: float) -> tuple[float, float]:
    """(examples per second, seconds left)."""
    if self._work:
      done, seconds = self._work()
      rate = self._times * done / max(seconds, 1e-9)
      spent = self._times * (done - self._before)
      ahead = self._expected - spent if step < self._total else 0
      return rate, max(ahead, 0) / max(rate, 1e-9)
    # The first step takes longer than the others: it waits for the first data.
    begin, first = self._second if self._second and step > self._second[1] else (
      self._begin, self._first)  # fmt: skip
    left = (now - begin) / max(step - first, 1) * (self._total - step)
    return self._times * self._examples / max(now - self._begin, 1e-9), left


class Count:
  """Counts what has no known end, and says so every few seconds; a context manager."""

  def __init__(self, label: str, unit: str, start: int = 0):
    self.label, self._unit = label, unit
    self.count = self._first = start
    self._begin = self._shown = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._shown > self._begin:  # said something before: say how it ended
      self._say(time.monotonic())

  def add(self, more: int) -> None:
    self.count += more
    # Asking for the time costs as much as a row of data.
    if self.count & 1023 < more:
      now = time.monotonic()
      if now - self._shown >= LINE_SECONDS:
        self._say(now)

  def _say(self, now: float) -> None:
    rate = (self.count - self._first) / max(now - self._begin, 1e-9)
    say(f'{self.label}: {of_units(self.count, self._unit)}, {rate:,.0f}/s')
    self._shown = now


def clock(seconds: float) -> str:
  """75 -> '1m15s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}h{minutes:02d}m' if hours else f'{minutes}m{seconds:02d}s'


def amount(count: int, one: str, more: str = '') -> str:
  """A number with its noun: '1 query', '1,200 queries'."""
  return f'{count:,} {one if count == 1 else more or one + "s"}'


def part_of(part: int, whole: int, one: str, more: str, does: str, do: str) -> str:
  """Words such as '1 of 3 queries has'. The noun is that of the whole, the verb that of the part.

  Args:
    one: the noun of one.
    more: of several.
    does: the verb of one.
    do: of several.
  """
  return f'{part:,} of {amount(whole, one, more)} {does if part == 1 else do}'


def of_units(count: int, units: str) -> str:
  """`amount` of a unit that is known in the plural, such as 'queries'."""
  one = f'{units[:-3]}y' if units.endswith('ies') else units.removesuffix('s')
  return amount(count, one, units)


def say(text: str) -> None:
  """A line for the person at the terminal, above the bar if there is one."""
  if not _muted:
    with contextlib.suppress(BrokenPipeError):  # who listened has gone; the work is still wanted
      tqdm.write(escaping.terminal(text), file=sys.stderr)
      sys.stderr.flush()
