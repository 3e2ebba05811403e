"""Which queries are held out, and that their values are those that other code computes."""

import functools
import math
import pathlib
import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax import config as configs
from disranker_jax.config import defaults
from disranker_jax.data import batches
from disranker_jax.data.holdout import Holdout, normalized
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.models import load
from disranker_jax.rankers.pointwise import PointwiseRanker
from disranker_jax.stages import (
  cpt,
  distill,
  held_out,
  held_out_measures,
  prepare,
  roles,
  sft,
)

MESH = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
WORDS = ['list', 'file', 'string', 'path', 'number', 'thread', 'socket', 'parser', 'queue']


def group(i: int, docs: int = 4, text: str = '') -> Group:
  rng = random.Random(i)
  made = tuple(
    Document(f'd{n}', rng.choice(WORDS), f'returns the {rng.choice(WORDS)} {i} {n}', label=n % 3)
    for n in range(docs)
  )
  return Group(f't{i // 4}-{i}', text or f'how to open a {rng.choice(WORDS)} {i}', made)


def make_run(by: str = '', **validation):
  c = defaults()
  for side, model in ((c.teacher, 'tiny-decoder'), (c.student, 'tiny-encoder')):
    side.update(model=model, precision='float32', layers=(), remat='none')
    side.update(max_len=48, max_query_len=16, row_len=64)
  for stage in (c.cpt, c.sft, c.student_sft, c.distill):
    stage.update(batch_rows=8, max_steps=4)
  c.data.holdout_by = by
  c.validation.update(validation)
  return types.SimpleNamespace(config=c, mesh=MESH, folder=lambda stage: pathlib.Path('none'))


@pytest.fixture
def judged(monkeypatch):
  """Sets the prepared judgements of a run."""

  def put(groups):
    monkeypatch.setattr(prepare, 'records', lambda run, kind: list(groups))
    monkeypatch.setattr(prepare, 'kinds', lambda config, stages=None: ['judgements'])
    return list(groups)

  return put


def ids(records) -> set[str]:
  return {record.query_id for record in records}


def test_a_share_is_held_out_and_the_rest_is_learned(judged):
  groups = judged([group(i) for i in range(2000)])
  split = held_out.split(make_run(), 'sft', groups)
  assert 60 < len(split.measured) <= 100 and 1850 < len(split.learned) < 1950
  assert not ids(split.learned) & ids(split.measured)
  assert not ids(split.learned) & ids(held_out.labelled(make_run()))


def test_the_order_of_the_data_decides_nothing(judged):
  groups = judged([group(i) for i in range(600)])
  split = held_out.split(make_run(share=0.1), 'sft', groups)
  first = held_out.labelled(make_run(share=0.1))
  groups = judged(random.Random(1).sample(groups, len(groups)))
  again = held_out.split(make_run(share=0.1), 'sft', groups)
  assert ids(again.learned) == ids(split.learned)
  assert [g.query_id for g in again.measured] == [g.query_id for g in split.measured]
  assert held_out.labelled(make_run(share=0.1)) == first


def test_a_query_with_more_data_stays_on_its_side(judged):
  groups = [group(i) for i in range(400)]
  few = held_out.split(make_run(share=0.1), 'sft', judged(groups))
  many = held_out.split(
    make_run(share=0.1), 'sft', judged(groups + [group(i) for i in range(400, 900)])
  )
  assert ids(few.learned) <= ids(many.learned)


def test_the_test_of_data_holdout_is_chosen_by_another_hash():
  """Or the training queries would have none to hold out."""
  groups = [group(i) for i in range(4000)]
  training = [g for g in groups if Holdout(0.2, 0, '', test=False)(g)]
  split = held_out.split(make_run(share=0.1), 'distill', training)
  assert 0.07 < 1 - len(split.learned) / len(training) < 0.13
  assert not ids(split.measured) & {g.query_id for g in groups if Holdout(0.2, 0, '', test=True)(g)}


def test_other_stages_leave_out_what_the_stages_on_labels_measure(judged):
  groups = judged([group(i) for i in range(600)])
  run = make_run()
  texts = {normalized(g.query) for g in held_out.labelled(run)}
  assert len(texts) > 20
  clicks = [Click(g.query.upper() + ' ', 'title', 'text') for g in groups]
  scored = [(Group('c' + g.query_id, g.query, g.docs), np.zeros(4, np.float32)) for g in groups]
  learned = held_out.split(run, 'cpt', clicks).learned
  assert not texts & {normalized(click.query) for click in learned} and len(learned) > 500
  learned = held_out.split(run, 'distill', scored, query=lambda record: record[0]).learned
  assert not texts & {normalized(g.query) for g, _ in learned} and len(learned) > 500


