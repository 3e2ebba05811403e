"""Losses on hidden states of intermediate layers (TinyBERT: Jiao et al., 2019, arXiv:1909.10351).

Off by default: the uniform-architecture study (arXiv:2302.04112) finds that they may hurt. A group
is whatever shares a mask: a row of tokens, or a query whose documents' [CLS] states are the T
positions. Shapes: L layers, G groups, T positions, D width; L and D may differ between the sides.
"""

import jax.numpy as jnp

from disranker_jax.errors import UserError
from disranker_jax.losses.common import masked_mean, mean_over_groups


def layer_pairs(layer_map, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
  """(student layer, teacher layer) to compare; layer 0 is the embeddings.

  Args:
    layer_map: the pairs; None: every student layer m with teacher layer m * teacher / student.
    student, teacher: how many layers each side has.

  Raises: UserError for a layer that a side does not have.
  """
  if layer_map is None:
    layer_map = [(m, round(m * teacher / max(student, 1))) for m in range(student + 1)]
  if any(not (0 <= m <= student and 0 <= n <= teacher) for m, n in layer_map):
    layers = f'the student has layers 0 to {student}, the teacher 0 to {teacher}'
    raise UserError(f'layer_map {layer_map}: {layers}')
  return tuple(layer_map)


@mean_over_groups
def hidden_mse(student_LGTD, teacher_LGTD, mask_GT, *, layer_map=None, projection_DD=None):
  """MSE(H_m^S W, H_g(m)^T) over real positions and width, sum over the layer map's pairs.

  Args:
    student_LGTD, teacher_LGTD: states of the embeddings, then of each layer.
    layer_map: see `layer_pairs`.
    projection_DD: W, [student width, teacher width], a parameter that the caller trains. Without it
      both widths must be equal.
  """
  loss_G = jnp.zeros(mask_GT.shape[0])
  for m, n in layer_pairs(layer_map, len(student_LGTD) - 1, len(teacher_LGTD) - 1):
    ours_GTD, theirs_GTD = student_LGTD[m], teacher_LGTD[n]
    if projection_DD is not None:
      ours_GTD = jnp.where(mask_GT[:, :, None], ours_GTD, 0.0) @ projection_DD
    loss_G += _layer_mse(ours_GTD, theirs_GTD, mask_GT[:, :, None])
  return loss_G, jnp.any(mask_GT, 1)


def _layer_mse(ours_GTD, theirs_GTD, mask_GT1):
  """Mean squared difference of a layer in each group, in fp32."""
  if ours_GTD.shape != theirs_GTD.shape:
    shapes = f'{ours_GTD.shape} of the student, {theirs_GTD.shape} of the teacher'
    raise UserError(f'{shapes}: unequal widths; give a projection')
  mask_GTD = jnp.broadcast_to(mask_GT1, ours_GTD.shape)
  ours_GTD, theirs_GTD = (
    jnp.where(mask_GTD, x.astype(jnp.float32), 0.0) for x in (ours_GTD, theirs_GTD)
  )
  return masked_mean(jnp.square(ours_GTD - theirs_GTD), mask_GTD, (1, 2))[0]
