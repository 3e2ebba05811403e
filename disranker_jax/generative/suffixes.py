"""The sorted suffixes of a text of tokens: which tokens may follow an n-gram, how often, and where.

A suffix is the text from a position to its end. All suffixes that begin with the same tokens are
neighbours in the order: an n-gram is an interval of rows, and its count is the interval's length.
Source: suffix arrays (Manber and Myers, 1993), sorted by prefix doubling.
Letters: N tokens of the text, H heavy prefixes, F followers of heavy prefixes.
"""

import bisect
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from disranker_jax.data import contents
from disranker_jax.errors import UserError
from disranker_jax.models import files
from disranker_jax.progress import amount

VERSION = 1  # of the files
LIMIT = 2**31  # positions and rows are int32
LIGHT = -1  # the number of a prefix that is not heavy
NOTE = 'suffixes.json'
# Per token of the text, at most, while it is built: text, keys, their order, sorted keys, ranks.
BUILD_BYTES = 4 + 8 + 8 + 8 + 4
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, ascending; first rows; numbers of rows


@dataclasses.dataclass(frozen=True, eq=False)
class Heavy:
  """The followers of all prefixes with more than `window` rows, and of the empty one, number 0.

  The followers of prefix h are entries first[h] to first[h + 1] of the other arrays, by token. The
  token -1 stands for the end of the text. All are int32.
  """

  first: np.ndarray  # [H + 1]
  token: np.ndarray  # [F]
  low: np.ndarray  # [F] the first row of prefix and follower
  wide: np.ndarray  # [F] how many rows they have
  child: np.ndarray  # [F] their number as a heavy prefix, or LIGHT

  def followers(self, number: int) -> slice:
    """Where the followers of a prefix are."""
    return slice(int(self.first[number]), int(self.first[number + 1]))


