"""Content-Encoding of request bodies: gzip and deflate, decoded piece by piece."""

import zlib

GZIP, ZLIB, RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
KINDS = ('gzip', 'x-gzip', 'deflate')


class Inflater:
  """Decodes a body of one of KINDS; keeps no more than one piece in memory."""

  def __init__(self, kind: str):
    self._gzip, self._stream = kind != 'deflate', None

  def decode(self, piece: bytes, most: int) -> bytes:
    """At most `most` (> 0) decoded bytes of the next piece; the rest of the piece is dropped.

    Raises: zlib.error if it is not of this kind.
    """
    decoded = bytearray()
    while piece and len(decoded) < most:
      if not self._stream or self._stream.eof:  # gzip may have several members
        # Some clients send deflate without zlib's header; its first four bits are 8.
        self._stream = zlib.decompressobj(
          GZIP if self._gzip else ZLIB if piece[0] & 15 == 8 else RAW
        )
      decoded += self._stream.decompress(piece, most - len(decoded))
      piece = self._stream.unconsumed_tail or self._stream.unused_data
    return bytes(decoded)

  @property
  def complete(self) -> bool:
    """Whether the last piece ended the body."""
    return bool(self._stream and self._stream.eof)
