"""Request bodies: read within limits of bytes and time, decoded, and parsed as JSON."""

import gc
import json
import zlib

from starlette.requests import Request

from disranker_jax.serve.admission import Visit
from disranker_jax.serve.encoding import KINDS, Inflater
from disranker_jax.serve.errors import Refused


async def read(request: Request, visit: Visit, most: int, seconds: float) -> bytearray:
  """The decoded body, whose bytes `visit` counts while they arrive.

  Raises: Refused if it has more than `most` bytes (as sent or decoded), takes longer than
    `seconds`, is in another encoding than gzip or deflate, or if all requests hold too much.
  """
  too_large = Refused(413, 'Validation', f'the body is larger than {most} bytes')
  declared = request.headers.get('content-length', '')
  if declared.isdigit() and int(declared) > most:
    raise too_large
  kind = request.headers.get('content-encoding', 'identity').strip().lower()
  if kind not in ('', 'identity', *KINDS):
    raise Refused(415, 'Validation', f'content-encoding {kind!r}: send gzip, deflate or none')
  inflater = Inflater(kind) if kind in KINDS else None
  body, received = bytearray(), 0
  try:
    async with visit.arriving(seconds):
      async for piece in request.stream():
        received += len(piece)
        decoded = inflater.decode(piece, most + 1 - len(body)) if inflater else piece
        if max(received, len(body) + len(decoded)) > most:
          raise too_large
        visit.hold(len(decoded))
        body += decoded
  except TimeoutError:
    raise Refused(408, 'Validation', 'the body took too long to arrive') from None
  except zlib.error:
    raise Refused(422, 'Validation', f'the body is not {kind}') from None
  if inflater and not inflater.complete:
    raise Refused(422, 'Validation', f'the body is not complete {kind}')
  return body


def parse(body: bytearray) -> dict:
  """The JSON object in a body. Raises: Refused if it is anything else."""
  # A body of brackets makes a million lists. The garbage collector would visit all of them again
  # and again (1.2 s for 2 MB), though values of JSON have no cycles.
  collecting = gc.isenabled()
  gc.disable()
  try:
    value = json.loads(body)
  except (ValueError, RecursionError):
    raise Refused(422, 'Validation', 'the body is not JSON') from None
  finally:
    if collecting:
      gc.enable()
  if not isinstance(value, dict):
    raise Refused(422, 'Validation', 'the body must be a JSON object')
  return value