@dataclasses.dataclass(frozen=True, eq=False)
class Suffixes:
  """The order of a text's suffixes by their first `depth` tokens, ties by position.

  Exact for n-grams of up to `depth` tokens.

  text_N, order_N  int32, may be memory-mapped files; a part of a text has more text than order
  symbols          tokens are less than this
  window           a prefix with more rows is heavy
  """

  text_N: np.ndarray
  order_N: np.ndarray
  symbols: int
  depth: int
  window: int
  heavy: Heavy

  @classmethod
  def build(
    cls, text_N: np.ndarray, symbols: int, depth: int = 16, window: int = 512
  ) -> 'Suffixes':
    """Sorts the suffixes of a text.

    Raises: UserError for an empty text, one with too many tokens, and tokens out of range.
    """
    if depth < 1 or window < 1:
      raise UserError(f'depth={depth}, window={window}: both must be at least 1')
    text_N = np.asarray(text_N)
    if not len(text_N):
      raise UserError('the collection is empty: there are no tokens to index; check its address')
    if len(text_N) >= LIMIT - depth - window:  # places a little behind the end are counted too
      raise UserError(
        f'the collection has {len(text_N):,} tokens, and an index holds less than {LIMIT:,}; give '
        'config.data.documents fewer or shorter documents, or lower config.index.queries'
      )
    wrong = (text_N < 0) | (text_N >= symbols)
    if wrong.any():
      at = int(wrong.argmax())
      raise UserError(
        f'token {int(text_N[at])} at position {at} of the index text is not among the {symbols} '
        'symbols; make the text with the tokenizer of the model that reads the index'
      )
    del wrong
    text_N = np.ascontiguousarray(text_N, np.int32)
    order_N = _order(text_N, symbols, depth)
    return cls(text_N, order_N, symbols, depth, window, _heavy(text_N, order_N, depth, window))

  def __len__(self) -> int:
    return len(self.order_N)

  def interval(self, tokens: Sequence[int]) -> tuple[int, int]:
    """The rows whose suffixes begin with the tokens; (row, row) if none does.

    Raises: UserError for more tokens than `depth`.
    """
    self._check_depth(len(tokens))
    lo, hi = 0, len(self)
    for depth, token in enumerate(map(int, tokens)):

      def at(row, depth=depth):
        position = int(self.order_N[row]) + depth
        return int(self.text_N[position]) if position < len(self.text_N) else -1

      lo = bisect.bisect_left(range(hi), token, lo, hi, key=at)
      hi = bisect.bisect_right(range(hi), token, lo, hi, key=at)
    return lo, hi

  def positions(self, lo: int, hi: int) -> np.ndarray:
    """Where in the text the suffixes of some rows begin, ascending, int64."""
    return np.sort(self.order_N[lo:hi]).astype(np.int64)

  def followers(self, tokens: Sequence[int]) -> list[tuple[int, int, int]]:
    """(token, lo, hi) of all tokens that follow an n-gram, by token, with the rows of both.

    Raises: UserError for `depth` tokens or more.
    """
    self._check_depth(len(tokens) + 1)
    number = self.number(tokens)
    if number == LIGHT:
      rows = _runs(self.text_N, self.order_N, *self.interval(tokens), len(tokens))
    else:
      part = self.heavy.followers(number)
      rows = self.heavy.token[part], self.heavy.low[part], self.heavy.wide[part]
    triples = zip(*(x.tolist() for x in rows), strict=True)
    return [(token, low, low + wide) for token, low, wide in triples if token >= 0]

  def number(self, tokens: Sequence[int]) -> int:
    """The number of a heavy prefix, LIGHT for others."""
    number = 0
    for token in map(int, tokens):
      part = self.heavy.followers(number)
      at = part.start + int(np.searchsorted(self.heavy.token[part], token))
      if at == part.stop or self.heavy.token[at] != token or self.heavy.child[at] == LIGHT:
        return LIGHT
      number = int(self.heavy.child[at])
    return number

  def sizes(self) -> tuple[int, int]:
    """(bytes of text and order, bytes of the tables of heavy prefixes), on a device and on disk."""
    tables = sum(array.nbytes for array in _heavy_arrays(self.heavy).values())
    return self.text_N.nbytes + self.order_N.nbytes, tables

  def _check_depth(self, length: int) -> None:
    if length > self.depth:
      raise UserError(
        f'an n-gram of {length} tokens, and the index is sorted by {self.depth}; build it with a '
        'larger depth, or ask for shorter n-grams'
      )

  def split(self, starts_P: np.ndarray, parts: int) -> list['Suffixes']:
    """Parts of whole pages, with about as many tokens each, to be held by different devices.

    An n-gram's rows in the parts add up to those in the whole, lower and upper bounds alike.

    Raises: UserError for fewer pages than parts.
    """
    if parts > len(starts_P):
      raise UserError(
        f'a collection of {amount(len(starts_P), "page")} cannot be split into '
        f'{amount(parts, "part")}'
      )
    pages = [0]  # the first of each part; every part has one
    for i in range(1, parts):
      nearest = int(np.searchsorted(starts_P, i * len(self) / parts))
      pages.append(min(max(nearest, pages[-1] + 1), len(starts_P) - parts + i))
    bounds = [*starts_P[pages].tolist(), len(self)]
    return [self._part(lo, hi) for lo, hi in itertools.pairwise(bounds)]

  def _part(self, lo: int, hi: int) -> 'Suffixes':
    """The suffixes that begin in a range of positions, in their order."""
    order = self.order_N[(self.order_N >= lo) & (self.order_N < hi)] - np.int32(lo)
    text = self.text_N[lo : hi + self.depth]  # all that the order compares
    heavy = _heavy(text, order, self.depth, self.window)
    return dataclasses.replace(self, text_N=text, order_N=order, heavy=heavy)

  def save(self, folder: str | Path) -> None:
    """Writes the arrays and a note with their digests; replaces the folder."""
    arrays = {'text': self.text_N, 'order': self.order_N} | _heavy_arrays(self.heavy)
    with files.replacing(folder) as new:
      for name, array in arrays.items():
        np.save(new / f'{name}.npy', array)
      note = {'version': VERSION, 'tokens': len(self)}
      note |= {key: getattr(self, key) for key in ('symbols', 'depth', 'window')}
      note['sha256'] = {name: contents.digest(new / f'{name}.npy') for name in arrays}
      (new / NOTE).write_text(json.dumps(note, indent=2) + '\n')

  @classmethod
  def load(cls, folder: str | Path) -> 'Suffixes':
    """Opens what `save` wrote; the arrays stay on disk until they are read.

    Raises: UserError for a folder that is missing, damaged, or of another version.
    """
    folder = Path(folder)
    again = f'{folder}: is not an index, or damaged; make it again'
    try:
      note = json.loads((folder / NOTE).read_text())
      if note['version'] != VERSION:
        raise UserError(
          f'{folder}: an index of version {note["version"]}, and this code reads {VERSION}; make '
          'it again'
        )
      sizes = {key: int(note[key]) for key in ('symbols', 'depth', 'window')}
      arrays = {}
      for name in ('text', 'order', *HEAVY):
        file = folder / f'{name}.npy'
        if contents.digest(file) != note['sha256'][name]:
          raise UserError(f'{again} ({file.name} has another content)')
        # A plain view: single elements of a memmap are slow to read.
        arrays[name] = np.load(file, mmap_mode='r').view(np.ndarray)
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f'{again} ({error})') from error
    text_N, order_N = arrays.pop('text'), arrays.pop('order')
    return cls(text_N, order_N, **sizes, heavy=Heavy(**arrays))


