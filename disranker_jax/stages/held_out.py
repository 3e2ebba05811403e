"""The queries that no training stage learns from; held_out_measures.py measures them.

A query is held out by a hash of its text, or of what `data.holdout_by` matches in its id. So the
sides do not depend on the order of the data, all stages hold out the same queries, and students and
teacher are compared on the same labelled ones. Test queries are never among them: they are not
among the records of training stages.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from disranker_jax.data import batches
from disranker_jax.data.holdout import cluster, normalized, place
from disranker_jax.data.records import Click, Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems
from disranker_jax.progress import Count, say
from disranker_jax.stages import held_out_file, prepare
from disranker_jax.training.settings import LEAST
from disranker_jax.training.validation import LOSS, Measure, Validation

NDCG, PNR, TAU = 'ndcg@5', 'pnr', 'tau'
FEW = f'fewer than {LEAST} labelled queries with documents of two grades are held out'
MANY = 20  # times the queries that are measured: no more are held in memory
RAISE = 'raise it'  # config.validation.share, which messages name before
# Keys of a stage's validation that are of no use without one.
DECISIONS = ('keep_best', 'patience', 'every', 'metric')


class Subset(Sequence):
  """Some records of a source, by their indices."""

  def __init__(self, source: Sequence, kept: np.ndarray):
    self._source, self._kept = source, kept

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, i: int):
    return self._source[int(self._kept[i])]

  def of(self, source: Sequence) -> 'Subset':
    """The same places of another source."""
    inner = self._source.of(source) if isinstance(self._source, Subset) else source
    return Subset(inner, self._kept)


@dataclasses.dataclass(frozen=True)
class Split:
  """The records of a stage: those that it learns, and those that it measures."""

  learned: Sequence
  measured: list


def graded(group: Group) -> bool:
  """Whether a model can rank the documents wrongly; those that are not judged are not relevant."""
  return len({max(doc.label, 0) for doc in group.docs}) > 1


def split(
  run, stage: str, records: Sequence, *, query: Callable = lambda record: record,
  usable: Callable = bool, fix: str = RAISE,
) -> Split:  # fmt: skip
  """Holds out a share of a stage's records, with at most `validation.max_queries` to measure.

  A stage that finds too few of them measures nothing and prints a line. It then learns from all,
  unless there are enough labelled queries by which others are compared.

  Args:
    query: record -> the click or group with its query.
    usable: click or group -> whether it can be measured; others are held out all the same.
    fix: what gives more held-out queries, for messages.

  Raises: UserError for too few queries where the config needs a validation. Of generated queries
    their number is known only after hours of work, so then a line says that the result is
    the last checkpoint.
  """
  c = run.config.validation
  if not c.share:
    return Split(records, [])
  held, firsts, single = found_once(run, stage, records, query, usable)
  kept = Subset(records, np.delete(np.arange(len(records), dtype=np.int32), held))
  if len(firsts) < LEAST:
    why = too_few(run, stage, len(firsts), len(records), single, fix)
    decides, compared = run.config[stage].validation, labelled(run)
    # Labelled queries that others are compared by decide too, by how they are ranked.
    if not is_generated(run, stage) or (compared and decides.metric not in ('', NDCG, PNR)):
      needed(run, stage, why)
    last = '; the last checkpoint is taken' if decides.keep_best and not compared else ''
    say(f'{stage}: no validation: {why}{last}')
    return Split(kept if compared else records, [])
  if not kept:
    raise UserError(f'config.validation.share={c.share:g}: holds out all records of {stage}')
  measured = [records[i] for i in firsts]
  say(
    f'{stage}: {len(held):,} of {len(records):,} {what(run, stage)} are held out for validation, '
    f'{len(measured):,} are measured{of_one_grade(single)}'
  )
  return Split(kept, measured)


def learned(
  run, records: Sequence, *, query: Callable = lambda record: record, usable: Callable = bool
) -> Sequence:
  """The records that `split` leaves to learn from, without a message or an error."""
  if not run.config.validation.share:
    return records
  held, firsts, _ = find(run, map(query, records), usable)
  if len(firsts) < LEAST and not labelled(run):
    return records
  return Subset(records, np.delete(np.arange(len(records), dtype=np.int32), held))


def left(run, queries: Sequence[Click | Group]) -> int:
  """How many records with these queries `split` leaves to learn from."""
  return len(learned(run, queries))


def found_once(
  run, stage: str, records: Sequence, query: Callable, usable: Callable
) -> tuple[Sequence[int], Sequence[int], int]:
  """`find` of a stage's records, by one process and for all starts of the stage."""

  def look() -> held_out_file.Arrays:
    held, firsts, single = find(run, map(query, counted(stage, records)), usable)
    places = {'held': np.array(held, np.int32), 'firsts': np.array(firsts, np.int32)}
    return places | {'single': np.array(single)}

  found = processes.of_first(
    f'{stage}: held-out queries', lambda: held_out_file.kept(run, stage, len(records), look)
  )
  return found['held'], found['firsts'].tolist(), int(found['single'])


