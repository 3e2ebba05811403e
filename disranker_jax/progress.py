"""What a person sees while a stage works: stage, step of steps, loss, rate, time left.

A bar on a terminal, a line every few seconds in a log.
"""

import contextlib
import sys
import time

from tqdm import tqdm

from disranker_jax import escaping

LINE_SECONDS = 10.0
_muted = False


def mute(yes: bool) -> None:
  """Of several processes only the first speaks."""
  global _muted
  _muted = yes


class Progress:
  """Counts steps of a stage, and the examples in them, and says so; a context manager."""

  def __init__(self, label: str, total: int, unit: str, start: int = 0):
    self._label, self._total, self._unit = label, total, unit
    self._tty = sys.stderr.isatty() and not _muted
    self._bar = None
    if self._tty:
      form = '{desc} {bar:20} {n_fmt}/{total_fmt} {postfix} [{elapsed}<{remaining}]'
      self._bar = tqdm(total=total, initial=start, desc=label, bar_format=form, leave=True)
    self._first, self._step, self._examples = start, start, 0
    self._begin = self._shown = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.close()

  def update(self, step: int, examples: int, **values: float) -> None:
    """`step` steps are done, with `examples` more examples; `values` are shown beside them."""
    self._examples += examples
    now = time.monotonic()
    rate = self._examples / max(now - self._begin, 1e-9)
    shown = ' '.join(f'{k} {v:.4g}' for k, v in values.items())
    text = f'{shown} {rate:.1f} {self._unit}/s'.strip()
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._step)
    elif now - self._shown >= LINE_SECONDS or step == self._total:
      left = (now - self._begin) / max(step - self._first, 1) * (self._total - step)
      say(f'{self._label} {step}/{self._total} {text} {clock(left)} left')
      self._shown = now
    self._step = step


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
    say(f'{self.label}: {self.count:,} {self._unit}, {rate:,.0f}/s')
    self._shown = now


def clock(seconds: float) -> str:
  """75 -> '1m15s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}h{minutes:02d}m' if hours else f'{minutes}m{seconds:02d}s'


def say(text: str) -> None:
  """A line for the person at the terminal, above the bar if there is one."""
  if not _muted:
    with contextlib.suppress(BrokenPipeError):  # who listened has gone; the work is still wanted
      tqdm.write(escaping.terminal(text), file=sys.stderr)
      sys.stderr.flush()
