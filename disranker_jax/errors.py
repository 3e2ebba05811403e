"""Errors for people: bad input, bad config, a file that is missing; one line of other errors."""


class UserError(Exception):
  """What is wrong, where, and what to do, in one line; the command prints it and exits with 2.

  Raise it for everything the person at the keyboard can fix. Whatever else escapes is our bug
  and keeps its traceback.
  """


class Stopped(Exception):
  """Asked to stop: everything so far is on disk and the same command continues from there.

  `interrupted` is whether a person asked with Ctrl-C, rather than the system with SIGTERM.
  """

  def __init__(self, message: str, interrupted: bool = False):
    super().__init__(message)
    self.interrupted = interrupted


def reason(error: Exception | SystemExit, most: int = 200) -> str:
  """What an error of another library says, in one line of at most so many characters.

  The name of its type if it says nothing.
  """
  return ' '.join(str(error).split())[:most] or type(error).__name__


def first_line(error: Exception | str, *, last: bool = False) -> str:
  """The first line (or the last one) of what an error says that is not blank, as in `reason`."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1 if last else 0][:300] if lines else type(error).__name__