def find(
  run, queries: Iterable[Click | Group], usable: Callable = bool, enough: int = 0
) -> tuple[list[int], list[int], int]:
  """(indices of what is held out, an index of each query that is measured, by the hash, unusable).

  Of those that are not `usable` only the number is returned; they are held out all the same.

  Args:
    enough: so many queries that can be measured end the search; 0: all records are read.
  """
  c, where, held, firsts, single = run.config.validation, placer(run), [], {}, set()
  for i, record in enumerate(queries):
    if (at := where(record)) < c.share:
      held.append(i)
      # Each query once: a click log repeats its frequent ones.
      if not usable(record):
        single.add(normalized(record.query))
        continue
      firsts.setdefault((at, normalized(record.query)), i)
      if len(firsts) == enough:
        break
      if len(firsts) > MANY * c.max_queries:
        firsts = {key: firsts[key] for key in sorted(firsts)[: c.max_queries]}
  return held, [firsts[key] for key in sorted(firsts)[: c.max_queries]], len(single)


def too_few(run, stage: str, found: int, records: int, single: int, fix: str = RAISE) -> str:
  verb = 'is' if found == 1 else 'are'
  return (
    f'{found} of its {records:,} {what(run, stage)} {verb} held out by config.validation.share='
    f'{run.config.validation.share:g}{of_one_grade(single)}, and {LEAST} are needed; {fix}'
  )


def of_one_grade(count: int) -> str:
  """How many labelled queries do not count, as the end of a message."""
  verb = 'has' if count == 1 else 'have'
  return f' ({count:,} more {verb} documents of one grade only)' if count else ''


def check_records(
  run, stage: str, *kinds: str, usable: Callable = bool,
  records: Callable[[], Sequence] | None = None, fix: str = RAISE,
) -> None:  # fmt: skip
  """Raises: UserError before the first stage if one that decides by a validation has none.

  Generated queries are not there yet; where they are learned, held-out ones may be among them.

  Args:
    records: gives those that the stage splits, if it does not learn from all of `kinds`.
    fix: as of `split`.
  """
  c, share = run.config[stage].validation, run.config.validation.share
  if not share or not any(c[name] for name in DECISIONS):
    return
  if prepare.GENERATED not in kinds:
    parts = [records()] if records else [prepare.records(run, kind) for kind in kinds]
    _, firsts, single = find(run, itertools.chain(*parts), usable, LEAST)
    if len(firsts) < LEAST:
      needed(run, stage, too_few(run, stage, len(firsts), sum(map(len, parts)), single, fix))
  if c.metric in (NDCG, PNR) and not labelled(run):
    raise UserError(
      f'config.{stage}.validation.metric={c.metric!r}: {FEW}; raise config.validation.share, list '
      "a stage that reads judgements, or choose 'loss'"
    )


