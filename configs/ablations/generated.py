"""How many generated queries a student needs: none, 1,000, 3,000 or 10,000.

All rows share one generation from PAGES pages, chosen by a hash, and one teacher's scores of it. A
row takes so many of the queries, chosen by a hash, so 3,000 hold the 1,000, and holds out its share
of them (validation.share). The number of steps is the same (STEPS), so fewer queries are seen more
often; the result is the checkpoint that agrees best with the teacher on held-out queries. What the
base config learns besides, a log or labels, is in every row, and alone in the row of 0 queries. A
config without a log has no such row.

About a quarter of what SmolLM2-135M writes of Python's documentation is kept. If fewer queries are
left than a row names, distill says so.
"""

import pathlib
import runpy

from disranker_jax.errors import UserError

PAGES, SAMPLES, STEPS = 7000, 6, 400
DOCUMENTS = 6  # of each query, for the teacher and in a step
CONFIGS = pathlib.Path(__file__).parents[1]
WRITING = ('template', 'shots', 'ends', 'max_len', 'max_new', 'temperature', 'found_within')


def shared(config) -> dict:
  """What all rows of students change."""
  found = {'generate.documents': PAGES, 'generate.samples': SAMPLES}
  stages = config.stages
  if 'generate' not in stages:
    if 'score' not in stages:
      raise UserError(f'the queries need the stage score, which config.stages lacks: {stages}')
    at = stages.index('score')
    stages = (*stages[:at], 'generate', *stages[at:])
    own = runpy.run_path(str(CONFIGS / 'own_documents.py'))['get_config']().generate
    # A config that has no examples in its prompt has a template of its own.
    names = WRITING if config.generate.shots else ()
    found |= {f'generate.{name}': own[name] for name in names}
  return found | {
    'stages': tuple(s for s in stages if s not in ('export', 'report')),
    'score.group_size': DOCUMENTS,
    'distill.group_size': DOCUMENTS,
    'distill.max_steps': STEPS,
    'distill.epochs': 10.0 * STEPS,  # the steps decide
    'distill.validation.every': STEPS // 20,
    'distill.validation.keep_best': True,
    'distill.validation.metric': 'tau',
  }


def get_rows(config) -> dict:
  student, has_log = shared(config), config.data.candidates not in ('', 'generated:')
  rows = {'BM25': ('bm25', {})}
  if 'student_sft' in config.stages:
    rows['labels only'] = 'student_sft', {}
  if has_log:
    rows['0 queries'] = 'student', student | {'distill.generated_weight': 0.0}
  for queries in (1000, 3000, 10_000):
    rows[f'{queries:,} queries'] = 'student', student | {'distill.generated_limit': queries}
  return rows | {'teacher': ('teacher', {})}
