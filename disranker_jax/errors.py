"""The one exception for people: bad input, bad config, a file that is missing."""


class UserError(Exception):
  """What is wrong, where, and what to do, in one line; the command prints it and exits with 2.

  Raise it for everything the person at the keyboard can mend. Whatever else escapes is our bug
  and keeps its traceback.
  """
