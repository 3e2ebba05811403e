"""Every way to rank by prompts: as a ranker, and as the teacher of a student.

Each method ranks the test queries with the pretrained LLM, and scores 150 queries of four documents
for a student, which starts without labels and learns from them by the loss that fits. Name the
methods that your model is for by --row, such as --row 'yes_no' --row 'student of yes_no'. Methods
with a linear head are rows if the teacher is a ready reranker (config.teacher.ready).
"""

import pathlib
import runpy

from disranker_jax.data.named_contracts import NAMED
from disranker_jax.rankers.llm.methods import GIVES, METHODS

RANKERS = runpy.run_path(str(pathlib.Path(__file__).with_name('rankers.py')))


def learns(config, method) -> dict:
  """How a student learns from a method's scores, also where a model's answers are all ties."""
  loss, normalize = GIVES[method.gives].learn
  return {'distill.loss': loss, 'distill.normalize_scores': normalize, 'score.min_std': 0.0}


def get_rows(config) -> dict:
  base = {'data.teachers': ()} if config.data.teachers else {}
  rows = {'BM25': ('bm25', base)}
  for name, method in METHODS.items():
    if NAMED[method.contract].formula == 'head' and not config.teacher.ready:
      continue
    taught = RANKERS['alone'](config) | RANKERS['by_prompts'](config, name) | learns(config, method)
    rows[name] = name, base | RANKERS['PROMPTS']
    rows[f'student of {name}'] = 'student', base | taught
  return rows
