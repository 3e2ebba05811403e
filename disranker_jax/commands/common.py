"""What all commands share: the argument parser, the config flags, and one-line errors."""

import argparse
import contextlib
import difflib
import errno
import io
import logging
import os
import runpy
import select
import sys
from collections.abc import Sequence
from pathlib import Path

from disranker_jax import disks, escaping
from disranker_jax.errors import UserError, reason

ELSEWHERE = (
  'write elsewhere (--workdir, --out) or move the cache '
  '(DISRANKER_CACHE, HF_HOME, IR_DATASETS_HOME, MPLCONFIGDIR, JAX_COMPILATION_CACHE_DIR)'
)
DISK_ERRORS = {
  errno.ENOSPC: 'no space is left on the disk: free some',
  errno.EDQUOT: 'the quota is used up: free some space',
  errno.EROFS: f'the disk is read-only: mount it for writing, {ELSEWHERE}',
  errno.EACCES: f'permission denied: change it, {ELSEWHERE}',
  errno.ENOTDIR: f'a part of the path is a file and not a folder: {ELSEWHERE}',
  errno.ENAMETOOLONG: f'the name is too long: {ELSEWHERE}',
  errno.EPERM: f'permission denied: change it, {ELSEWHERE}',
}


@contextlib.contextmanager
def guarded():
  """Turns what the user can fix into one line and an exit status; bugs keep their traceback.

  UserError and disk errors exit with 2, Ctrl-C with 130, a closed output (`| head`) with 141, the
  status that a shell reports for SIGPIPE. Characters that the terminal cannot show are replaced.
  Where messages have no reader either (`2>&1 | head`), the status is the same.
  """
  logging.raiseExceptions = False  # a log without a reader is no error; it would print a traceback
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # not an io.StringIO in its place
      stream.reconfigure(errors='replace')
  try:
    try:
      yield
    finally:
      sys.stdout.flush()  # here, so that a closed pipe is noticed before the interpreter exits
  except UserError as e:
    say(f'error: {escaping.terminal(e)}')
    sys.exit(2)
  except KeyboardInterrupt:
    say('interrupted')
    sys.exit(130)
  except BrokenPipeError:
    if not any(map(is_closed, (sys.stdout, sys.stderr))):
      raise
    sys.exit(141)
  except Exception as e:
    if not (what := lacking(e)):
      raise
    say(f'error: {what}')
    sys.exit(2)
  finally:
    # What is left in the buffers would fail again when the interpreter exits.
    for stream in (sys.stdout, sys.stderr):
      if is_closed(stream):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def lacking(error: Exception) -> str:
  """What the machine lacks by an error, and what to do; '' for another error."""
  found = disks.error_of(error)
  if found and found.errno in DISK_ERRORS:
    loaded = sys.modules.get('disranker_jax.devices.processes')  # without importing jax
    place = loaded.place() if loaded else ''  # each of several machines has disks of its own
    where = [str(found.filename or ''), place and f'({place})']
    what = f'{DISK_ERRORS[found.errno]}, then run the same command again'
    return ': '.join(filter(None, (' '.join(filter(None, where)), what)))
  # A jax.errors.JaxRuntimeError is one.
  if isinstance(error, RuntimeError) and str(error).startswith('RESOURCE_EXHAUSTED'):
    return (
      f'the device is out of memory ({reason(error, 300)}); lower batch_rows or row_len, set '
      'remat=full, param_dtype=bfloat16 (of parameters that are not trained), or raise mesh.fsdp'
    )
  return ''


def is_closed(stream) -> bool:
  """Whether the reader of an output is gone, rather than that of a socket or a worker."""
  poll = select.poll()
  try:
    poll.register(stream, 0)  # errors only
  except (AttributeError, TypeError, ValueError):  # not a file, such as an io.StringIO
    return False
  return bool(poll.poll(0))


