"""The systems that the program trains: the stages, models and result table of each.

`config.system` names one. The stages are in the order in which they run; a stage names those that
it reads in `reads_stages`.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from disranker_jax.errors import UserError
from disranker_jax.generative import export as retriever_export
from disranker_jax.generative import prompts
from disranker_jax.generative import rows as search_rows
from disranker_jax.generative.stages import align, index, ltrgr, memorise, retrieve
from disranker_jax.models.settings import model
from disranker_jax.pipeline.stage import Role, Stage
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
from disranker_jax.stages.result_table import Table


@dataclasses.dataclass(frozen=True)
class System:
  """A system: its stages in order, its models by their sections of the config, its table."""

  stages: tuple[Stage, ...]
  roles: Mapping[str, Role]
  table: Table


EVALUATE = evaluate.stage(
  result_rows.TABLE, models=('teacher', 'student'),
  reads_stages=('prepare', 'cpt', 'sft', 'student_sft', 'distill'), paper_rows=104_960,
)  # fmt: skip
EXPORT = export.stage(
  ranker_export.EXPORTS, models=('teacher', 'student'),
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
DEFAULT = 'disranker'  # of a config that names none
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


def get(name: str) -> System:
  """The system of a name. Raises: UserError."""
  if name not in SYSTEMS:
    raise UserError(f'config.system={name!r}: must be {" or ".join(map(repr, SYSTEMS))}')
  return SYSTEMS[name]


def of(config: ConfigDict) -> System:
  """The system of a config. Raises: UserError."""
  return get(config.get('system', DEFAULT))


def listed(config: ConfigDict) -> list[Stage]:
  """The stages that the config lists, in order."""
  return [stage for stage in of(config).stages if stage.name in config.stages]


def find(config: ConfigDict, name: str) -> Stage:
  """The stage of a name in the config's system. Raises: UserError."""
  known = {stage.name: stage for stage in of(config).stages}
  if name not in known:
    raise UserError(
      f'stage {name!r}: the system {config.system!r} has the stages {", ".join(known)}'
    )
  return known[name]


def training_stages(system: str) -> list[str]:
  """Names of the stages that train."""
  return [stage.name for stage in get(system).stages if stage.task]


def model_settings(config: ConfigDict, stage: str) -> ConfigDict:
  """The settings of the model that a stage trains or runs."""
  return config[find(config, stage).role]


def trained_stages(config: ConfigDict, role: str) -> list[str]:
  """The listed stages that train a role's model, in order."""
  return [name for name in of(config).roles[role].stages(config) if name in config.stages]


def preceding(all_stages: Iterable[Stage], names: Iterable[str]) -> list[Stage]:
  """The named stages and, transitively, those whose folders they read, in order."""
  wanted, every = set(names), list(all_stages)
  for stage in reversed(every):
    if stage.name in wanted:
      wanted |= set(stage.reads_stages)
  return [stage for stage in every if stage.name in wanted]


def following(all_stages: Iterable[Stage], names: Iterable[str]) -> list[str]:
  """The named stages and, transitively, those that read what they write."""
  again, every = set(names), list(all_stages)
  for stage in every:
    if again & set(stage.reads_stages):
      again.add(stage.name)
  return [stage.name for stage in every if stage.name in again] if names else []


def check_required(config: ConfigDict) -> None:
  """Raises: UserError where a listed stage cannot run without one that is not listed."""
  for stage in listed(config):
    for what, required in stage.requires(config).items():
      if missing := [name for name in required if name not in config.stages]:
        raise UserError(f'config.stages: {what} needs {", ".join(missing)}, which is not listed')
