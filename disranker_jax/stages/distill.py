"""Distillation: the student learns the teacher's scores, their values and their differences.

Paper section 3.4: L = L_point + beta * L_margin (`loss = 'hybrid'`). A pairwise term on hard
labels, where a query has them, may be added: the uniform-architecture study finds it critical. So
may be a term on hidden states (TinyBERT), where teacher and student read the same tokens.
"""

import functools

import jax.numpy as jnp
import numpy as np

from disranker_jax import losses
from disranker_jax.data import batches
from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.models.load import TextModel
from disranker_jax.rankers.pointwise import score_fn
from disranker_jax.stages import roles
from disranker_jax.stages.distill_hidden import HiddenStates, open_hidden
from disranker_jax.stages.score import ScoredGroups
from disranker_jax.stages.teacher_scores import TeacherScores
from disranker_jax.training import train


def distillation_loss(scores, c, variables, batch):
  """The loss on scores + hard * pairwise over a batch's queries: (sum, queries, metrics).

  `scores` gives scores_GN, and with c.hidden_weight also how far the hidden states are from the teacher's.
  """
  scores_GN, gap = scores(variables, batch) if c.hidden_weight else (scores(variables, batch), 0.0)
  teacher_GN, mask_GN = batch['teacher_GN'], batch['mask_GN']
  # Not margin: that is the hard term's.
  soft = losses.choose(losses.ON_SCORES, c.loss, 'distill.loss', beta=c.beta)
  soft_G, valid_G = soft(scores_GN, teacher_GN, mask_GN)
  judged_GN = mask_GN & (batch['labels_GN'] >= 0)
  hard_G, _ = losses.pairwise_hinge.per_group(
    scores_GN, batch['labels_GN'], judged_GN, margin=c.hard_label_margin
  )
  weight = jnp.sum(valid_G)
  metrics = {
    'soft': jnp.sum(soft_G) / jnp.maximum(weight, 1),
    'hard': jnp.sum(hard_G) / jnp.maximum(weight, 1),
  }
  if c.hidden_weight:
    metrics['hidden'] = gap
  return (
    jnp.sum(soft_G + c.hard_label_weight * hard_G) + c.hidden_weight * gap * weight,
    weight,
    metrics,
  )


def draw(size: int, record: tuple[Group, np.ndarray], rng) -> tuple[Group, np.ndarray]:
  """A query with at most `size` of its documents, and their scores."""
  group, scores = record
  chosen = batches.sample(group, size, rng)
  docs = tuple(group.docs[i] for i in chosen)
  return Group(group.query_id, group.query, docs), scores[chosen]


def task(config, network, hidden: HiddenStates | None = None) -> train.Task:
  """What is computed, of which shapes."""
  c = config.distill
  if c.hidden_weight and hidden is None:
    raise UserError(
      'config.distill.hidden_weight: there is no teacher here; set it to 0 to see the rest'
    )
  shape = batches.Shape(c.batch_rows, config.student.row_len, c.group_size)
  scores = hidden or score_fn(network)
  return train.Task(functools.partial(distillation_loss, scores, c), shape)


def as_they_are(scores_N: np.ndarray) -> np.ndarray:
  return scores_N


def standardiser(facts: dict, how: str):
  """What makes a query's teacher scores the student's targets, and the numbers that it goes by.

  A teacher's scores of one query may say nothing about another's: so the likelihood of a query,
  which is the query's own matter first of all. Point-MSE on such scores has the student learn
  mostly what ranks nothing; 'query' takes each query's mean away.

  facts  'mean', 'std', 'within' of all scores
  how    config.distill.normalize_scores

  Raises UserError for an unknown `how`, and for scores that do not differ.
  """
  if how not in ('', 'all', 'query'):
    raise UserError(f"config.distill.normalize_scores={how!r}: it is '', 'all' or 'query'")
  if not how:
    return as_they_are, {}
  numbers = {'std': facts['within']} if how == 'query' else {k: facts[k] for k in ('mean', 'std')}
  if not numbers['std'] > 0:
    raise UserError(
      f'config.distill.normalize_scores={how!r}: the scores do not differ; look at them'
    )
  mean, std = np.float32(numbers.get('mean', 0.0)), np.float32(numbers['std'])

  def targets(scores_N):
    return (scores_N - (scores_N.mean() if how == 'query' else mean)) / std

  return targets, numbers


def job(run, student: TextModel, scored, targets=as_they_are, hidden=None) -> train.Job:
  """The stage on groups with their scores, of which `targets` makes the student's targets."""
  prompt = student.prompt()

  def encode(record):
    group, target_N = record
    return batches.encode_group(prompt, group, target_N)

  def choose(record, rng):
    group, scores = record
    # Before some are drawn: a query's mean is that of all its documents.
    return draw(run.config.distill.group_size, (group, targets(scores)), rng)

  computed = task(run.config, student.network, hidden)
  return roles.job(run, 'distill', computed, scored, encode, choose)


def run(run) -> dict:
  c = run.config.distill
  student = roles.open_role(run.config, 'student')
  scored = TeacherScores(run) if run.config.data.teachers else ScoredGroups(run)
  targets, numbers = standardiser(scored.facts, c.normalize_scores)
  variables = roles.trained(run, student, (c.init_from,) if c.init_from else ())
  hidden, more = open_hidden(run, student) if c.hidden_weight else (None, {})
  todo = job(run, student, scored, targets, hidden)
  variables |= more
  train.fit(todo, variables, run.mesh)
  told = {'standardised_by': numbers} if numbers else {}
  return {'steps': todo.steps, 'rows': len(scored)} | told
