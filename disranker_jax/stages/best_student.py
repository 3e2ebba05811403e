"""Which student of a run is the best: the one that ranks held-out labelled queries better.

They are training queries that no stage learned from (held_out.py), not the test's, whose results
would be too good if they decided.
"""

from disranker_jax.pipeline import manifest
from disranker_jax.progress import amount
from disranker_jax.stages.export import Choice
from disranker_jax.stages.result_rows import ROWS, STUDENT
from disranker_jax.stages.result_table import Row
from disranker_jax.training.validation import ndcg, title


def candidates(config) -> list[Row]:
  """The students that the config trains; of equal ones the first is taken, the distilled one."""
  rows = [row for row in ROWS.values() if row.role == ROWS[STUDENT].role and row.trained_by]
  rows = [row for row in rows if row.trained_by in config.stages]
  return sorted(rows, key=lambda row: row.name != STUDENT)


def choose(run) -> Choice:
  """The best student of the finished stages."""
  first, *others = candidates(run.config)
  if not others:
    return Choice(first.name, 'the only student that this run trains')
  values = comparable({row.name: validated(run, row.trained_by) for row in (first, *others)})
  if not values:
    return Choice(first.name, 'too few labelled queries are held out to compare the students')
  metric = ndcg(values[first.name])
  best = max(values, key=lambda name: values[name][metric])
  shown = {name: f'{found[metric]:.3f}' for name, found in values.items()}
  listed = ', '.join(f'{ROWS[name].title} {value}' for name, value in shown.items() if name != best)
  queries = values[best]['labelled']
  return Choice(
    best,
    f'{title(metric)} {shown[best]} on {amount(queries, "held-out query", "held-out queries")} '
    f'({listed})',
  )


def validated(run, stage: str) -> dict:
  """The held-out values of a finished stage; {} without any."""
  done = manifest.read(run.folder(stage)) or {}
  return done.get('results', {}).get('validation', {})


def comparable(values: dict[str, dict]) -> dict[str, dict]:
  """The held-out values if all have the same nDCG of the same labelled queries, else {}."""
  measured = {(found.get('made_of'), ndcg(found)) for found in values.values()}
  return values if len(measured) == 1 and all(*measured) else {}
