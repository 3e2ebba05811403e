"""Supervised fine-tuning of the teacher on labels; student_sft.py does the same with the student.

Paper section 3.2: a pairwise rank loss over the documents of a query, at the final `</s>`.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from absl import logging

from disranker_jax import losses
from disranker_jax.config.settings import Key, Section, finite, text
from disranker_jax.data import batches
from disranker_jax.data.records import UNJUDGED, Group
from disranker_jax.errors import UserError
from disranker_jax.models.load import HEADS, TextModel
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import amount
from disranker_jax.rankers.pointwise import score_fn, score_shape
from disranker_jax.stages import (
  held_out,
  held_out_measures,
  language_terms,
  prepare,
  roles,
  room,
  teacher,
)
from disranker_jax.training import optimizer, train
from disranker_jax.training.feed import OfflineFeed
from disranker_jax.training.settings import GROUPS, training


def label_loss(scores, per_group, variables, batch):
  """A loss on labels over a batch's queries: (sum, valid queries, metrics)."""
  loss_G, valid_G, metrics = of_scores(per_group, scores(variables, batch), batch)
  return jnp.sum(loss_G), jnp.sum(valid_G), metrics


def of_scores(per_group, scores_GN, batch):
  """A loss on labels per query: (loss_G, valid_G, metrics)."""
  labels_GN, mask_GN = batch['labels_GN'], batch['mask_GN']
  loss_G, valid_G = per_group(scores_GN, labels_GN, mask_GN)
  better_GNN = losses.preferred(labels_GN, mask_GN)
  right_GNN = better_GNN & (losses.differences(scores_GN) > 0)
  accuracy = jnp.sum(right_GNN) / jnp.maximum(jnp.sum(better_GNN), 1)
  return loss_G, valid_G, {'pair_accuracy': accuracy, 'examples': jnp.sum(mask_GN)}


def check_labels(judged: Sequence[Group], per_group: Callable, key: str) -> None:
  """Checks that some query has a pair of documents with different labels; stops at the first one.

  Raises: UserError if there is none and the loss has nothing to learn from; a loss that learns from
  single documents gets a warning.
  """
  patterns = set()
  for group in judged:
    labels = tuple(doc.label for doc in group.docs if doc.label != UNJUDGED)
    if len(set(labels)) > 1:
      return
    patterns.add(labels)
  most = max(map(len, patterns))
  what = (
    f'0 usable pairs: none of the {amount(len(judged), "query", "queries")} of '
    f'config.data.judgements has two documents with different labels (at most '
    f'{amount(most, "labelled document")} per query)'
  )
  for labels in filter(None, patterns):
    labels_GN = jnp.array([labels], jnp.float32)
    _, valid_G = per_group(jnp.zeros_like(labels_GN), labels_GN, labels_GN >= 0)
    if valid_G.any():
      logging.warning('%s: %s; order within a query cannot be learned', key, what)
      return
  raise UserError(f'config.{key}: {what}; check them with disranker describe')


def draw(size: int, group: Group, rng) -> Group:
  """The query with at most `size` of its documents, of every grade if there is room."""
  chosen = batches.sample(group, size, rng)
  return Group(group.query_id, group.query, tuple(group.docs[i] for i in chosen))


def execute(run: Run) -> dict:
  """The teacher, from the parameters that cpt trained."""
  side = roles.open_role(run.config, 'teacher')
  return on_labels(run, 'sft', side, roles.trained(run, 'teacher', side, ('cpt',), trains='sft'))


def task(config, network, stage: str = 'sft') -> train.Task:
  """The loss and the batch shape of a stage, 'sft' or 'student_sft'."""
  c = config[stage]
  scorer = scorer_of(config, stage)
  per_group = per_group_of(c, stage)
  loss = functools.partial(label_loss, score_fn(network, scorer), per_group)
  shape, options = shape_of(config, stage), {}
  if stage == 'sft' and language_terms.are_used(c):
    on_labels = functools.partial(of_scores, per_group)
    loss = language_terms.LanguageTerms(network, scorer, on_labels, c.lm_weight, c.kl_weight)
    if c.kl_weight:
      options['more'] = functools.partial(optimizer.start, trainable=c.trainable)
  return train.Task(loss, shape, **options)


def scorer_of(config, stage: str) -> str:
  """The way of scoring that a stage trains, 'sft' or 'student_sft'."""
  return config.teacher.scorer if stage == 'sft' else 'score_head'