def test_topics_stay_together_and_clicks_follow_by_text(judged):
  groups = judged([group(i) for i in range(1200)])
  run = make_run(by='^[^-]+')
  split = held_out.split(run, 'sft', groups)
  topics = [{g.query_id.split('-')[0] for g in part} for part in (split.learned, split.measured)]
  assert not topics[0] & topics[1]
  assert len(split.measured) > len(topics[1])  # several queries of a topic
  clicks = [Click(g.query, 'title', 'text') for g in groups]
  learned = {click.query for click in held_out.split(run, 'cpt', clicks).learned}
  assert not learned & {g.query for g in held_out.labelled(run)}


def test_a_frequent_query_is_measured_once_and_learned_never(judged):
  texts = [f'text {i % 300}' for i in range(3000)]
  clicks = [Click(text, f'title {i}', 'text') for i, text in enumerate(texts)]
  split = held_out.split(make_run(), 'cpt', clicks)
  measured = [click.query for click in split.measured]
  assert 10 <= len(measured) == len(set(measured))
  assert not set(measured) & {click.query for click in split.learned}


def test_the_measured_queries_do_not_depend_on_how_many_are_held_in_memory(judged, monkeypatch):
  groups = judged([group(i) for i in range(1500)])
  wanted = held_out.labelled(make_run(share=0.3, max_queries=12))
  monkeypatch.setattr(held_out, 'MANY', 2)
  assert held_out.labelled(make_run(share=0.3, max_queries=12)) == wanted and len(wanted) == 12
  split = held_out.split(make_run(share=0.3, max_queries=12), 'sft', groups)
  assert [g.query_id for g in split.measured] == [g.query_id for g in wanted]


def test_too_few_queries_are_all_learned_and_one_line_says_so(judged, capsys):
  groups = judged([group(i) for i in range(60)])
  split = held_out.split(make_run(), 'sft', groups)
  assert len(split.learned) == 60 and not split.measured
  assert not held_out.labelled(make_run())
  [line] = capsys.readouterr().err.splitlines()
  assert 'sft: no validation: ' in line and 'of its 60 queries' in line and '10 are needed' in line


def test_without_a_share_nothing_is_held_out_or_said(judged, capsys):
  groups = judged([group(i) for i in range(600)])
  split = held_out.split(make_run(share=0.0), 'sft', groups)
  assert len(split.learned) == 600 and not split.measured
  assert not held_out.labelled(make_run(share=0.0)) and not capsys.readouterr().err


@pytest.mark.parametrize(('key', 'value'), [('keep_best', True), ('patience', 2)])
def test_a_decision_without_queries_to_decide_by_is_an_error(judged, key, value):
  groups = judged([group(i) for i in range(60)])
  run = make_run()
  run.config.sft.validation[key] = value
  wanted = rf'config.sft.validation.{key}={value}.*10 are needed'
  with pytest.raises(UserError, match=wanted):
    held_out.split(run, 'sft', groups)
  with pytest.raises(UserError, match=wanted):  # before the stages before it
    sft.check_records(run)


def test_few_generated_queries_are_learned_without_a_decision_and_one_line_says_so(
  judged, monkeypatch, capsys
):
  groups = judged([group(i) for i in range(60)])
  monkeypatch.setattr(held_out, 'labelled', lambda run: [])
  run = make_run()
  run.config.data.candidates = prepare.GENERATED_ADDRESS
  run.config.score.judgements = False
  run.config.stages = ('prepare', 'generate', 'score', 'distill')
  run.config.distill.validation.update(keep_best=True, metric='tau')
  held_out.check_records(run, 'distill', *distill.reads(run.config))  # not known yet
  split = held_out.split(run, 'distill', groups)
  assert len(split.learned) == 60 and not split.measured
  [line] = capsys.readouterr().err.splitlines()
  assert 'no validation' in line and line.endswith('the last checkpoint is taken')
  # A metric that can never be measured is known before the first query is written.
  run.config.distill.validation.metric = 'ndcg@5'
  with pytest.raises(UserError, match=r"metric='ndcg@5': fewer than 10 labelled"):
    held_out.check_records(run, 'distill', *distill.reads(run.config))


def test_the_kinds_that_a_stage_learns_count_together(judged, monkeypatch):
  groups = judged([group(i) for i in range(300)])
  run = make_run(share=0.1)
  run.config.distill.validation.keep_best = True
  kinds = {'candidates': groups[:40], 'judgements': groups[40:]}
  monkeypatch.setattr(prepare, 'records', lambda run, kind: kinds[kind])
  held_out.check_records(run, 'distill', 'candidates', 'judgements')
  with pytest.raises(UserError, match='of its 40 queries are held out'):
    held_out.check_records(run, 'distill', 'candidates')


