"""Fine-tuning on labels: of the teacher (`sft`) and of the baseline student (`student_sft`).

Paper section 3.2: a pairwise rank loss over the documents of a query, at the final `</s>`. The
student fine-tuned in the same way on the same labels is what distillation has to beat.
"""

import functools

import jax.numpy as jnp

from disranker_jax import losses
from disranker_jax.data import batches
from disranker_jax.data.records import Group
from disranker_jax.models.load import TextModel
from disranker_jax.rankers.pointwise import score_fn, score_shape
from disranker_jax.stages import prepare, roles
from disranker_jax.training import train


def label_loss(scores, per_group, variables, batch):
  """A loss on labels over a batch's queries: (sum, valid queries, metrics)."""
  scores_GN = scores(variables, batch)
  labels_GN, mask_GN = batch['labels_GN'], batch['mask_GN']
  loss_G, valid_G = per_group(scores_GN, labels_GN, mask_GN)
  better_GNN = losses.preferred(labels_GN, mask_GN)
  right_GNN = better_GNN & (losses.differences(scores_GN) > 0)
  accuracy = jnp.sum(right_GNN) / jnp.maximum(jnp.sum(better_GNN), 1)
  return jnp.sum(loss_G), jnp.sum(valid_G), {'pair_accuracy': accuracy}


def draw(size: int, group: Group, rng) -> Group:
  """A query with at most `size` of its documents, all grades present where there is room."""
  chosen = batches.sample(group, size, rng)
  return Group(group.query_id, group.query, tuple(group.docs[i] for i in chosen))


def run(run) -> dict:
  """The teacher, from where cpt left it."""
  teacher = roles.open_role(run.config, 'teacher')
  variables = roles.trained(run, teacher, ('cpt',))
  return on_labels(run, 'sft', teacher, variables)


def run_finetune(run) -> dict:
  """The student, from its pretrained parameters."""
  student = roles.open_role(run.config, 'student')
  return on_labels(run, 'student_sft', student, student.pretrained(run.config.seed, run.mesh))


def task(config, network, stage: str = 'sft') -> train.Task:
  """What is computed, of which shapes."""
  c = config[stage]
  scorer = config.teacher.scorer if stage == 'sft' else 'eos'
  row_len = config.teacher.row_len if stage == 'sft' else config.student.row_len
  per_group = losses.choose(losses.ON_LABELS, c.loss, f'{stage}.loss', margin=c.margin)
  loss = functools.partial(label_loss, score_fn(network, scorer), per_group)
  return train.Task(loss, score_shape(scorer, c.batch_rows, row_len, c.group_size))


def job(run, side: TextModel, stage: str = 'sft') -> train.Job:
  """The stage on the judged queries."""
  encode = functools.partial(batches.encode_group, side.prompt())
  choose = functools.partial(draw, run.config[stage].group_size)
  what, judgements = task(run.config, side.network, stage), prepare.records(run, 'judgements')
  return roles.job(run, stage, what, judgements, encode, choose)


def on_labels(run, stage: str, side, variables) -> dict:
  """Trains one side."""
  todo = job(run, side, stage)
  train.fit(todo, variables, run.mesh)
  return {'steps': todo.steps, 'rows': len(prepare.records(run, 'judgements'))}
