"""The teacher's hidden states as targets besides its scores (TinyBERT, arXiv 1909.10351).

Off by default. States are compared token by token, so the teacher must return the hidden states of
its layers and have the student's tokenizer. It computes them in every step, on the student's batch.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from disranker_jax import losses
from disranker_jax.errors import UserError
from disranker_jax.models.load import TextModel, merged, shapes
from disranker_jax.models.network import Network
from disranker_jax.stages import roles
from disranker_jax.training import optimizer
from disranker_jax.training.optimizer import FROZEN

KEY = 'config.distill.hidden_weight'


@dataclasses.dataclass(frozen=True)
class HiddenStates:
  """The student's scores, and the distance of its layers' hidden states from the teacher's.

  The variables of a call hold the teacher's parameters under FROZEN. If widths differ, they also
  hold a projection under 'hidden', which is trained with the student.
  """

  student: Network
  teacher: Network
  pairs: tuple[tuple[int, int], ...] | None  # see losses.layer_pairs

  def __call__(self, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """(scores_GN, mean squared difference over the rows that hold tokens)."""
    own = {k: v for k, v in optimizer.own(variables).items() if k != 'hidden'}
    ours_LBTD = self.student.hidden(own, batch)
    theirs_LBTD = self.teacher.hidden({'params': variables[FROZEN]}, batch)
    gap = losses.hidden_mse(
      ours_LBTD,
      theirs_LBTD,
      batch['segments_BT'] > 0,
      layer_map=self.pairs,
      projection_DD=variables.get('hidden', {}).get('projection'),
    )
    scores_P = self.student.score_at(own, ours_LBTD[-1], batch)
    return scores_P.reshape(batch['mask_GN'].shape), gap


def open_hidden(run, student: TextModel) -> tuple[HiddenStates, dict]:
  """What the stage computes, and the variables that it needs besides the student's."""
  teacher = roles.open_role(run.config, 'teacher')
  check_hidden(run.config, teacher, student)
  variables = roles.trained(run, 'teacher', teacher, roles.teacher_stages(run.config), trains='')
  network, variables = merged(teacher.network, variables)
  return (
    compared(run.config, student.network, network),
    beside(run.config, student.network, network, variables),
  )


def unopened(config: ConfigDict, student: Network) -> tuple[HiddenStates, Callable[[dict], dict]]:
  """As `open_hidden`, without the teacher's parameters; zeros in their place are made by a call."""
  teacher = roles.open_role(config, 'teacher')
  network, variables = merged(teacher.network, shapes(teacher.network, config.teacher.param_dtype))

  def more(_: dict) -> dict:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    return beside(config, student, network, zeros)

  return compared(config, student, network), more


def compared(config: ConfigDict, student: Network, teacher: Network) -> HiddenStates:
  """The two networks, which give the states of all their layers."""
  chosen = tuple(config.distill.hidden_layers)
  pairs = tuple((m, n) for m, n in enumerate(chosen) if n >= 0) if chosen else None
  both = (dataclasses.replace(network, states=True) for network in (student, teacher))
  return HiddenStates(*both, pairs)


def beside(config: ConfigDict, student: Network, teacher: Network, variables: dict) -> dict:
  """What a call of HiddenStates reads besides the student's variables."""
  ours, theirs = student.config.width, teacher.config.width
  more = {FROZEN: variables['params']}
  if ours == theirs:
    return more
  key = jax.random.key(config.seed + config.student.seed)
  start_DD = jax.random.normal(key, (ours, theirs)) / ours**0.5
  return more | {'hidden': {'projection': start_DD}}


def check_hidden(config: ConfigDict, teacher: TextModel, student: TextModel) -> None:
  """Raises: UserError for a teacher whose layers cannot be compared with the student's."""
  if config.data.teachers:
    raise UserError(f'{KEY}: data.teachers give scores and no hidden states; set it to 0')
  for role, model in (('teacher', teacher), ('student', student)):
    if not model.network.family.layer_states:
      name = model.settings.model
      raise UserError(f'{KEY}: the {role} must be an encoder, and {name!r} is not; set it to 0')
  if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
    raise UserError(f'{KEY}: teacher and student have different tokens; set it to 0')
  if teacher.network.lora_rank and config.teacher.param_dtype != 'float32':
    raise UserError(
      f'{KEY}: adapters of bf16 kernels cannot be merged; set config.teacher.param_dtype=float32'
    )
  ours, theirs = student.network.config, teacher.network.config
  chosen = tuple(config.distill.hidden_layers)
  if chosen and len(chosen) != ours.layers + 1:
    raise UserError(
      f'config.distill.hidden_layers={chosen}: must be {ours.layers + 1} numbers, one for the '
      "student's embeddings and one for each of its layers"
    )
  pairs = compared(config, student.network, teacher.network).pairs
  losses.layer_pairs(pairs, ours.layers, theirs.layers)  # raises for wrong pairs