HEAVY = tuple(field.name for field in dataclasses.fields(Heavy))


def memory(tokens: int) -> tuple[int, int]:
  """(bytes on a device, bytes of the host at most while it builds), before an index is built.

  Without the tables of heavy prefixes, whose size depends on how often texts repeat each other.
  """
  return 8 * tokens, BUILD_BYTES * tokens


def _heavy_arrays(heavy: Heavy) -> dict[str, np.ndarray]:
  return {name: getattr(heavy, name) for name in HEAVY}


def _order(text_N, symbols, depth):
  """The positions sorted by their suffixes' first `depth` tokens, ties by position, int32.

  A key of 63 bits holds the first few tokens. Then each round doubles the tokens that a rank
  compares: its key is the rank of a position, and that of the position behind the compared tokens.
  """
  bits = int(symbols).bit_length()
  known = min(depth, max(1, 63 // bits))
  key_N = np.zeros(len(text_N), np.int64)
  for i in range(known):
    key_N <<= bits
    _add_shifted(key_N, text_N, i)
  rank_N, distinct = _ranks(key_N)
  while known < depth and distinct < len(text_N):
    step = min(known, depth - known)
    key_N[:] = rank_N
    key_N <<= 32
    _add_shifted(key_N, rank_N, step)
    del rank_N  # or there are two of them at a time
    rank_N, distinct = _ranks(key_N)
    known += step
  key_N[:] = rank_N
  key_N <<= 32
  key_N |= np.arange(len(text_N))
  key_N.sort()
  return (key_N & (LIMIT - 1)).astype(np.int32)


def _add_shifted(key_N, values_N, by):
  """Adds the value `by` positions later, plus 1; 0 stands for a place behind the end."""
  if by < len(key_N):
    key_N[: len(key_N) - by] += values_N[by:]
    key_N[: len(key_N) - by] += 1


def _ranks(key_N):
  """(dense ranks of keys, int32; how many keys differ)."""
  by_key_N = np.argsort(key_N)
  sorted_N = key_N[by_key_N]
  new_N = np.empty(len(key_N), np.int32)
  new_N[0] = 0
  np.not_equal(sorted_N[1:], sorted_N[:-1], out=new_N[1:], casting='unsafe')
  del sorted_N
  np.cumsum(new_N, dtype=np.int32, out=new_N)
  rank_N = np.empty_like(new_N)
  rank_N[by_key_N] = new_N
  return rank_N, int(new_N[-1]) + 1


def _runs(text_N, order_N, lo: int, hi: int, depth: int) -> Rows:
  """The tokens at `depth` of sorted suffixes, each once, with its first row and number of rows."""
  at = order_N[lo:hi].astype(np.int64) + depth
  tokens = np.where(at < len(text_N), text_N[np.minimum(at, len(text_N) - 1)], -1)
  is_new = np.ones(len(tokens), bool)
  np.not_equal(tokens[1:], tokens[:-1], out=is_new[1:])
  starts = np.flatnonzero(is_new)
  return tokens[starts], lo + starts, np.diff(starts, append=hi - lo)


def _heavy(text_N, order_N, depth, window) -> Heavy:
  """The followers of all heavy prefixes that are shorter than `depth`, breadth first."""
  prefixes = [(0, len(order_N), 0)]
  parts = []
  for lo, hi, length in prefixes:  # grows while it is read
    token, low, wide = _runs(text_N, order_N, lo, hi, length)
    child = np.full(len(token), LIGHT)
    if length + 1 < depth:
      heavy = np.flatnonzero((wide > window) & (token >= 0))
      child[heavy] = len(prefixes) + np.arange(len(heavy))
      prefixes += [(int(low[i]), int(low[i] + wide[i]), length + 1) for i in heavy]
    parts.append((token, low, wide, child))
  first = np.cumsum([0, *(len(token) for token, *_ in parts)])
  columns = (first, *(np.concatenate(column) for column in zip(*parts, strict=True)))
  return Heavy(*(column.astype(np.int32) for column in columns))