def test_a_ranking_decides_only_where_labelled_queries_are_held_out(judged, monkeypatch):
  judged([group(i) for i in range(600)])
  run = make_run(share=0.1)
  run.config.distill.validation.metric = 'ndcg@5'
  held_out.check_records(run, 'distill', 'candidates')
  monkeypatch.setattr(prepare, 'kinds', lambda config, stages=None: ['candidates'])
  with pytest.raises(UserError, match=r"metric='ndcg@5': fewer than 10 labelled"):
    held_out.check_records(run, 'distill', 'candidates')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'sft.validation.metric': 'tau'}, r"sft.validation.metric='tau'.*loss, ndcg@5, pnr"),
    ({'cpt.validation.metric': 'pnr'}, r"cpt.validation.metric='pnr': .*choose of loss"),
    (
      {'validation.share': 0.0, 'student_sft.validation.patience': 3},
      r'student_sft.validation.patience=3: config.validation.share=0',
    ),
  ],
)
def test_what_cannot_be_decided_is_an_error_of_the_config(changes, message):
  c = defaults()
  c.teacher.model, c.student.model = 'tiny-decoder', 'tiny-encoder'
  c.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    configs.check(c)


def test_a_share_that_leaves_nothing_to_learn_is_an_error(judged):
  groups = judged([group(i, text=f'q {i}') for i in range(40)])
  with pytest.raises(UserError, match='holds out all records'):
    held_out.split(make_run(share=0.9999), 'sft', groups)


# Values


def scores_of(run, side, variables, groups) -> list[np.ndarray]:
  """The scores by the ranker of the evaluation."""
  ranker = PointwiseRanker(
    side.network, variables, side.prompt(), MESH, 8, side.settings.row_len, side.scorer
  )
  return [np.asarray(scores, np.float64) for _, scores in ranker(groups)]


@pytest.fixture(scope='module')
def student():
  side = roles.open_role(make_run().config, 'student')
  variables = side.pretrained(0, MESH)
  return side, jax.tree.map(lambda x: x * (6 if x.std() > 0 else 1), variables)


def test_rankings_and_loss_on_labels_are_those_of_the_evaluation(judged, student):
  judged([group(i, docs=12) for i in range(300)])
  run, (side, variables) = make_run(documents=6, share=0.1), student
  run.config.student_sft.update(group_size=3, margin=0.5)
  measure = sft.measure(run, side, 'student_sft')
  found = measure(variables)
  groups = held_out.labelled(run)
  assert {len(g.docs) for g in groups} == {6} and measure.queries == len(groups) >= 10
  scores = scores_of(run, side, variables, groups)
  ndcg = [
    metrics.ndcg({d.doc_id: s for d, s in zip(g.docs, of_group, strict=True)}, g.grades, 5)
    for g, of_group in zip(groups, scores, strict=True)
  ]
  assert found['ndcg@5'] == pytest.approx(np.mean(ndcg), abs=1e-6)
  right = wrong = 0
  for g, of_group in zip(groups, scores, strict=True):
    for a, x in zip(g.docs, of_group, strict=True):
      for b, y in zip(g.docs, of_group, strict=True):
        right += a.label > b.label and x > y
        wrong += a.label > b.label and x < y
  assert found['pnr'] == pytest.approx(right / wrong, rel=1e-6)
  drawn = [held_out.sampled(g, 3) for g in groups]
  hinges = []
  for g, of_group in zip(drawn, scores_of(run, side, variables, drawn), strict=True):
    pairs = [
      max(0.0, 0.5 - (of_group[i] - of_group[j]))
      for i, a in enumerate(g.docs)
      for j, b in enumerate(g.docs)
      if a.label > b.label
    ]
    hinges.append(np.mean(pairs))
  assert found['loss'] == pytest.approx(np.mean(hinges), rel=1e-4)


def test_the_loss_and_tau_of_distillation_are_of_held_out_scores(judged, student):
  groups = judged([group(i) for i in range(300)])
  run, (side, variables) = make_run(share=0.1), student
  run.config.distill.update(loss='point_mse', hard_label_weight=0.0, group_size=4)
  rng = np.random.default_rng(0)
  scored = [(g, rng.normal(size=4).astype(np.float32)) for g in groups[:30]]
  found = distill.measure(run, side, scored)(variables)
  ours = scores_of(run, side, variables, [g for g, _ in scored])
  errors = [2 * np.mean((x - t) ** 2) for x, (_, t) in zip(ours, scored, strict=True)]
  assert found['loss'] == pytest.approx(np.mean(errors), rel=1e-4)
  taus = [
    metrics.tau(dict(enumerate(x)), dict(enumerate(t.tolist())))
    for x, (_, t) in zip(ours, scored, strict=True)
  ]
  assert found['tau'] == pytest.approx(np.mean(taus), abs=1e-6)
  # What the term on hidden states adds to the variables is not read.
  more = variables | {'frozen': variables['params'], 'hidden': {'projection': np.eye(2)}}
  assert distill.measure(run, side, scored)(more) == found
  # The labelled queries are those of the other student, so the two can be compared.
  labels_only = sft.measure(run, side, 'student_sft')
  assert distill.measure(run, side, scored).made_of == labels_only.made_of
  assert found['ndcg@5'] == pytest.approx(labels_only(variables)['ndcg@5'], abs=1e-6)


