"""A finished run, for commands that read its result table."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.evaluation.runs import read_per_query
from disranker_jax.evaluation.units import Units
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run
from disranker_jax.report import facts
from disranker_jax.stages import result_table


class FinishedRun:
  """The result table of a run, with the metrics per query of its rows.

  name     what tables call the run
  table    that of its system
  results  {row: {metric: value}}
  rows     {row: {query_id: {metric: value}}}

  Raises: UserError if the folder is no run, or one whose table is not done.
  """

  def __init__(self, name: str, folder: Path):
    self.name, self.folder = name, folder
    file = folder / 'config.json'
    if not file.is_file():
      what = 'is not the workdir of a run (it has no config.json)' if folder.is_dir() else (
        'no such folder')  # fmt: skip
      raise UserError(f'{folder}: {what}; name the --workdir of a run')
    try:
      found = json.loads(file.read_text())
    except ValueError as e:
      raise UserError(f'{file}: is not JSON ({e}); run the run again') from None
    if not isinstance(found, dict) or 'stages' not in found:
      raise UserError(f'{file}: is not the config of a run (it has no stages); run the run again')
    self.config = ConfigDict(found)
    self.table = result_table.of(self.config)
    self._run = Run(self.config, folder, None)
    self._check_done()
    self.results: Mapping[str, dict[str, Any]] = facts.read_results(self._run)
    per_query = self._run.folder(self.table.stage) / 'per_query.csv'
    rows = read_per_query(per_query) if per_query.is_file() else {}
    self.rows = {name: rows[name] for name in self.results if name in rows}
    if not self.rows:
      raise UserError(
        f'{per_query.parent}: results.json and per_query.csv have no row in common, or one of them '
        f'is missing; make the table again: the command of the run with --rerun={self.table.stage}'
      )

  def _check_done(self) -> None:
    """Raises: UserError if the stage that fills the table is not done."""
    stage, listed = self.table.stage, list(self.config.stages)
    if manifest.is_done(self._run.folder(stage)):
      return
    if stage not in listed:
      raise UserError(
        f'{self.folder}: the run has no stage {stage}, which fills the table (its config.stages '
        f'are {", ".join(listed)}); run it again with {stage}'
      )
    missing = [name for name in listed if not manifest.is_done(self._run.folder(name))]
    before = '' if missing[0] == stage else f' (the first stage that is not done is {missing[0]})'
    raise UserError(
      f'{self.folder}: the stage {stage} is not done{before}; finish it with the command of the '
      f'run: disranker run --config FILE --workdir {self.folder}'
    )

  @property
  def metrics(self) -> list[str]:
    """The metrics that every row has for each query."""
    rows = [next(iter(of_row.values())) for of_row in self.rows.values()]
    return [name for name in rows[0] if name not in metrics.COUNTS and all(name in r for r in rows)]

  @property
  def queries(self) -> list[str]:
    """The ids of the test queries, in order."""
    return list(next(iter(self.rows.values())))

  @functools.cached_property
  def tests(self) -> Mapping[str, Group]:
    """The test queries with their judged documents; empty without prepared records."""
    return facts.read_tests(self._run)

  @functools.cached_property
  def drawn(self) -> Units:
    """What intervals and tests draw, as the run's own report draws it."""
    grades = {query: group.grades for query, group in self.tests.items()}
    return Units(grades, self.queries, configs.cluster(self.config) or None)