def check(config, stage: str, names: Sequence[str] = (LOSS, NDCG, PNR)) -> None:
  """Raises: UserError if a stage is to decide by a value that it does not measure."""
  c = config[stage].validation
  if c.metric and c.metric not in names:
    raise UserError(
      f'config.{stage}.validation.metric={c.metric!r}: is not measured here; choose of '
      f'{", ".join(names)}'
    )
  if not config.validation.share:
    for name in DECISIONS:
      if c[name]:
        raise UserError(
          f'config.{stage}.validation.{name}={c[name]!r}: config.validation.share=0 holds out no '
          'query to decide by; raise it'
        )


def kinds_of(run, stage: str) -> tuple[str, ...]:
  """The kinds of records that a stage reads."""
  return systems.find(run.config, stage).reads_records(run.config)


def what(run, stage: str) -> str:
  """What the records of a stage are called."""
  return 'clicks' if kinds_of(run, stage) == ('clicks',) else 'queries'


def is_generated(run, stage: str) -> bool:
  """Whether a stage learns queries that the run writes itself."""
  return prepare.GENERATED in kinds_of(run, stage)


def counted(stage: str, records: Sequence) -> Iterator:
  with Count(f'{stage}: held-out queries', 'records') as progress:
    for record in records:
      progress.add(1)
      yield record


def needed(run, stage: str, why: str) -> None:
  """Raises: UserError if a setting of the stage needs the validation that it lacks."""
  c = run.config[stage].validation
  for name in DECISIONS:
    if c[name]:
      raise UserError(f'config.{stage}.validation.{name}={c[name]!r}: {stage}: {why}')


def placer(run) -> Callable[[Click | Group], float]:
  """The place of a query between 0 and 1; those below `validation.share` are held out.

  With `data.holdout_by` queries of one topic or session stay together. Clicks have no ids: theirs
  are found by the texts of the labelled queries.
  """
  by, known = run.config.data.holdout_by, {}

  def own(record: Click | Group) -> float:
    if by and isinstance(record, Group):
      return salted(cluster(record.query_id, by))
    return salted(normalized(record.query))

  if by and 'judgements' in prepare.kinds(run.config):
    known = {normalized(g.query): own(g) for g in prepare.records(run, 'judgements')}
  return lambda record: known.get(normalized(record.query), own(record)) if known else own(record)


def salted(key: str) -> float:
  """Other places than those by which `data.holdout` chooses the test."""
  return place(f'validation\n{key}')


def labelled(run) -> list[Group]:
  """The labelled queries that every stage ranks, with the documents that it ranks.

  Empty as `judged` is.
  """
  return [sampled(group, run.config.validation.documents) for group in judged(run)]


def judged(run, usable: Callable = graded) -> list[Group]:
  """The labelled queries that no stage learns from, with all their documents.

  Empty if there are too few, or if no listed stage learns from labels.
  """
  c = run.config.validation
  if not c.share or 'judgements' not in prepare.kinds(run.config):
    return []
  records = prepare.records(run, 'judgements')
  _, firsts, _ = find(run, records, usable)
  if len(firsts) < LEAST:
    return []
  return [records[i] for i in firsts]


def sampled(group: Group, size: int) -> Group:
  """The query with at most `size` documents, the same ones in every stage."""
  rng = np.random.default_rng(int(salted(normalized(group.query)) * 2**32))
  picks = batches.sample(group, size, rng)
  return dataclasses.replace(group, docs=tuple(group.docs[i] for i in picks))


def validation(stage: str, job, measure: Measure | None) -> Validation | None:
  """The validation of a stage's job; None if it measures nothing."""
  return Validation(stage, measure, job.settings, job.steps) if measure else None


def results(todo, checked: Validation | None) -> dict:
  """The results of a training stage for its manifest."""
  return {'steps': todo.steps} | (checked.results() if checked else {})
