"""Supervised fine-tuning of the student on labels alone: the baseline of distillation.

The same loss on the same labels as the teacher's in sft.py.
"""

import functools

from disranker_jax import losses
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.stages import held_out, roles, sft
from disranker_jax.training.settings import training

NAME = 'student_sft'


def execute(run: Run) -> dict:
  """Trains the student from its pretrained parameters: an earlier run's know more than labels."""
  student = roles.open_pretrained(run.config, 'student')
  variables = roles.trained(run, 'student', student, (), trains=NAME)
  return sft.on_labels(run, NAME, student, variables)


def check(config) -> None:
  held_out.check(config, NAME)
  losses.choose(losses.ON_LABELS, config.student_sft.loss, 'student_sft.loss')


def check_models(config, models) -> None:
  for model in models.values():
    roles.check_student(model)
    roles.check_head(config, NAME, 'student', model)


STAGE = Stage(
  NAME, 'the student learns from labels alone', execute,
  settings={**training(epochs=2.0, learning_rate=2e-5), **sft.LABELS}, check=check,
  check_models=check_models,
  role='student', reads_stages=('prepare',), reads_records=lambda config: ('judgements',),
  task=functools.partial(sft.task, stage=NAME), ignores_init_from=True,
  check_records=functools.partial(sft.check_records, stage=NAME), paper_rows=796_095,
)  # fmt: skip
