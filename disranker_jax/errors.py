"""The one exception for people: bad input, bad config, a file that is missing."""


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