def logprobs_of(network, variables, tokens_BT, length, where_AP, real_AP):
  """The log-probabilities of the tokens after some positions of one text, which is padded."""
  positions_BT = jnp.arange(tokens_BT.shape[1])[None]
  batch = {
    'tokens_BT': tokens_BT, 'types_BT': jnp.zeros_like(tokens_BT), 'positions_BT': positions_BT,
    'segments_BT': (positions_BT < length).astype(jnp.int32),
  }  # fmt: skip
  next_AP = jnp.take_along_axis(tokens_BT, where_AP + 1, axis=1)
  hidden_BTD = network.hidden(variables, batch)
  return network.logprobs(variables, hidden_BTD, where_AP, next_AP, real_AP)


def test_the_loss_on_clicks_is_the_mean_over_all_their_tokens():
  run = make_run()
  teacher = load.open_model(run.config.teacher, 'lm')
  variables = teacher.pretrained(0, MESH)
  clicks = [
    Click(f'open a {w}', w, f'a {w} is opened ' * (i % 3 + 1)) for i, w in enumerate(WORDS[:4])
  ]
  found = cpt.measure(run, teacher, clicks)(variables)
  logprobs = jax.jit(functools.partial(logprobs_of, teacher.network))
  total = tokens = 0.0
  for click in clicks:
    [doc] = cpt.encoder(run, teacher)(click).docs
    row, where = np.zeros((2, 1, 48), np.int32)
    row[0, : len(doc)], (start, stop) = doc.ids, doc.predict
    where[0, : stop - start] = np.arange(start - 1, stop - 1)
    real = np.arange(48)[None] < stop - start
    values = np.asarray(logprobs(variables, row, len(doc), where, real))
    total, tokens = total - values[real].sum(), tokens + stop - start
  assert found['loss'] == pytest.approx(total / tokens, rel=1e-4)


def test_a_measured_loss_of_nothing_is_no_number(judged, student):
  """PNR counts pairs of judged documents, and has none here."""
  docs = (Document('a', 'file', 'a', label=1), Document('b', 'file', 'b'))
  judged([Group(f'{i}', f'query {i}', docs) for i in range(300)])
  side, variables = student
  run = make_run(share=0.1)
  measure = sft.measure(run, side, 'student_sft')
  found = measure(variables)
  assert math.isnan(found['pnr']) and 0 < found['ndcg@5'] <= 1
  # Queries whose documents have one grade teach a pairwise loss nothing.
  alike = [(group(i, docs=1), None) for i in range(3)]
  per_group = sft.per_group_of(run.config.student_sft, 'student_sft')

  def loss(scores_GN, batch):
    loss_G, valid_G = per_group(scores_GN, batch['labels_GN'], batch['mask_GN'])
    return jnp.sum(loss_G), jnp.sum(valid_G)

  of_alike = held_out_measures.Ranking(run, side, 4, [], alike, loss)
  assert math.isnan(of_alike(variables)['loss'])


def test_documents_of_a_query_hold_every_grade():
  for i in range(20):
    drawn = held_out.sampled(group(i, docs=12), 4)
    assert {d.label for d in drawn.docs} == {0, 1, 2} and len(drawn.docs) == 4
    assert drawn == held_out.sampled(group(i, docs=12), 4)
    assert batches.sample(drawn, 4, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]


def test_a_stage_with_few_records_leaves_out_the_labelled_queries_that_others_measure(judged):
  groups = judged([group(i) for i in range(600)])
  texts = {normalized(g.query) for g in held_out.labelled(make_run())}
  few = [Click(g.query, 'title', 'text') for g in groups if normalized(g.query) in texts][:5]
  few += [Click(f'query {i}', 'title', 'text') for i in range(20)]
  split = held_out.split(make_run(), 'cpt', few)
  assert not split.measured
  assert not texts & {normalized(click.query) for click in split.learned}
  judged([group(i) for i in range(20)])
  assert len(held_out.split(make_run(), 'cpt', few).learned) == 25
