"""Scored pairs on disk: Parquet shards, each with a note about its content and origin.

`00003.parquet` holds query_id, doc_id and score of a fixed range of queries, in their order;
`_00003.json` the number of rows, the sha256 and what made the scores (model, precision, tokenizer).
Both are written atomically, the note last, so a shard with a note is done. Every read checks the
shard against its note.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from disranker_jax.errors import UserError
from disranker_jax.progress import say

SCHEMA = pa.schema([('query_id', pa.string()), ('doc_id', pa.string()), ('score', pa.float32())])


class Shards:
  """A folder of the scored pairs of `queries` queries, `size` queries per shard.

  Args:
    made: what the scores come from: {'model': ..., ...}; shards with another origin are refused.
  """

  def __init__(self, folder: Path, queries: int, size: int, made: dict | None = None):
    self.folder, self.queries, self.size = folder, queries, size
    self.made = made

  def __len__(self) -> int:
    return -(-self.queries // self.size)

  def span(self, shard: int) -> range:
    """The queries of a shard, by index."""
    return range(shard * self.size, min((shard + 1) * self.size, self.queries))

  def file(self, shard: int) -> Path:
    return self.folder / f'{shard:05d}.parquet'

  def note_file(self, shard: int) -> Path:
    """Named so that readers of Parquet folders skip it."""
    return self.folder / f'_{shard:05d}.json'

  def note(self, shard: int) -> dict | None:
    """The note of a shard; None if the shard is not done."""
    try:
      note = json.loads(self.note_file(shard).read_text())
      return note if {'rows', 'sha256', 'made'} <= note.keys() else None
    except FileNotFoundError:
      return None
    except (ValueError, AttributeError):
      return None  # an unreadable note counts as none

  def missing(self) -> list[int]:
    """The shards without a note, and those that differ from it; reads every finished shard.

    Raises: UserError if another model made one of them.
    """
    return [shard for shard in range(len(self)) if not self._is_whole(shard)]

  def _is_whole(self, shard: int) -> bool:
    note = self.note(shard)
    if note is None:
      return False
    if self.made is not None and note['made'] != self.made:
      differs = [k for k in self.made if note['made'].get(k) != self.made[k]]
      raise UserError(
        f'{self.file(shard)}: was made with another {", ".join(differs) or "model"}; '
        'do the scores again with --rerun=score'
      )
    try:
      if hashlib.sha256(self.file(shard).read_bytes()).hexdigest() == note['sha256']:
        return True
      reason = 'is not what was written (its sha256 differs)'
    except OSError as e:
      reason = f'cannot be read ({e.strerror})'
    say(f'{self.file(shard)} {reason}: it is scored again')
    return False

  def write(self, shard: int, scored) -> None:
    """Stores the (group, scores) of the shard's queries, atomically."""
    columns = {'query_id': [], 'doc_id': [], 'score': []}
    for group, scores in scored:
      columns['query_id'] += [group.query_id] * len(group.docs)
      columns['doc_id'] += [d.doc_id for d in group.docs]
      columns['score'] += scores.tolist()
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, SCHEMA), buffer)
    content = buffer.getvalue().to_pybytes()
    note = {
      'queries': len(scored),
      'rows': len(columns['score']),
      'sha256': hashlib.sha256(content).hexdigest(),
      'made': self.made,
    }
    put(self.file(shard), content)
    put(self.note_file(shard), (json.dumps(note, indent=1) + '\n').encode())

  def read(self, shard: int) -> pa.Table:
    """A finished shard's rows. Raises: UserError if it differs from its note."""
    note, file = self.note(shard), self.file(shard)
    try:
      content = file.read_bytes()
    except OSError as e:
      raise UserError(f'{file}: cannot be read ({e.strerror}); run the score stage again') from e
    if note is None or hashlib.sha256(content).hexdigest() != note['sha256']:
      raise UserError(f'{file}: is damaged; do it again with --rerun=score')
    return pq.read_table(pa.BufferReader(content), schema=SCHEMA)

  def rows(self) -> Iterator[tuple[str, str, float]]:
    """(query_id, doc_id, score) of all shards, in order."""
    for shard in range(len(self)):
      table = self.read(shard)
      yield from zip(*(table.column(c).to_pylist() for c in SCHEMA.names), strict=True)

  def audit(self, pairs_of) -> np.ndarray:
    """All scores in order, after a check that every pair has exactly one finite score.

    Args:
      pairs_of: index of a query -> (query_id, its doc_ids in order), as they had to be scored.

    Raises: UserError naming the shard that fails.
    """
    scores = []
    for shard in range(len(self)):
      table = self.read(shard)
      expected = [(q, d) for q, docs in map(pairs_of, self.span(shard)) for d in docs]
      stored = zip(table.column('query_id').to_pylist(), table.column('doc_id').to_pylist(),
                  strict=True)  # fmt: skip
      if expected != list(stored):
        raise UserError(
          f'{self.file(shard)}: its {table.num_rows} rows are not the {len(expected)} pairs that '
          'were to be scored; do it again with --rerun=score'
        )
      values = table.column('score').to_numpy()
      if not np.isfinite(values).all():
        raise UserError(f'{self.file(shard)}: has scores that are not finite; --rerun=score')
      scores.append(values)
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def put(file: Path, content: bytes) -> None:
  """Writes a file atomically and to disk: under another name first."""
  partial = file.with_name(file.name + '.partial')
  try:
    with partial.open('wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, file)
  except OSError:
    partial.unlink(missing_ok=True)
    raise
