"""The best student fused with the first stage: rows of the result table, and the exported weight.

The weight is chosen on held-out training queries (held_out.py), never on test queries. Their
documents are those that the first stage found: the candidates of the query where they are known,
because judged documents alone are another pool than the one that is re-ranked.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

from disranker_jax.data.holdout import normalized
from disranker_jax.data.records import Group
from disranker_jax.evaluation import fusion
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.progress import amount, say
from disranker_jax.stages import (
  best_student,
  evaluate,
  held_out,
  prepare,
  result_rows,
  result_table,
  roles,
)
from disranker_jax.stages.result_rows import FIRST_STAGE, FUSED, FUSED_RANKS, ROWS
from disranker_jax.stages.result_table import Lacking, Ranking

FEWEST = 20  # held-out queries by which a weight is chosen


def rank(run, row, groups: Sequence[Group]) -> Ranking:
  """The best student and the first stage, by ranks or by weighted scores. Raises: Lacking."""
  signal = signal_of(groups)
  if not signal:
    raise Lacking(
      'the test documents have no first-stage ranks to fuse with; give them a "rank" and a '
      '"score", or name the run of a first stage'
    )
  name = best_student.choose(run).row
  model, facts = evaluate.ranked(run, name, groups)
  # The fused row costs the same, because the first stage has ranked before any row.
  costs = {cost: facts[cost] for cost in result_rows.TABLE.costs if cost in facts}
  first_title = result_rows.first_stage(run, ROWS[FIRST_STAGE], groups)[1].get('title')
  title = f'{ROWS[name].title} + {first_title or ROWS[FIRST_STAGE].title}'
  if row.name == FUSED_RANKS:
    ranks = {g.query_id: {d.doc_id: -d.rank for d in g.docs if d.rank} for g in groups}
    fused = fusion.fuse_runs((model, ranks), (1.0, 1.0), 'ranks')
    return fused, {'title': f'{title}, by ranks', 'against': [], **costs}
  how = choose(run, name, signal)
  firsts = first_of(groups, how.signal)
  fused = {q: fusion.convex(of_query, firsts[q], how.weight) for q, of_query in model.items()}
  facts = {'title': title, 'against': [FIRST_STAGE, name], **costs}
  return fused, facts | {'fusion': how.to_dict() | {'row': name}}


def of_export(run, name: str, loaded=None) -> Fusion | None:
  """The fusion that the folder of a student records; None without any first-stage ranks.

  It is the one of the result table, if that has this student.

  Args:
    loaded: what Row.load gives for the student.
  """
  done = run.folder('evaluate') / f'{FUSED}.json'
  if is_current(run):
    found = json.loads(done.read_text())['results'].get('fusion', {})
    if found.get('row') == name:
      return Fusion.from_dict(found, str(done))
  return choose(run, name, '', loaded)


def is_current(run) -> bool:
  """Whether the row of the result table is made from the stages as they are now."""
  return (
    FUSED in result_rows.TABLE.rows_of(run.config) and evaluate.filled(run, ROWS[FUSED]) is not None
  )


def choose(run, name: str, signal: str, loaded=None) -> Fusion | None:
  """The student's weight with the best held-out nDCG@5, or the default with a message.

  Args:
    signal: that of the test documents; '': that of the held-out queries alone decides, and without
      any the result is None.
  """
  # Of candidates, a query's documents are others than its judged ones, and may be of two grades.
  # With few judged ones of two grades, stages learn from all.
  labelled = held_out.judged(run, usable=bool) if held_out.judged(run) else []
  groups = first_stage_of(run, labelled)
  signals = {signal, signal_of(groups)} - {''}
  if not signals:
    return None
  if why := result_rows.given_scores(groups)[1]:
    say(f'fusion: the first stage counts by its ranks: on held-out queries {why}')
  signal = 'ranks' if 'ranks' in signals else 'scores'
  graded = list(filter(held_out.graded, groups))
  single = held_out.of_one_grade(len(groups) - len(graded))
  groups = graded
  if len(groups) < FEWEST:
    if 'judgements' not in prepare.kinds(run.config):
      why = 'no stage of the run reads judgements, of which some would be held out'
    elif not labelled:
      why = f'{held_out.FEW}; raise config.validation.share'
    else:
      why = (
        f'{amount(len(groups), "held-out training query has", "held-out training queries have")} '
        f'first-stage ranks and found documents of two grades{single}, and {FEWEST} are needed; '
        'raise config.validation.share, or give judgements or candidates with ranks'
      )
    say(f'fusion: no weight can be chosen, so {fusion.DEFAULT:g} is taken: {why}')
    return Fusion(fusion.DEFAULT, signal)
  ranker = roles.scorer(run, *(loaded or ROWS[name].load(run)), rows=run.config.evaluate.batch_rows)
  model = result_table.score_all('held-out queries', ranker, groups)
  kept = {group.query_id for group in groups}
  qrels = {group.query_id: group.grades for group in labelled if group.query_id in kept}
  weight, values = fusion.choose(model, first_of(groups, signal), qrels)
  found = Fusion(weight, signal, len(groups), values[weight], values[1.0], values[0.0])
  say(f'fusion: {ROWS[name].title} with the first stage: {found.text}{single}')
  return found


def first_stage_of(run, labelled: Sequence[Group]) -> list[Group]:
  """The queries with the documents that the first stage found and their labels, where known.

  They are the documents of the query's candidates, if these have a judged one.
  """
  texts = {normalized(group.query): group for group in labelled}
  found: dict[str, Group] = {}
  if texts and 'candidates' in prepare.kinds(run.config):
    for group in held_out.counted('fusion', prepare.records(run, 'candidates')):
      text = normalized(group.query)
      if text in texts and signal_of([group]):
        labelled_group = with_labels(group, texts[text])
        if labelled_group.grades:
          found.setdefault(text, labelled_group)
  groups = (found.get(text, group) for text, group in texts.items())
  return [retrieved(group) for group in groups if signal_of([group])]


def with_labels(group: Group, judged: Group) -> Group:
  """The documents of a query with the labels of its judgements."""
  labels = judged.grades
  docs = (dataclasses.replace(doc, label=labels.get(doc.doc_id, doc.label)) for doc in group.docs)
  return dataclasses.replace(group, query_id=judged.query_id, docs=tuple(docs))


def retrieved(group: Group) -> Group:
  """The query with the documents that the first stage found."""
  return dataclasses.replace(group, docs=tuple(doc for doc in group.docs if doc.rank))


def signal_of(groups: Sequence[Group]) -> str:
  """What is known of the first stage: 'scores' of all that it found, else 'ranks', else ''.

  Scores that contradict the ranks, such as distances, are not known: the better is the greater.
  """
  found = [doc for group in groups for doc in group.docs if doc.rank]
  if not found:
    return ''
  is_unknown = any(math.isnan(doc.score) for doc in found)
  return 'ranks' if is_unknown or result_rows.given_scores(groups)[1] else 'scores'


def first_of(groups: Iterable[Group], signal: str) -> dict[str, dict[str, float]]:
  """The first stage's scores, or those that its ranks stand for."""
  found = {g.query_id: [doc for doc in g.docs if doc.rank] for g in groups}
  if signal == 'ranks':
    return {q: fusion.of_ranks({d.doc_id: d.rank for d in docs}) for q, docs in found.items()}
  return {q: {d.doc_id: d.score for d in docs} for q, docs in found.items()}
