"""How many generated queries a student needs: none, 1,000, 3,000 or 10,000.

All rows share one generation from PAGES pages, chosen by a hash, and one teacher's scores of it. A
row learns so many of the queries, chosen by a hash, so 3,000 hold the 1,000. The number of steps is
the same (STEPS), so fewer queries are seen more often; the result is the checkpoint that agrees
best with the teacher on held-out queries. What the base config learns besides, a log or labels, is
in every row, and alone in the row of 0 queries. A config without a log has no such row.

About a quarter of what SmolLM2-135M writes of Python's documentation is kept. If fewer queries are
left than a row names, distill says so.
"""

import pathlib
import runpy

PAGES, SAMPLES, STEPS = 7000, 6, 400
DOCUMENTS = 6  # of each query, for the teacher and in a step
CONFIGS = pathlib.Path(__file__).parents[1]


def learned(queries: int):
  """The settings of a row for a base config."""

  def changes(config):
    is_base = 'generate' in config.stages
    if not queries and is_base:
      return None
    at = config.stages.index('score')
    stages = config.stages if is_base else (*config.stages[:at], 'generate', *config.stages[at:])
    kept = tuple(s for s in stages if s not in ('export', 'report'))
    found = {'stages': kept, 'generate.documents': PAGES, 'generate.samples': SAMPLES}
    if not is_base:
      found |= writing(config)
    found |= {'score.group_size': DOCUMENTS, 'distill.group_size': DOCUMENTS}
    found |= {'distill.max_steps': STEPS, 'distill.epochs': 10.0 * STEPS}  # the steps decide
    found |= {'distill.validation.keep_best': True, 'distill.validation.metric': 'tau'}
    found |= {'distill.validation.every': STEPS // 20}
    if not queries:
      return found | {'distill.generated_weight': 0.0}
    return found | {'distill.generated_limit': queries}

  return changes


def writing(config) -> dict:
  """How own_documents.py writes, for a config that does not say how."""
  if config.generate.shots == 0:
    return {}
  c = runpy.run_path(str(CONFIGS / 'own_documents.py'))['get_config']().generate
  names = ('template', 'shots', 'ends', 'max_len', 'max_new', 'temperature', 'found_within')
  return {f'generate.{name}': c[name] for name in names}


def labels_only(config):
  return {} if 'student_sft' in config.stages else None


ROWS = {
  'BM25': ('bm25', {}),
  'labels only': ('student_sft', labels_only),
  '0 queries': ('student', learned(0)),
  '1,000 queries': ('student', learned(1000)),
  '3,000 queries': ('student', learned(3000)),
  '10,000 queries': ('student', learned(10_000)),
  'teacher': ('teacher', {}),
}
