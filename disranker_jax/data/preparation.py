"""What is to be prepared: a source, the settings that change its records, and where they go.

The stage `prepare` and the command make their jobs here, so equal requests have equal digests.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from disranker_jax.data import clicks, sources, teacher_scores
from disranker_jax.data.negatives import Negatives
from disranker_jax.data.records import BadRows
from disranker_jax.data.source import POOLED
from disranker_jax.data.store import Record

VERSION = 1  # of the unfinished work; that of another one is discarded

# A transformation of the records, such as joining the scores of other teachers.
Change = Callable[[Iterator[Record], BadRows, Path], Iterator[Record]]


@dataclasses.dataclass(frozen=True)
class Job:
  """One source to prepare, and the folder of the result.

  `limit` is the number of records to keep, 0: all. `changes` transform the records before they are
  written; `change_settings` describes them, so that other settings are another job. `read_as` is
  the kind to read the source as, if not `kind`.
  """

  address: str
  kind: str
  folder: Path
  quarantine: Path
  depth: int = 0  # see sources.read
  on_bad_row: str = 'error'
  limit: int = 0
  changes: tuple[Change, ...] = ()
  change_settings: str = ''
  read_as: str = ''
  keep: Callable[[Record], bool] | None = None  # which records to keep; None: all

  @property
  def partial(self) -> Path:
    """The folder of unfinished work."""
    return self.folder.with_name(f'.{self.folder.name}.partial')

  def digest(self) -> str:
    """Identifies the job: the source as it is now, and all settings that change the result."""
    settings = [
      self.kind, self.read_as, self.depth, self.on_bad_row, self.limit, self.change_settings,
      VERSION,
    ]  # fmt: skip
    value = json.dumps([sources.fingerprint(self.address), settings])
    return hashlib.sha256(value.encode()).hexdigest()


def job(
  address: str,
  kind: str,
  folder: Path,
  *,
  least: int | None = None,
  teachers: Sequence[str] = (),
  ordered: bool = False,
  negatives: Negatives | None = None,
  depth: int = 0,
  limit: int = 0,
  on_bad_row: str = 'error',
  keep: Callable[[Record], bool] | None = None,
) -> Job:
  """The job that makes the records of a kind from an address; equal requests have equal digests.

    least      of clicks: they are the documents of judgements with a label of `least` or better
    teachers   addresses of scores that are joined to the documents
    ordered    of judgements: candidates, with the order that the teachers give them as labels
    negatives  of judgements: the unlabeled documents of the first stage that are added

  `limit` counts the records that are made. The others are those of Job.
  """
  read_kind = read_as(kind, least=least, ordered=ordered, negatives=negatives)
  changes: list[Change] = []
  settings: list = []
  if least:
    # The limit counts clicks, not the queries that they are derived from.
    changes.append(clicks.Relevant(least, limit))
    settings.append(repr(changes[-1]))
    limit = 0
  if teachers:
    changes.append(teacher_scores.Teachers(teachers, drop=kind == 'candidates' or ordered))
    settings += map(sources.fingerprint, teachers)
  if ordered:
    changes.append(teacher_scores.ordered)
    settings.append(teacher_scores.ORDER_ADDRESS)
  if negatives:
    changes.append(negatives)
    settings.append(repr(negatives))
    depth = depth or sources.open(address).default_depth
    depth = depth and max(depth, negatives.max_rank)  # 0: all rows are kept
  if keep:
    settings.append(repr(keep))
  return Job(
    address, kind, **places(folder), depth=depth, limit=limit, on_bad_row=on_bad_row,
    changes=tuple(changes), change_settings=json.dumps(settings),
    read_as='' if read_kind == kind else read_kind, keep=keep,
  )  # fmt: skip


def read_as(
  kind: str, *, least: int | None = None, ordered: bool = False, negatives: Negatives | None = None
) -> str:
  """As which kind the source of a `job` is read."""
  if negatives:
    return POOLED
  if ordered:
    return 'candidates'
  return 'judgements' if least else kind


def places(folder: Path) -> dict[str, Path]:
  """Where the records of a job and its bad rows go."""
  return {'folder': folder, 'quarantine': folder.with_name(f'{folder.name}.quarantine.jsonl')}
