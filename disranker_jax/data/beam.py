"""Prepares a source on several machines with Apache Beam, through the TFDS builder.

A file of the source is a unit of work: use many files of some hundred megabytes, on a file system
that all workers can read. The records are those that `preparing` makes on one machine, but ordered
by a hash of the query.
"""

import functools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from disranker_jax import locks
from disranker_jax.data import grouping, records, row_files, sources, store
from disranker_jax.data.lines import NoRows
from disranker_jax.data.negatives import Negatives
from disranker_jax.data.preparation import Job
from disranker_jax.data.preparing import Prepared
from disranker_jax.data.records import BadRow, BadRows, Document, Group
from disranker_jax.data.row_files import RowFiles
from disranker_jax.errors import UserError, reason

# Side outputs: bad rows as JSON lines; numbers of rows; `BadRows.notes` as JSON.
BAD, READ, NOTES = 'bad', 'read', 'notes'


class CollectedBadRows(BadRows):
  """Keeps bad rows as a list of JSON lines, because another process writes the file."""

  def __init__(self, mode: str):
    super().__init__('error')
    self.lines: list[str] = []
    self._quarantine = mode == 'quarantine'

  def reject(self, file: Any, line: int, raw: Any, bad: BadRow) -> None:
    if not self._quarantine:
      super().reject(file, line, raw, bad)
    self.quarantined += 1
    self.lines.append(records.entry(file, line, raw, bad))

  def outputs(self) -> Iterator[tuple[str, str]]:
    """The bad rows and notes as (tag, line)."""
    yield from ((BAD, line) for line in self.lines)
    if self.notes:
      yield NOTES, json.dumps(self.notes)


def prepare(job: Job, runner: str, options: Iterable[str] = ()) -> Prepared:
  """Runs a job on a Beam runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner.

  `options` are options of Beam, such as `--project=...`. Raises: UserError.
  """
  beam = _import()
  source = sources.open(job.address)
  if not isinstance(source, RowFiles):
    what = 'is not a jsonl: or parquet: address; prepare it without --beam-runner'
    raise UserError(f'{job.address}: {what}')
  if job.limit or any(not isinstance(change, Negatives) for change in job.changes):
    raise UserError('--beam-runner: does not support --limit and --teachers; leave them out')
  store.check_target(job.folder)
  job.folder.parent.mkdir(parents=True, exist_ok=True)
  with (
    locks.beside(job.folder),
    tempfile.TemporaryDirectory(prefix=f'.{job.folder.name}.', dir=job.folder.parent) as temp,
  ):
    examples = _examples(beam, job, source, Path(temp))
    builder = store.PreparedBuilder(kind=job.kind, data_dir=f'{temp}/new', examples=examples)
    config = tfds.download.DownloadConfig(
      beam_runner=runner, beam_options=beam.options.pipeline_options.PipelineOptions(list(options))
    )
    try:
      with store.quiet():
        builder.download_and_prepare(download_config=config)
    except UserError:
      raise
    except Exception as error:
      raise _user_error(error, job) from error
    bad = _lines(Path(temp), BAD)
    rows = sum(map(int, _lines(Path(temp), READ)))
    notes = sum(map(Counter, map(json.loads, _lines(Path(temp), NOTES))), Counter())
    for change in job.changes:
      change.check(notes)
    if bad:
      job.quarantine.write_text(''.join(f'{line}\n' for line in sorted(bad)))
    count = builder.info.splits[store.SPLIT].num_examples
    store.replace(Path(builder.data_dir), job.folder)
  return Prepared(records=count, rows=rows, quarantined=len(bad), wall_s=0.0, notes=dict(notes))


def _import() -> Any:
  try:
    import apache_beam

    return apache_beam
  except ImportError:
    raise UserError(
      "--beam-runner: Apache Beam is not installed; pip install -e '.[beam]' in the checkout"
    ) from None


