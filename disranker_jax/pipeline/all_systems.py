"""The systems that the program trains, with the stages, models and result table of each.

The stages are in the order in which they run; a stage names those that it reads in `reads_stages`.
"""

import dataclasses

from disranker_jax.generative import export as retriever_export
from disranker_jax.generative import prompts
from disranker_jax.generative import rows as search_rows
from disranker_jax.generative.stages import align, index, ltrgr, memorise, retrieve
from disranker_jax.models.settings import model
from disranker_jax.pipeline.stage import Role
from disranker_jax.pipeline.systems import System
from disranker_jax.rewriting import export as rewriter_export
from disranker_jax.rewriting import prompts as rewriter_prompts
from disranker_jax.rewriting import rows as rewriting_rows
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.stages import (
  cpt,
  distill,
  evaluate,
  export,
  generate,
  prepare,
  ranker_export,
  report,
  result_rows,
  roles,
  score,
  sft,
  student_sft,
  teacher,
)

EVALUATE = evaluate.stage(
  result_rows.TABLE, models=('teacher', 'student'),
  reads_stages=('prepare', 'cpt', 'sft', 'student_sft', 'distill'), paper_rows=104_960,
)  # fmt: skip
EXPORT = export.stage(
  ranker_export.EXPORTS, models=('teacher', 'student'), outside=ranker_export.outside,
  check_records=ranker_export.check_records,
  reads_stages=('prepare', 'cpt', 'sft', 'generate', 'student_sft', 'distill', 'evaluate'),
)  # fmt: skip
REPORT = report.stage(
  'prepare', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate', 'export'
)
SEARCH = evaluate.stage(
  search_rows.TABLE, models=('retriever',),
  reads_stages=('prepare', 'index', 'memorise', 'ltrgr', 'align'),
)  # fmt: skip
RETRIEVER_EXPORT = export.stage(
  retriever_export.EXPORTS, models=('retriever',),
  reads_stages=('prepare', 'memorise', 'ltrgr', 'align', 'search'),
)  # fmt: skip
SEARCH_REPORT = report.stage(
  'prepare', 'cpt', 'generate', 'memorise', 'retrieve', 'score', 'ltrgr', 'align', 'search',
  'export',
)  # fmt: skip
REWRITES = evaluate.stage(
  rewriting_rows.TABLE, models=('rewriter',), reads_stages=('prepare', 'cpt', 'rewrite')
)
REWRITER_EXPORT = export.stage(
  rewriter_export.EXPORTS, models=('rewriter',), outside=rewriter_export.outside,
  reads_stages=('prepare', 'cpt', 'rewrite', 'search'),
)  # fmt: skip
REWRITES_REPORT = report.stage('prepare', 'cpt', 'rewrite', 'search', 'export')
SYSTEMS: dict[str, System] = {
  'disranker': System(
    stages=(
      prepare.STAGE, cpt.STAGE, sft.STAGE, generate.STAGE, score.STAGE, student_sft.STAGE,
      distill.STAGE, EVALUATE, EXPORT, REPORT,
    ),
    roles={
      'teacher': Role(
        {**model(model='mistralai/Mistral-7B-v0.1', remat='full'), **teacher.SETTINGS},
        roles.teacher_stages,
      ),
      'student': Role(
        model(model='google-bert/bert-base-multilingual-cased', scan_layers=False),
        roles.student_stages,
      ),
    },
    table=result_rows.TABLE,
  ),
  'dgr': System(
    stages=(
      prepare.STAGE, cpt.STAGE, dataclasses.replace(generate.STAGE, optional=False), index.STAGE,
      memorise.STAGE, retrieve.STAGE, score.STAGE, ltrgr.STAGE, align.STAGE, SEARCH,
      RETRIEVER_EXPORT, SEARCH_REPORT,
    ),
    roles={
      'teacher': Role(
        {**model(model='mistralai/Mistral-7B-v0.1', remat='full'), **teacher.SETTINGS},
        lambda config: ('cpt',),
      ),
      'retriever': Role(
        {**model(model='mistralai/Mistral-7B-v0.1', remat='full'), **prompts.SETTINGS},
        lambda config: ('memorise', 'align'),
      ),
    },
    table=search_rows.TABLE,
  ),
  'query_rewriting': System(
    stages=(
      prepare.STAGE, cpt.stage('rewriter'), rewrite.STAGE, REWRITES, REWRITER_EXPORT,
      REWRITES_REPORT,
    ),
    roles={
      'rewriter': Role(
        {
          **model(model='Qwen/Qwen2.5-1.5B-Instruct', remat='full'), **rewriter_prompts.SETTINGS,
        },
        lambda config: ('cpt', 'rewrite'), same=('rewriter.template',),
      ),
    },
    table=rewriting_rows.TABLE,
  ),
}  # fmt: skip