def say(text: str) -> None:
  """Prints a message about the end of the command, if anyone still reads messages."""
  with contextlib.suppress(BrokenPipeError):
    print(text, file=sys.stderr, flush=True)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
  """Keeps the description's lines and shows every default that says something."""

  def _get_help_string(self, action):
    if action.default is None or action.default is False or action.default in ('', [], ()):
      return action.help
    return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
  """The parser of `disranker NAME`: no abbreviations, UserError for a wrong command line.

  Flags are spelt with dashes. With `add_config`, `parse_args` also collects the words
  `--config.KEY=VALUE` as `args.overrides`, for `load_config`.
  """

  def __init__(self, name: str, description: str, example: str = ''):
    super().__init__(
      prog=f'disranker {name}', description=description, formatter_class=Help, allow_abbrev=False,
      epilog=f'example:\n  disranker {name} {example}' if example else None,
    )  # fmt: skip
    self._has_config = False

  def add_config(self, default: str | None = None) -> None:
    """Adds `--config FILE` and `--config.KEY=VALUE`."""
    self._has_config = True
    group = self.add_argument_group('config')
    group.add_argument(
      '--config', default=default, metavar='FILE', help='a Python file with get_config()'
    )
    # Only for --help: overrides are taken out before argparse sees them.
    group.add_argument('--config.KEY', dest='overrides', metavar='VALUE', help=(
      'overrides one value, e.g. --config.sft.epochs=2; may be repeated'))  # fmt: skip

  def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
    args, rest = self.parse_some(argv)
    if rest:
      self.refuse(rest)
    return args

  def parse_some(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """(arguments, the words that this parser does not know)."""
    overrides, words = [], sys.argv[1:] if argv is None else list(argv)
    if self._has_config:
      overrides, words = split_overrides(words)
    args, rest = self.parse_known_args(words)
    if self._has_config:
      args.overrides = overrides
    return args, rest

  def refuse(self, words: Sequence[str]) -> None:
    """Raises UserError for the first word, with the flag that is nearest to it."""
    flag = words[0].partition('=')[0]
    if not flag.startswith('-'):
      self.error(f'{flag!r}: unexpected argument')
    near = difflib.get_close_matches(flag.replace('_', '-'), self._option_string_actions, 1)
    self.error(f'{flag}: no such flag' + (f'; did you mean {near[0]}?' if near else ''))

  def error(self, message: str) -> None:
    raise UserError(f'{message.removeprefix("argument ")}; see {self.prog} --help')


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """(`--config.KEY=VALUE` words, all other words); `--config.KEY VALUE` is accepted too."""
  overrides, rest, words = [], [], list(argv)
  while words:
    word = words.pop(0)
    if not word.startswith('--config.'):
      rest.append(word)
    elif '=' in word or not words or words[0].startswith('--'):
      overrides.append(word)
    else:
      overrides.append(f'{word}={words.pop(0)}')
  return overrides, rest


def load_config(file: str | Path | None, overrides: Sequence[str] = (), *, whole: bool = True):
  """The checked ConfigDict of a config file, with `--config.KEY=VALUE` overrides applied.

  Without `whole` values are checked by themselves alone: some of them are still to be changed.
  Loading may import jax, so prepare the process's environment before.

  Raises: UserError for a missing file, an exception of the file, an unknown key or a bad value.
  """
  from absl import flags
  from ml_collections import config_flags

  config = read_config_file(file)
  from disranker_jax import config as configs

  known, overrides = configs.flatten(config), list(overrides)
  for word in list(overrides):
    key, _, value = word.removeprefix('--config.').partition('=')
    mapping, _, name = key.rpartition('.')
    if mapping in configs.mappings():
      overrides.remove(word)
      section, _, last = mapping.rpartition('.')
      with config.unlocked():
        config[section][last][name] = value
    elif key not in known:
      raise UserError(f'--config.{key}: {configs.no_such_key(key, known)}')
  argv, values = ['disranker', *overrides], flags.FlagValues()
  holder = config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(f'{reason(e, 300)}; see --help') from e
  configs.split_lists(holder.value)
  (configs.check if whole else configs.check_values)(holder.value)
  return holder.value


def read_config_file(file: str | Path | None):
  """What the `get_config()` of a file returns."""
  from ml_collections import ConfigDict

  if not file:
    raise UserError(
      '--config is missing: pass a Python file with get_config(), e.g. configs/quickstart.py'
    )
  if not Path(file).is_file():
    what = 'is a folder; name a file in it' if Path(file).is_dir() else 'no such file'
    raise UserError(f'--config {file}: {what}')
  try:
    config = runpy.run_path(str(file)).get('get_config', lambda: None)()
  except UserError:
    raise
  except Exception as e:  # whatever the config file itself raises
    raise UserError(f'--config {file}: raises {type(e).__name__}: {reason(e, 300)}') from e
  if not isinstance(config, ConfigDict):
    raise UserError(f'--config {file}: has no get_config() that returns a ConfigDict')
  if config.get('name') == config.get('system'):
    config.name = Path(file).stem  # so that a copy of a config file is another run
  return config


def prepare_absl() -> None:
  """Does what absl's `app.run` would: Grain reads absl flags, and Orbax logs through absl."""
  from absl import flags, logging

  flags.FLAGS.mark_as_parsed()
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)


def words(text: str) -> list[str]:
  """The words of a comma-separated list; [] for ''."""
  return [word.strip() for word in text.split(',') if word.strip()]


def positive(text: str) -> int:
  """An int of at least 1, as an argparse type."""
  if (value := int(text)) < 1:
    raise argparse.ArgumentTypeError('must be at least 1')
  return value


def query_text(text: str) -> str:
  """A query, as an argparse type."""
  if not text.strip():
    raise argparse.ArgumentTypeError('is empty')
  # Bytes that are no UTF-8 are half surrogate pairs in the words of a command line.
  if text != text.encode(errors='replace').decode():
    raise argparse.ArgumentTypeError('is not valid Unicode; write it in UTF-8')
  return text