def shape_of(config, stage: str) -> batches.Shape:
  """The shape of a stage's batches."""
  c, role = config[stage], role_of(stage)
  return score_shape(scorer_of(config, stage), c.batch_rows, config[role].row_len, c.group_size)


def role_of(stage: str) -> str:
  """The model that a stage trains."""
  return 'teacher' if stage == 'sft' else 'student'


def job(run, side: TextModel, stage: str = 'sft', judged=None) -> tuple[train.Job, OfflineFeed]:
  """The stage on some judged queries; None: all prepared ones."""
  encode = functools.partial(batches.encode_group, side.prompt())
  choose = functools.partial(draw, run.config[stage].group_size)
  judged = prepare.records(run, 'judgements') if judged is None else judged
  return roles.job(run, stage, task(run.config, side.network, stage), judged, encode, choose)


def measure(run, side: TextModel, stage: str) -> held_out_measures.Ranking | None:
  """How the held-out labelled queries are ranked, and the loss on them; None without any."""
  c = run.config[stage]
  judged = held_out.labelled(run)
  per_group = per_group_of(c, stage)

  def loss(scores_GN, batch):
    loss_G, valid_G = per_group(scores_GN, batch['labels_GN'], batch['mask_GN'])
    return jnp.sum(loss_G), jnp.sum(valid_G)

  # Of so many documents as in training, because some losses depend on their number.
  learned = [(held_out.sampled(group, c.group_size), None) for group in judged]
  return (
    held_out_measures.Ranking(run, side, c.batch_rows, judged, learned, loss) if judged else None
  )


def per_group_of(c, stage: str) -> Callable:
  """The loss per query of a section with labels."""
  return losses.choose(losses.ON_LABELS, c.loss, f'{stage}.loss', margin=c.margin)


def on_labels(run, stage: str, side, variables) -> dict:
  """Trains one side."""
  split = held_out.split(run, stage, prepare.records(run, 'judgements'), usable=held_out.graded)
  todo, feed = job(run, side, stage, split.learned)
  found = measure(run, side, stage) if split.measured else None
  checked = held_out.validation(stage, todo, found)
  variables = variables | task(run.config, side.network, stage).more(variables)
  train.fit(todo, feed, variables, run.mesh, checked)
  return {'rows': len(split.learned)} | held_out.results(todo, checked)


def check_records(run, stage: str = 'sft') -> None:
  """Raises: UserError if the stage's loss has nothing to learn from, or a query does not fit."""
  loss = losses.choose(losses.ON_LABELS, run.config[stage].loss, f'{stage}.loss')
  judged = prepare.records(run, 'judgements')
  check_labels(judged, loss, f'{stage}.loss')
  held_out.check_records(run, stage, 'judgements', usable=held_out.graded)

  def encoder():
    prompt = roles.open_role(run.config, role_of(stage)).prompt()
    return functools.partial(batches.encode_group, prompt)

  learned = functools.partial(held_out.learned, run, judged, usable=held_out.graded)
  room.check(run, stage, shape_of(run.config, stage), learned, encoder)


LABELS: Section = {
  **GROUPS,
  'loss': Key(
    'pairwise_hinge', text('a loss on labels'),
    "A loss on labels, 'name' or 'name?setting=value&setting=value'; losses/ has them all.",
  ),
  'margin': Key(0.1, finite(), "The hinge loss's margin (T in the paper)."),
}  # fmt: skip


def check(config) -> None:
  """Raises: UserError for an unknown loss and for a scorer that the template does not fit."""
  losses.choose(losses.ON_LABELS, config.sft.loss, 'sft.loss')
  held_out.check(config, 'sft')
  teacher.check_scorer(config)
  language_terms.check(config)


def check_models(config, models) -> None:
  for model in models.values():
    roles.check_head(config, 'sft', 'teacher', model)


STAGE = Stage(
  'sft', 'the teacher learns to rank from labels', execute,
  settings={**training(), **LABELS, **language_terms.SETTINGS},
  check=check, check_models=check_models, role='teacher', reads_stages=('prepare', 'cpt'),
  reads_records=lambda config: ('judgements',), head=lambda config: HEADS[config.teacher.scorer],
  task=task, check_records=check_records, paper_rows=796_095,
)  # fmt: skip
