"""Files to compare, and the command on them."""

import numpy as np

from disranker_jax.commands import compare

QUERIES, DOCS = 40, 30


def write_all(folder):
  """qrels of 40 queries; `good` ranks better than `weak`, and `same` as weak does."""
  rng = np.random.default_rng(0)
  grades = rng.choice(4, (QUERIES, DOCS), p=[0.6, 0.2, 0.1, 0.1])
  rows = [(q, d) for q in range(QUERIES) for d in range(DOCS)]
  (folder / 'qrels.txt').write_text(''.join(f'q{q} 0 d{d} {grades[q, d]}\n' for q, d in rows))
  for name, worth in (('weak', 0.3), ('good', 1.5)):
    scores = worth * grades + rng.normal(size=(QUERIES, DOCS))
    write(folder / f'{name}.run', {(q, d): scores[q, d] for q, d in rows})
  (folder / 'same.run').write_text((folder / 'weak.run').read_text())
  return folder


def write(file, scores):
  # The rank column is nonsense on purpose: the score decides.
  file.write_text(''.join(f'q{q}\tQ0\td{d} 1 {s:.6f} tag\n' for (q, d), s in scores.items()))


def arguments(folder, *names, **flags):
  words = [str(folder / f'{name}.run') for name in names]
  words += ['--qrels', str(folder / 'qrels.txt'), '--samples', '2000']
  return [*words, *(word for k, v in flags.items() for word in (f'--{k}', str(v)))]


def result(folder, *names, **flags):
  """What the command computes; a flag's value may be empty."""
  return compare.compare(compare.parse_args(arguments(folder, *names, **flags)))[0]
