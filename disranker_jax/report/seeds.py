"""The runs of other seeds in a workdir, which `--seeds` made: what they add to the report.

A seed counts only if nothing but the seed sets its run apart from the run itself. Both are compared
as they are on disk, by the manifests of their stages.
"""

import json
from collections.abc import Iterator

from disranker_jax.pipeline import inputs, manifest, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import result_table


def values(run: Run, results: dict[str, dict]) -> dict[str, dict[int, float]]:
  """The main metric of the seeded rows by seed, where more than one was trained."""
  table = result_table.of(run.config)
  found: dict[str, dict[int, float]] = {}
  for seed, other in finished(run):
    if differing(run, other):
      continue
    rows = json.loads((other.folder(table.stage) / 'results.json').read_text())
    for row, of_row in rows.items():
      if row in results:
        own = {run.config[table.role].seed: float(results[row][table.main])}
        found.setdefault(row, own)[seed] = float(of_row[table.main])
  return found


def left_out(run: Run) -> dict[int, str]:
  """{seed: what else its run differs in} of the seeds that `values` leaves out."""
  return {seed: why for seed, other in finished(run) if (why := differing(run, other))}


def finished(run: Run) -> Iterator[tuple[int, Run]]:
  """The other seeds whose rows are done, with their runs, in order."""
  table = result_table.of(run.config)
  folders = {int(f.name): f for f in (run.workdir / 'seeds').glob('*') if f.name.isdecimal()}
  for seed, folder in sorted(folders.items()):
    if seed != run.config[table.role].seed and manifest.is_done(folder / table.stage):
      yield seed, Run(run.config, folder, None)


def differing(run: Run, other: Run) -> str:
  """The first difference in settings or inputs of another seed's run, beside the seed; '': none."""
  table = result_table.of(run.config)
  key, seeded = f'{table.role}.seed', dict[str, str | None]()
  # Not prepare: the stages tell which of its records they have read.
  for stage in (each for each in systems.listed(run.config) if each.name != 'prepare'):
    ours, theirs = (manifest.read(each.folder(stage.name)) for each in (run, other))
    if not ours or not theirs:
      continue
    wanted, now = dict(ours['config']), dict(ours['inputs'])
    if stage.name == table.stage:  # which has fewer rows there, and reads no more than they need
      now = {name: value for name, value in now.items() if name in theirs['inputs']}
    now |= {name: value for name, value in seeded.items() if name in now}
    if key in wanted or seeded.keys() & now.keys():
      seeded[stage.name] = theirs.get('fingerprint')
    if key in wanted:
      wanted[key] = theirs['config'].get(key)
    if changes := inputs.changes(theirs, wanted, now):
      return f'{stage.name}: {changes[0]}'
  return ''
