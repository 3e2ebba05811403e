"""The texts of a run: of its own records and documents, and of the runs that it builds on.

A student whose vocabulary is reduced to the tokens of these (`export.vocabulary='data'`) reads all
that it has learned as before.
"""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax.data import sources, store
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import say
from disranker_jax.stages import documents, earlier, prepare


def every(run: Run) -> Iterator[str]:
  """Each text, one or more times; those of the records of earlier runs as far as these exist."""
  found = [(run, prepare.every_kind(run.config))]
  found += [(before, kinds(before)) for before, _ in earlier.lineage(run.config)]
  for one, of_run in found:
    for kind in of_run:
      for record in prepare.records(one, kind):
        yield record.query
        for doc in (record,) if kind == 'clicks' else record.docs:
          yield from (doc.title, doc.summary)
  if 'generate' in run.config.stages:  # no query may have found some of them
    for doc in documents.every(documents.address(run.config)):
      yield from (doc.title, doc.summary)


def kinds(run: Run) -> list[str]:
  """The kinds of records that an earlier run still has."""
  known = *sources.KINDS, *prepare.MADE_BY
  return [kind for kind in known if store.kind_of(prepare.place(run, kind))]


def missing(config: ConfigDict) -> list[str]:
  """The workdirs of the earlier runs that no longer have any record."""
  without = [earlier.label(run) for run, _ in earlier.lineage(config) if not kinds(run)]
  return earlier.lost(config) + without


def say_missing(run: Run) -> None:
  """A line about the earlier runs whose texts are not there any more."""
  if lost := missing(run.config):
    are, have = ('is', 'it has') if len(lost) == 1 else ('are', 'they have')
    say(
      f'export: the data of {", ".join(lost)} {are} not there any more, so '
      f"config.export.vocabulary='data' removes the tokens that only {have}; name a file of "
      "documents that have them, or '' to keep all tokens"
    )


def of_earlier_runs(config: ConfigDict, workdir: Path) -> dict[str, str]:
  """The input of export that changes with the texts of earlier runs; {} if there are none."""
  found = earlier.data_fingerprint(config, workdir, 'export', ('prepare', 'generate'))
  return {earlier.DATA: found} if found else {}
