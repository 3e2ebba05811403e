"""The one exception for clients: an HTTP status with a kind and a sentence."""


class Refused(Exception):
  """What a request is answered with instead of scores; each shape writes it in its own format.

  `kind` is one of TEI's: Unhealthy, Backend, Overloaded, Validation, Tokenizer, Empty.
  """

  def __init__(self, status: int, kind: str, message: str):
    super().__init__(message)
    self.status, self.kind, self.message = status, kind, message