def _examples(beam: Any, job: Job, source: RowFiles, temp: Path) -> Any:
  """The PTransform that gives (key, fields), and writes bad rows and counts to `temp`."""
  matching = source.files  # here, so that Beam does not wrap the error if there are none

  @beam.ptransform_fn
  def examples(pipeline):
    files = [(i, str(file)) for i, file in enumerate(matching)]
    read = functools.partial(
      _read, job.kind, job.read_as or job.kind, job.on_bad_row, source.reader, len(files) == 1
    )
    rows = (
      pipeline
      | 'files' >> beam.Create(files)
      | 'spread files' >> beam.Reshuffle()
      | 'read' >> beam.FlatMap(_tagged, read).with_outputs(BAD, READ, NOTES, main='rows')
    )
    main, bad, notes = rows.rows, rows[BAD], rows[NOTES]
    if job.kind != 'clicks':
      merge = functools.partial(_merge, job)
      groups = (
        main
        | 'gather' >> beam.GroupByKey()
        | 'merge' >> beam.FlatMap(_tagged, merge).with_outputs(BAD, NOTES, main='groups')
      )
      main = groups.groups
      bad = (bad, groups[BAD]) | 'all bad' >> beam.Flatten()
      notes = (notes, groups[NOTES]) | 'all notes' >> beam.Flatten()
    for name, lines in ((BAD, bad), (READ, rows[READ]), (NOTES, notes)):
      _ = lines | f'write {name}' >> beam.io.WriteToText(str(temp / name))
    return main

  return examples()


def _tagged(element: Any, make: Callable) -> Iterator[Any]:
  """Converts the (tag, value) that `make` yields to Beam outputs; no tag is the main output."""
  from apache_beam.pvalue import TaggedOutput

  for tag, value in make(element):
    yield TaggedOutput(tag, value) if tag else value


def _read(
  kind: str, read_as: str, on_bad_row: str, read: Callable, alone: bool, file: tuple[int, str]
):
  """(key, fields) of the clicks, or (query_id, part) of the groups, of a file (`alone`: of one)."""
  index, name = file
  bad_rows, make = CollectedBadRows(on_bad_row), row_files.made(read_as)

  def parsed() -> Iterator[tuple[str, int, Any]]:
    try:
      for number, raw in read(Path(name)):
        for record in bad_rows.parse_all(name, number, raw, make):
          yield name, number, record
    except NoRows:
      if alone:
        raise
      bad_rows.note(f'file without rows skipped: {name}')

  if kind == 'clicks':
    for i, (_, _, click) in enumerate(parsed()):
      yield '', (f'{index}:{i}', store.to_row(click))
  else:
    for query_id, (first, query, docs) in grouping.parts(parsed()):
      yield '', (query_id, ((index, first), query, docs))
  yield READ, str(bad_rows.rows_in)
  yield from bad_rows.outputs()


def _merge(job: Job, element: tuple[str, Iterable[tuple]]):
  """(key, fields) of a query, merged from its parts."""
  query_id, parts = element
  bad_rows = CollectedBadRows(job.on_bad_row)
  _, query, docs = grouping.merge(query_id, sorted(parts, key=lambda part: part[0]), bad_rows)
  group = Group(query_id, query, tuple(Document(*fields) for fields in docs))
  kind = job.read_as or job.kind
  group = grouping.counted_cut(group, kind, job.depth, bad_rows, job.address)
  for change in job.changes:
    group = group and change.drawn(group, bad_rows)
  if group:
    yield '', (query_id, store.to_row(group))
  yield from bad_rows.outputs()


def _lines(folder: Path, name: str) -> list[str]:
  files = sorted(folder.glob(f'{name}-*'))
  return [line for file in files for line in file.read_text().splitlines()]


def _user_error(error: Exception, job: Job) -> UserError:
  """The UserError of a worker, without the text that Beam adds around it."""
  match = re.search(r'UserError: (.*?)(?: \[while running|$)', str(error), re.MULTILINE)
  if match:
    return UserError(match[1].replace('\\n', ' '))
  if 'number of generated examples' in str(error):
    ranks = f', and the ranks: --depth {job.depth} keeps 1 to {job.depth}' if job.depth else ''
    return UserError(f'{job.address}: there are no {job.kind} to prepare; check the address{ranks}')
  what = f'{type(error).__name__}: {reason(error, 300)}'
  return UserError(f'{job.address}: Beam failed ({what}); see the Beam log')
