"""What takes long to make, such as a collection in memory, is made once while a block needs it.

The block decides how long it stays. A weak reference would free a collection between two readers,
as one lets go of it before the next one asks. A cache without an end would hold it while a model
trains.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

_kept: dict[str, tuple[Any, Any]] | None = None  # {name: (key, value)}; None outside of a block


@contextlib.contextmanager
def shared() -> Iterator[None]:
  """In this block `made` keeps what it makes. A block inside of another one ends with that one."""
  global _kept
  if _kept is not None:
    yield
    return
  _kept = {}
  try:
    yield
  finally:
    _kept = None


def made(name: str, key: Callable[[], Any], make: Callable[[], Any]) -> Any:
  """`make()`, or the value that was made before under this name and key. Callers do not change it.

  Outside of `shared` nothing is kept.

  Args:
    name: one value is kept for each; that of another key takes its place.
    key: () -> what the value depends on, such as the fingerprint of a source.
  """
  if _kept is None:
    return make()
  now = key()
  if name in _kept and _kept[name][0] == now:
    return _kept[name][1]
  _kept.pop(name, None)  # before the next one takes memory too
  value = make()
  _kept[name] = now, value
  return value
