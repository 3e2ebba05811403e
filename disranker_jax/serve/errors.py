"""The exception for clients: an HTTP status, an error type and a message."""


class Refused(Exception):
  """Why a request gets no scores; each API writes it in its own error format.

  `kind` is one of TEI's error types: Unhealthy, Backend, Overloaded, Validation, Tokenizer, Empty.
  """

  def __init__(self, status: int, kind: str, message: str):
    super().__init__(message)
    self.status, self.kind, self.message = status, kind, message
