"""What all commands share: errors for people, as one line with exit status 2, and config flags."""

import contextlib
import difflib
import errno
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from disranker_jax.errors import UserError

FULL_OR_LOCKED = {
  errno.ENOSPC: 'no space is left on the disk: free some',
  errno.EDQUOT: 'the quota is used up: free some space',
  errno.EROFS: 'the disk can only be read: mount it for writing, or give another --workdir',
  errno.EACCES: 'permission denied: change it, or give another --workdir',
  errno.EPERM: 'permission denied: change it, or give another --workdir',
}


@contextlib.contextmanager
def guarded():
  """Prints a UserError as one line and exits with 2; every other exception keeps its traceback.

  Disks that are full or may not be written to are the person's to mend, too, wherever they show.
  """
  try:
    yield
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)
  except OSError as e:
    if e.errno not in FULL_OR_LOCKED:
      raise
    where = f'{e.filename}: ' if e.filename else ''
    print(
      f'error: {where}{FULL_OR_LOCKED[e.errno]}; then the same command goes on from what is there',
      file=sys.stderr,
    )
    sys.exit(2)


def parse_config_flags(argv: list[str], config_flag, values=flags.FLAGS) -> list[str]:
  """Parses absl flags with a config file; raises UserError for what cannot be."""
  try:
    if rest := values(argv)[1:]:
      raise UserError(f'{rest[0]!r}: not a flag; see --help')
    config = config_flag.value
  except UserError:
    raise
  except flags.Error as e:
    raise UserError(f'{e}; see --help') from e
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(unknown_key(argv) or one_line(e)) from e
  except Exception as e:  # whatever the config file itself raises
    raise UserError(f'the config file cannot be used: {type(e).__name__}: {one_line(e)}') from e
  if not isinstance(config, ConfigDict):
    raise UserError(no_config(argv))
  return argv[:1]


def unknown_key(argv: list[str]) -> str | None:
  """The first --config.key on the command line that the defaults do not know."""
  from disranker_jax.config import defaults, flatten

  known = list(flatten(defaults()))
  for arg in argv:
    key = arg.lstrip('-').partition('=')[0].removeprefix('config.')
    if arg.startswith('--config.') and key not in known:
      near = difflib.get_close_matches(key, known, 1)
      return f'--config.{key}: no such key' + (
        f'; did you mean --config.{near[0]}?' if near else ''
      )
  return None


def no_config(argv: list[str]) -> str:
  """Why there is no config."""
  for arg in argv:
    if arg.startswith('--config='):
      file = arg.partition('=')[2].partition(':')[0]
      if not Path(file).exists():
        return f'--config={file}: no such file'
      return f'--config={file}: has no get_config() that returns a ConfigDict'
  return '--config is missing: name a Python file with get_config(), e.g. configs/quickstart.py'


def one_line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300]
