"""Distillation: the student learns the teacher's scores, their values and their differences.

Paper section 3.4: L = L_point + beta * L_margin (`loss = 'hybrid'`). A pairwise term on hard
labels, where a query has them, may be added: the uniform-architecture study finds it critical.
"""

import functools

import jax.numpy as jnp
import numpy as np

from disranker_jax import losses, train
from disranker_jax.data import batches
from disranker_jax.data.records import Group
from disranker_jax.scoring import score_fn
from disranker_jax.stages import sides
from disranker_jax.stages.score import ScoredGroups
from disranker_jax.stages.teachers import TeacherScores


def distillation_loss(scores, c, variables, batch):
  """The loss on scores + hard * pairwise over a batch's queries: (sum, queries, metrics)."""
  scores_GN = scores(variables, batch)
  teacher_GN, mask_GN = batch['teacher_GN'], batch['mask_GN']
  # Not margin: that is the hard term's.
  soft = losses.choose(losses.ON_SCORES, c.loss, 'distill.loss', beta=c.beta)
  soft_G, valid_G = soft(scores_GN, teacher_GN, mask_GN)
  judged_GN = mask_GN & (batch['labels_GN'] >= 0)
  hard_G, _ = losses.pairwise_hinge.per_group(
    scores_GN, batch['labels_GN'], judged_GN, margin=c.margin
  )
  weight = jnp.sum(valid_G)
  metrics = {
    'soft': jnp.sum(soft_G) / jnp.maximum(weight, 1),
    'hard': jnp.sum(hard_G) / jnp.maximum(weight, 1),
  }
  return jnp.sum(soft_G + c.hard * hard_G), weight, metrics


def draw(size: int, record: tuple[Group, np.ndarray], rng) -> tuple[Group, np.ndarray]:
  """A query with at most `size` of its documents, and their scores."""
  group, scores = record
  chosen = batches.sample(group, size, rng)
  docs = tuple(group.docs[i] for i in chosen)
  return Group(group.query_id, group.query, docs), scores[chosen]


def task(config, ranker) -> train.Task:
  """What is computed, of which shapes."""
  c = config.distill
  shape = batches.Shape(c.batch_rows, config.student.row_len, c.group_size)
  return train.Task(functools.partial(distillation_loss, score_fn(ranker), c), shape)


def job(run, student: sides.Side, scored, mean: float = 0.0, std: float = 1.0) -> train.Job:
  """The stage on groups with their scores, which become (score - mean) / std."""
  prompt = student.prompt()

  def encode(record):
    group, scores = record
    return batches.encode_group(prompt, group, (scores - np.float32(mean)) / np.float32(std))

  choose = functools.partial(draw, run.config.distill.group_size)
  return sides.job(run, 'distill', task(run.config, student.ranker), scored, encode, choose)


def run(run) -> dict:
  c = run.config.distill
  student = sides.open_side(run.config.student)
  scored = TeacherScores(run) if run.config.data.teachers else ScoredGroups(run)
  mean, std = (scored.mean, scored.std) if c.standardise else (0.0, 1.0)
  variables = sides.trained(run, student, (c.start,) if c.start else ())
  todo = job(run, student, scored, mean, std)
  train.fit(todo, variables, run.mesh)
  told = {'standardised_by': {'mean': mean, 'std': std}} if c.standardise else {}
  return {'steps': todo.steps, 'rows': len(scored)} | told
