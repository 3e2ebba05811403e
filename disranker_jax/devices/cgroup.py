"""What a container or a job may use on Linux: the limits of its cgroup, version 1 or 2."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path('/sys/fs/cgroup')
OWN = Path('/proc/self/cgroup')  # the groups of this process, one a line: number:controllers:path


def cores() -> float | None:
  """Cores whose time this process may use, such as 1.5; None without a limit."""
  found = []
  for group in _groups('cpu'):
    numbers = _numbers(group / 'cpu.max') or [
      *_numbers(group / 'cpu.cfs_quota_us'), *_numbers(group / 'cpu.cfs_period_us')
    ]  # fmt: skip
    if len(numbers) == 2 and min(numbers) > 0:
      found.append(numbers[0] / numbers[1])
  return min(found, default=None)


def memory() -> int | None:
  """Bytes that this process may hold; None without a limit."""
  names = 'memory.max', 'memory.limit_in_bytes'
  found = [n for group in _groups('memory') for name in names for n in _numbers(group / name)]
  return min((n for n in found if n > 0), default=None)


def _groups(controller: str) -> Iterator[Path]:
  """The folders of this process's group and of the groups around it, whose limits hold too.

  A container may see its own group as the root, so folders of the path may be missing.
  """
  try:
    lines = OWN.read_text(errors='replace').splitlines()
  except OSError:  # another system, or one that hides them
    return
  for line in lines:
    _, controllers, path = [*line.split(':', 2), '', ''][:3]
    if not path or (controllers and controller not in controllers.split(',')):
      continue
    root = ROOT / controller if controllers else ROOT  # version 2 names no controllers
    inner = PurePosixPath('/', path)
    yield from (root / group.relative_to('/') for group in (inner, *inner.parents))


def _numbers(file: Path) -> list[int]:
  """The numbers in a file, -1 for 'max'; none if it cannot be read."""
  try:
    text = file.read_text()
  except OSError:
    return []
  return [int(word) if word.isdigit() else -1 for word in text.split()]
