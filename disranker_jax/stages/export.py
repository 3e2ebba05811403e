"""Trained models as Hugging Face folders, which score elsewhere as they do here."""

from disranker_jax import weights
from disranker_jax.errors import UserError
from disranker_jax.models import hf
from disranker_jax.stages import sides


def run(run) -> dict:
  """export/<model> for each model that the config names; adapters are merged."""
  c = run.config.export
  if 'teacher' in c.models and run.config.teacher.scorer == 'eos+likelihood':
    raise UserError(
      "config.export.models: a teacher with scorer 'eos+likelihood' has two heads, as no Hugging "
      "Face model has; export only 'student', or train with 'eos' or 'likelihood'"
    )
  folders = {}
  for name in c.models:
    if name == 'teacher':
      side, stages = sides.open_teacher(run.config), sides.TEACHER_STAGES
    else:
      side = sides.open_side(run.config.student)
      stages = sides.student_stages(run.config)[name]
    variables = sides.trained(run, side, stages)
    folder = run.folder('export') / name
    extra = {'max_len': side.settings.max_len, 'max_query_len': side.settings.max_query_len}
    hf.save(
      folder, side.ranker, variables, tokenizer_folder=side.folder,
      extra_config={'disranker_jax': extra | {'from': weights.origin(side.folder)}},
      dtype=c.dtype,
    )  # fmt: skip
    folders[name] = str(folder.relative_to(run.workdir))
  return {'folders': folders}
