"""Distillation: the student learns the teacher's scores, their values and their differences.

Paper section 3.4: L = L_point + beta * L_margin (`loss = 'hybrid'`). Two terms can be added: one on
the labels of judged queries, which arXiv:2302.04112 finds critical, and one on hidden states
(TinyBERT), where teacher and student read the same tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from disranker_jax import losses
from disranker_jax.config.settings import Key, at_least, finite, integers, list_of, one_of, text
from disranker_jax.data import batches, scored_groups
from disranker_jax.data.holdout import normalized
from disranker_jax.data.records import Group
from disranker_jax.data.scored_groups import ScoredGroups, Selected
from disranker_jax.errors import UserError
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import amount, say
from disranker_jax.rankers.pointwise import score_fn
from disranker_jax.stages import (
  earlier,
  hard_label_trials,
  held_out,
  held_out_measures,
  mixed,
  prepare,
  roles,
  room,
  score,
  scored_records,
  sft,
)
from disranker_jax.stages.distill_hidden import HiddenStates, check_hidden, open_hidden, unopened
from disranker_jax.stages.held_out import LOSS, NDCG, PNR, TAU
from disranker_jax.stages.targets import normalizer
from disranker_jax.training import train
from disranker_jax.training.feed import OfflineFeed
from disranker_jax.training.settings import GROUPS, training


def distillation_loss(score, c, variables, batch):
  """soft + hard_label_weight * hard (+ hidden_weight * hidden): (sum, valid queries, metrics).

  Args:
    score: (variables, batch) -> (scores_GN, distance of the hidden states).
    c: config.distill.
  """
  scores_GN, gap = score(variables, batch)
  soft_G, hard_G, valid_G = per_group(c, scores_GN, batch)
  weight = jnp.sum(valid_G)
  metrics = {
    'soft': jnp.sum(soft_G) / jnp.maximum(weight, 1),
    'hard': jnp.sum(hard_G) / jnp.maximum(weight, 1),
    'examples': jnp.sum(batch['mask_GN']),
  }
  total = jnp.sum(soft_G + c.hard_label_weight * hard_G)
  if c.hidden_weight:
    metrics['hidden'] = gap
    total += c.hidden_weight * gap * weight
  return total, weight, metrics


def per_group(c, scores_GN, batch):
  """(soft_G, hard_G, valid_G): the two losses on scores, and which queries count."""
  labels_GN, mask_GN = batch['labels_GN'], batch['mask_GN']
  # hard_label_margin is for the hard loss only.
  soft = losses.choose(losses.ON_SCORES, c.loss, 'distill.loss', beta=c.beta)
  soft_G, valid_G = soft(scores_GN, batch['teacher_GN'], mask_GN)
  hard = losses.choose(
    losses.ON_LABELS, c.hard_loss, 'distill.hard_loss', margin=c.hard_label_margin
  )
  hard_G, _ = hard(scores_GN, labels_GN, mask_GN & (labels_GN >= 0))
  return soft_G, hard_G, valid_G


def draw(size: int, record: tuple[Group, np.ndarray], rng) -> tuple[Group, np.ndarray]:
  """The query with at most `size` of its documents, and their scores."""
  group, scores = record
  chosen = batches.sample(group, size, rng)
  docs = tuple(group.docs[i] for i in chosen)
  return Group(group.query_id, group.query, docs), scores[chosen]


def task(config, network, hidden: tuple[HiddenStates, dict] | None = None) -> train.Task:
  """What is computed, of which shapes.

  `hidden` is what open_hidden gives, for the term on hidden states; without it there are zeros in
  the place of the teacher's parameters.
  """
  c = config.distill
  if not c.hidden_weight:
    score_alone = score_fn(network)
    score, more = (lambda *given: (score_alone(*given), 0.0)), (lambda variables: {})
  elif hidden:
    score, more = hidden[0], lambda variables: hidden[1]
  else:
    score, more = unopened(config, network)
  return train.Task(functools.partial(distillation_loss, score, c), shape_of(config), more)


def shape_of(config) -> batches.Shape:
  """The shape of a batch."""
  c = config.distill
  return batches.Shape(c.batch_rows, config.student.row_len, c.group_size)


def open_targets(run) -> tuple[ScoredGroups, dict]:
  """(queries with the student's targets, results for the manifest) of all runs that it learns from.

  The scores of each run are standardised by themselves, because each had its own teacher. Judged
  queries of an earlier run that this run has scored again are left out.
  """
  c = run.config.distill
  scored = open_scored(run)
  targets, numbers = normalizer(scored.facts, c.normalize_scores)
  own, results = mixed.indices(run, reads(run.config), scored)
  parts: list = [Selected(scored, own, targets)]
  results |= {'standardised_by': numbers} if numbers else {}
  again = judged_texts(run) if c.earlier_runs else set()
  for folder in c.earlier_runs:
    other = earlier.opened('distill.earlier_runs', folder)
    scored = open_scored(other)
    targets, numbers = normalizer(scored.facts, c.normalize_scores)
    kept = unrepeated(other, scored, again)
    parts.append(Selected(scored, kept, targets))
    results.setdefault('earlier_runs', {})[folder] = {'rows': len(kept), **numbers}
    out = len(scored) - len(kept)
    say(
      f'distill: {amount(len(kept), "scored query", "scored queries")} of {folder}, beside '
      f'{len(parts[0]):,} of this run; without {amount(out, "judged one", "judged ones")} that '
      'this run has scored too'
    )
  return scored_groups.joined(parts, {}), results


def judged_texts(run) -> set[str]:
  """The texts of the judged queries that the run learns scores of."""
  if 'judgements' not in reads(run.config):
    return set()
  return {normalized(group.query) for group in prepare.records(run, 'judgements')}


def unrepeated(other, scored: ScoredGroups, again: set[str]) -> Sequence[int]:
  """The indices of an earlier run's scored queries without the judged ones in `again`."""
  kinds = [kind for kind in reads(other.config) if kind != 'judgements']
  first = sum(len(prepare.records(other, kind)) for kind in kinds)  # these come first
  left = [i for i in range(first, len(scored)) if normalized(scored[i][0].query) not in again]
  return range(first) if not left else [*range(first), *left]


def open_scored(run) -> ScoredGroups:
  """The queries with teacher scores, of the run's own teacher or of `data.teachers`."""
  if not run.config.data.teachers:
    return scored_records.open_scored(run)
  facts = manifest.read(run.folder('prepare'))['results']['candidates']['teachers']
  judged = prepare.records(run, 'judgements') if 'judgements' in reads(run.config) else None
  return scored_groups.from_records(prepare.records(run, 'candidates'), judged, facts)


def job(
  run, student: TextModel, scored: ScoredGroups, hidden=None
) -> tuple[train.Job, OfflineFeed]:
  """The stage on queries with the student's targets."""
  prompt = student.prompt()
  if run.config.distill.hidden_weight and hidden is None:
    raise UserError(
      "config.distill.hidden_weight: needs the teacher's network, which this command does not "
      'open; set it to 0'
    )

  def encode(record):
    group, target_N = record
    return batches.encode_group(prompt, group, target_N)

  def choose(record, rng):
    return draw(run.config.distill.group_size, record, rng)

  computed = task(run.config, student.network, hidden)
  return roles.job(run, 'distill', computed, scored, encode, choose)


def measure(run, student: TextModel, scored: Sequence) -> held_out_measures.Ranking | None:
  """The held-out loss and tau to the teacher, and how labelled queries are ranked.

  The term on hidden states is not part of it. None without any held-out query.
  """
  c, judged = run.config.distill, held_out.labelled(run)

  def loss(scores_GN, batch):
    soft_G, hard_G, valid_G = per_group(c, scores_GN, batch)
    return jnp.sum(soft_G + c.hard_label_weight * hard_G), jnp.sum(valid_G)

  # Of so many documents as in training; the same ones whenever the stage is continued.
  rngs = (np.random.default_rng(i) for i in range(len(scored)))
  learned = [draw(c.group_size, *one) for one in zip(scored, rngs, strict=True)]
  if not (judged or learned):
    return None
  return held_out_measures.Ranking(run, student, c.batch_rows, judged, learned, loss)


def execute(run: Run) -> dict:
  student = roles.open_role(run.config, 'student')
  scored, results = open_targets(run)
  split = held_out.split(run, 'distill', scored, query=lambda record: record[0])
  if run.config.distill.earlier_runs or prepare.GENERATED in reads(run.config):
    check_room(run, shape_of(run.config), lambda: split.learned)  # not known to check_records
  found = {}
  for weight, (one, folder) in hard_label_trials.runs(run).items():
    if one is not run:
      say(f'distill: hard_label_weight={weight:g}')
    found[weight] = train_one(one, folder, student, split)
  return {'rows': len(split.learned)} | hard_label_trials.best(run, found) | results


def train_one(run: Run, folder: Path, student: TextModel, split: held_out.Split) -> dict:
  """Trains the student in a folder; returns the results."""
  c = run.config.distill
  earlier_stages = (c.init_from,) if c.init_from else ()
  variables = roles.trained(run, 'student', student, earlier_stages, trains='distill')
  hidden = open_hidden(run, student) if c.hidden_weight else None
  todo, feed = job(run, student, split.learned, hidden)
  todo = dataclasses.replace(todo, folder=folder)
  checked = held_out.validation('distill', todo, measure(run, student, split.measured))
  variables |= task(run.config, student.network, hidden).more(variables)
  train.fit(todo, feed, variables, run.mesh, checked)
  return held_out.results(todo, checked)


def check_room(run, shape: batches.Shape, learned: Callable[[], Sequence]) -> None:
  """Raises: UserError if the query of a scored record does not fit into a batch; see room.check."""

  def encoder():
    prompt = roles.open_role(run.config, 'student').prompt()
    return lambda record: batches.encode_group(prompt, record[0])

  room.check(run, 'distill', shape, learned, encoder)


def known(run) -> Sequence[tuple[Group, np.ndarray | None]]:
  """The queries that are there before `score`, each with the documents that have or get a score."""
  if run.config.data.teachers:
    return open_scored(run)
  kinds = [kind for kind in reads(run.config) if not prepare.is_to_come(run, kind)]
  parts = [score.open_chosen(run, kind) for kind in kinds]
  return ScoredGroups([(len(part), lambda i, of=part: (of[i], None)) for part in parts], {})


def shape_of_known(config) -> batches.Shape:
  """The shape of a batch; a step draws no more documents of a query than have scores."""
  shape, scored = shape_of(config), config.score.group_size
  if config.data.teachers or not scored:
    return shape
  return dataclasses.replace(shape, docs=min(shape.docs, scored))


def check_records(run) -> None:
  """Raises: UserError if there is nothing to learn from, or a query does not fit into a batch."""
  c = run.config.distill
  if has_hard_labels(run.config) and 'judgements' in reads(run.config):
    hard = losses.choose(losses.ON_LABELS, c.hard_loss, 'distill.hard_loss')
    sft.check_labels(prepare.records(run, 'judgements'), hard, 'distill.hard_loss')
  held_out.check_records(run, 'distill', *reads(run.config))
  hard_label_trials.check_records(run)
  check_room(
    run, shape_of_known(run.config),
    lambda: held_out.learned(run, known(run), query=lambda record: record[0]),
  )  # fmt: skip
  if run.config.data.teachers:
    normalizer(open_scored(run).facts, c.normalize_scores)


def uses(config) -> tuple[Use, ...]:
  """The student, and the teacher if its hidden states are learned."""
  rows = config.distill.batch_rows
  roles_of = ('student', 'teacher') if config.distill.hidden_weight else ('student',)
  return tuple(Use(r, r, functools.partial(roles.open_role, config, r), rows) for r in roles_of)


def check_models(config, models) -> None:
  roles.check_student(models['student'])
  if not config.distill.init_from:  # student_sft has made the same check
    roles.check_head(config, 'distill', 'student', models['student'])
  if config.distill.hidden_weight:
    check_hidden(config, models['teacher'], models['student'])


SETTINGS = {
  **training(epochs=2.0, learning_rate=5e-5, warmup_ratio=0.1),
  **GROUPS,
  'loss': Key('hybrid', text('a loss on scores'), "A loss on the teacher's scores; see losses/."),
  'beta': Key(0.4, at_least(0), "Weight of Margin-MSE in the 'hybrid' loss."),
  'hard_label_weight': Key(
    0.0, at_least(0), 'Weight of the term on the labels of judged queries; 0: none.'
  ),
  'hard_label_weights': Key(
    (), list_of(at_least(0), like=0.0, distinct=True),
    'Weights to choose from, such as 0,0.5,1,2: one whole training for each, and the one that '
    'ranks held-out labelled queries best is taken. They replace hard_label_weight; (): none.',
  ),
  'hard_loss': Key(
    'pairwise_hinge', text('a loss on labels'), 'Loss of that term; the same names as in sft.loss.'
  ),
  'hard_label_margin': Key(0.1, finite(), 'Margin of that term, if its loss has one.'),
  'normalize_scores': Key(
    '', one_of('', 'all', 'query'),
    "The teacher's scores as they are (''); to mean 0 and deviation 1 over all ('all'); around "
    "each query's own mean ('query'), for a teacher whose scores of different queries cannot be "
    'compared.',
  ),
  'hidden_weight': Key(
    0.0, at_least(0),
    "Weight of the mean squared error between the student's and the teacher's hidden states, for "
    "an encoder teacher with the student's tokenizer; 0: none.",
  ),
  'hidden_layers': Key(
    (), integers(-1),
    "The teacher's layers that the student's embeddings and each of its layers learn from; 0 is "
    'its embeddings, -1 none; (): evenly spaced.',
  ),
  'init_from': Key(
    '', one_of('', 'student_sft'),
    "What the student starts from: '' is the pretrained one, or that of student.init_from; "
    "'student_sft' is the one that learned from labels.",
  ),
  'generated_weight': Key(
    1.0, at_least(0),
    'How often each generated query is learned where one of a real log is learned once; 0.5: every '
    'second one, chosen by a hash.',
  ),
  'generated_limit': Key(
    0, at_least(0),
    'At most so many generated queries are taken, chosen by a hash; held-out ones count; 0: all.',
  ),
  'generated_within': Key(
    0, at_least(0),
    'A generated query is learned only if the teacher ranks its own document so high or better '
    'among those that it scores; 0: every query.',
  ),
  'earlier_runs': Key(
    (), list_of(text('a workdir', empty=False), distinct=True),
    'Workdirs of earlier runs whose scored queries are learned too; nothing of theirs is prepared '
    'or scored again (docs/retrain.md).', affects_results=False,
  ),
}  # fmt: skip


def has_hard_labels(config) -> bool:
  return any(hard_label_trials.weights(config))


def reads(config) -> tuple[str, ...]:
  """Judged queries too if they have teacher scores; data/scored_groups.py has the rule."""
  other = config.data.teachers
  judged = has_hard_labels(config) if other else config.score.judgements
  kinds = ('candidates',) if other else score.reads(config)
  return (*(kind for kind in kinds if kind != 'judgements'), *(('judgements',) if judged else ()))


def requires(config) -> dict[str, tuple[str, ...]]:
  found = {'distill': ('prepare',) if config.data.teachers else ('prepare', 'score')}
  if start := config.distill.init_from:
    found[f'distill.init_from={start}'] = (start,)
  return found


def check(config) -> None:
  if config.distill.init_from and config.student.init_from:
    raise UserError(
      f'config.distill.init_from={config.distill.init_from!r}: replaces the parameters of '
      "config.student.init_from; set one of the two to ''"
    )
  hard_label_trials.check(config)
  held_out.check(config, 'distill', (LOSS, NDCG, PNR, TAU))
  losses.choose(losses.ON_SCORES, config.distill.loss, 'distill.loss')
  losses.choose(losses.ON_LABELS, config.distill.hard_loss, 'distill.hard_loss')


def outside(config, workdir) -> dict[str, str | None]:
  """The scores of earlier runs."""
  if not config.distill.earlier_runs:
    return {}
  return {'distill.earlier_runs': earlier.scores_fingerprint(config)}


STAGE = Stage(
  'distill', "the student learns the teacher's scores", execute, SETTINGS, check=check,
  role='student', reads_stages=('prepare', 'generate', 'score', 'student_sft'), requires=requires,
  reads_records=reads, task=task, uses=uses, check_models=check_models,
  check_records=check_records, kept=hard_label_trials.kept, outside=outside,
  trainings=hard_label_trials.count, paper_rows=46_814_775,
)  # fmt: skip
