"""Files of rows, and what their runs gave, for tests of `disranker ablate`."""

from disranker_jax.commands import ablate
from disranker_jax.stages.result_rows import TABLE


def write(folder, text):
  file = folder / 'table.py'
  file.write_text(text)
  return file


def results(scores_SQ, pairs_SQ2):
  """What runs of some seeds gave, as evaluation writes it."""
  row = ablate.Results(device='cpu')
  for seed, (scores_Q, pairs_Q2) in enumerate(zip(scores_SQ, pairs_SQ2, strict=True)):
    row.by_seed[seed] = {
      f'q{q}': dict.fromkeys(TABLE.columns, score)
      | {'concordant': pairs[0], 'discordant': pairs[1] - pairs[0]}
      for q, (score, pairs) in enumerate(zip(scores_Q, pairs_Q2, strict=True))
    }
  return row
