"""The stages align and ltrgr: what they draw, what they learn, and that a batch changes nothing."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ranked_examples import (
  MESH,
  SIZE,
  example,
  groups_of,
  make_run,
  material,
  opened,
  packed,
  page,
  prompt,
  trained,
  written,
)

from disranker_jax import config as configs
from disranker_jax.data.batches import join
from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.generative import evidence, examples
from disranker_jax.generative.examples import Example, ExamplePage
from disranker_jax.generative.stages import align, ltrgr, ranking, retrieve
from disranker_jax.models import load, tree
from disranker_jax.stages import held_out, prepare

# What is drawn


def settings(**changes):
  return configs.defaults('dgr').align.copy_and_resolve_references() | changes


def drawn(one: Example, rng=0, **changes):
  c = configs.defaults('dgr').align
  c.update(changes)
  return align.draw(c, written, one, np.random.default_rng(rng))


def test_a_relevant_page_the_best_other_one_and_random_ones_are_drawn():
  one = example(0, relevant=3, pages=12)
  seen = [drawn(one, rng, documents=4) for rng in range(60)]
  for each in seen:
    pages = [p for _, p, _ in each.pages]
    assert [place for place, *_ in each.pages] == [0, 1, 2, 3]
    assert pages[:2] == [one.pages[3], one.pages[0]]
    assert len({p.target for p in pages}) == 4
    assert all(target == p.target for _, p, target in each.pages)
  others = {p.target for each in seen for _, p, _ in each.pages[2:]}
  assert len(others) == 10  # every other page comes up, in some epoch
  assert len({each.written for each in seen}) > 1  # and so do other spans of the text


def test_relevant_pages_can_be_put_first():
  one = example(1)
  assert one.pages[2].target < max(p.target for p in one.pages)
  each = drawn(one, positives_first=True)
  targets = {p.doc_id: target for _, p, target in each.pages}
  assert len(each.pages) == 5
  assert max(targets, key=targets.get) == one.pages[2].doc_id
  assert all(target == p.target for _, p, target in each.pages if not p.is_relevant)


def test_pages_without_a_teacher_score_are_not_ordered_but_relevant_ones_are_written():
  pages = list(example(2).pages)
  pages[2] = dataclasses.replace(pages[2], target=np.nan)
  pages[4] = dataclasses.replace(pages[4], target=np.nan)
  each = drawn(Example('q', tuple(pages)))
  assert {p.doc_id for _, p, _ in each.pages} == {pages[i].doc_id for i in (0, 1, 3)}
  assert each.written[0] == written('q', pages[2], np.random.default_rng())[0]


def test_pages_with_equal_teacher_scores_are_not_drawn_together():
  pages = tuple(dataclasses.replace(p, target=float(i % 2)) for i, p in enumerate(example(3).pages))
  for rng in range(5):
    assert sorted(t for *_, t in drawn(Example('q', pages), rng).pages) == [0.0, 1.0]


def test_ltrgr_draws_the_first_page_of_each_kind_and_one_more():
  rng = np.random.default_rng(0)
  pages = tuple(page(rng, i, np.nan, int(i in (1, 4, 5))) for i in range(8))
  c = configs.defaults('dgr').ltrgr
  seen = [ltrgr.draw(c, written, Example('q', pages), rng) for _ in range(60)]
  places = [{place: p.doc_id for place, p, _ in each.pages} for each in seen]
  assert all((found[0], found[1]) == ('1', '0') for found in places)
  assert {found[2] for found in places} == {'4', '5'}
  assert {found[3] for found in places} == {'2', '3', '6', '7'}
  alone = ltrgr.draw(c, written, Example('q', pages[:2]), rng)
  assert [place for place, *_ in alone.pages] == [0, 1]


# What is left out


def unfound(one: Example) -> Example:
  """The example if the retriever had not found its relevant page."""
  lost = ExamplePage('19', label=1)
  return dataclasses.replace(one, pages=(*(p for p in one.pages if not p.is_relevant), lost))


def test_a_relevant_page_that_was_not_found_is_not_ranked_but_written(tmp_path, capsys):
  c, some = make_run(tmp_path).config, material(4).examples
  lost = [unfound(e) for e in some]
  assert len(ltrgr.METHOD.select(c, [*some, *lost])) == 4
  assert '4 of 8 queries are left out: no relevant page was found' in capsys.readouterr().err
  with pytest.raises(UserError, match='ltrgr: nothing to learn from: no relevant page was found'):
    ltrgr.METHOD.select(c, lost)
  # A page whose n-grams weigh nothing has no gradient either.
  weightless = [
    dataclasses.replace(e, pages=tuple(
      dataclasses.replace(p, matches=tuple(dataclasses.replace(m, weight=0.0) for m in p.matches))
      if p.is_relevant else p for p in e.pages
    )) for e in some
  ]  # fmt: skip
  with pytest.raises(UserError, match='ltrgr: nothing to learn from'):
    ltrgr.METHOD.select(c, weightless)
  # With a found page beside it, it is never the one that others are pushed below.
  rng = np.random.default_rng(0)
  both = dataclasses.replace(some[0], pages=(*some[0].pages, lost[0].pages[-1]))
  for _ in range(20):
    assert '19' not in {p.doc_id for _, p, _ in ltrgr.draw(c.ltrgr, written, both, rng).pages}
  each = drawn(lost[0], positives_first=True)
  assert '19' not in {p.doc_id for _, p, _ in each.pages} and len(each.pages) == 4
  assert each.written[0] == written('q', lost[0].pages[-1], rng)[0]


def test_queries_without_anything_to_rank_are_counted(tmp_path, capsys):
  c, some = make_run(tmp_path).config, material(4).examples
  unlabelled = [dataclasses.replace(e, pages=e.pages[:2]) for e in some]
  assert len(align.METHOD.select(c, [*some, *unlabelled])) == 8
  assert len(ltrgr.METHOD.select(c, [*some, *unlabelled])) == 4
  assert 'ltrgr: 4 of 8 queries are left out: no relevant page' in capsys.readouterr().err
  tied = [
    Example('q', tuple(dataclasses.replace(p, target=1.0, label=-1) for p in e.pages)) for e in some
  ]
  with pytest.raises(UserError, match='align: nothing to learn from: no two pages with different'):
    align.METHOD.select(c, tied)
  with pytest.raises(UserError, match=r'judgements, or take ltrgr out of config\.stages: only its'):
    ltrgr.METHOD.select(c, unlabelled)


def test_the_unit_of_scores_is_the_mean_best_score():
  some = material(5).examples
  best = [max(sum(m.weight * m.coverage for m in p.matches[:2]) for p in e.pages) for e in some]
  assert examples.mean_best(some, 2) == pytest.approx(np.mean(best))
  none = [Example('q', (ExamplePage('1', 1.0), ExamplePage('2', 2.0)))]
  with pytest.raises(UserError, match='none of the 1 query found a page by an n-gram'):
    examples.mean_best(none, 2)


# The loss of a batch


def gradients(task, variables, batch):
  def total(params):
    value, weight, metrics = task.loss({**variables, 'params': params}, batch)
    return value, (weight, metrics)

  with jax.set_mesh(MESH):
    (value, (weight, metrics)), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(
      variables['params']
    )
  return value, weight, metrics, tree.flatten(grads)


def test_neither_sharing_nor_padding_nor_other_queries_change_a_loss(tmp_path):
  run = make_run(tmp_path)
  model, variables = opened(run)
  found = material(4)
  pages = found.examples[1].pages
  found.examples[1] = Example('none found', (dataclasses.replace(pages[0], matches=()), *pages[1:]))
  groups = groups_of(run, found)
  task = align.METHOD.task(run.config, model.network, scale=60.0)
  assert task.shape.shares
  apart = dataclasses.replace(task.shape, rows=24, shares=False)
  value, weight, metrics, grads = gradients(task, variables, packed(groups, task.shape))
  assert weight == 4 and value > 0 and metrics['examples'] == 20
  other, _, _, other_grads = gradients(task, variables, packed(groups, apart))
  np.testing.assert_allclose(value, other, rtol=1e-4)
  for path, grad in grads.items():
    np.testing.assert_allclose(grad, other_grads[path], rtol=2e-3, atol=1e-5, err_msg=path)
  compute = jax.jit(lambda batch: task.loss(variables, batch)[0])
  alone = [compute(packed([group], task.shape)) for group in groups]
  np.testing.assert_allclose(sum(alone), value, rtol=1e-4)
  blocks = join([packed(part, task.shape.block(2)) for part in (groups[:2], groups[2:])])
  np.testing.assert_allclose(compute(blocks), value, rtol=1e-4)


def test_the_scores_in_a_batch_are_those_of_teacher_forcing(tmp_path):
  run = make_run(tmp_path)
  model, variables = opened(run)
  found = material(1)
  [group] = groups_of(run, found)
  task = align.METHOD.task(run.config, model.network)
  batch = packed([group], task.shape)
  sums_GN, _ = jax.jit(task.loss.logprobs)(variables, batch)
  scores = task.loss.scores(sums_GN, batch)[0]

  @jax.jit
  def read(ids_T):
    one = {'tokens_BT': ids_T[None], 'segments_BT': jnp.ones((1, 40), int)}
    states_BTD = model.network.hidden(variables, one | {'positions_BT': jnp.arange(40)[None]})
    return jax.nn.log_softmax(model.network.module.apply(variables, states_BTD[0], method='logits'))

  expected: dict[float, float] = {}
  for one in found.examples[0].pages:
    for match in one.matches[: run.config.align.ngrams]:
      ids = [*prompt('query 0', match.ngram.view), *match.ngram.tokens]
      logs = read(np.pad(ids, (0, 40 - len(ids))))
      first = len(ids) - len(match.ngram.tokens)
      logprob = sum(float(logs[t - 1, ids[t]]) for t in range(first, len(ids)))
      if match.ngram.view == 'query':
        logprob = min(logprob + 14, -1)
      weight = evidence.weight(logprob, match.ngram.count, SIZE)
      expected[one.target] = expected.get(one.target, 0.0) + weight * match.coverage
  assert sum(score > 0 for score in expected.values()) > 2
  targets = task.loss.targets(batch)[0][0].tolist()
  for score, target in zip(scores[:5].tolist(), targets, strict=False):
    assert score == pytest.approx(expected[target], rel=1e-3, abs=1e-3)


# Training


def measured(run, found, variables, method=align.METHOD):
  model = load.open_model(run.config.retriever, 'lm')
  scale = examples.mean_best(found.examples, run.config.align.ngrams)
  return method.measure(run, model, found, found.examples, scale)(variables)


def test_the_teachers_order_is_learned(tmp_path, monkeypatch):
  run, found = make_run(tmp_path), material()
  run.config.align.update(max_steps=80, epochs=100.0, learning_rate=1e-2, generation=0.1)
  _, start = opened(run)
  before = measured(run, found, start)
  results, params = trained(run, found, monkeypatch)
  after = measured(run, found, start | tree.unflatten(params))
  assert results['rows'] == 12 and results['left_out'] == 0 and results['steps'] == 80
  assert results['scale'] == pytest.approx(examples.mean_best(found.examples, 3))
  assert before['tau'] < 0.4 and after['tau'] > 0.7
  assert after['loss'] < before['loss'] / 3


def test_labels_are_learned(tmp_path, monkeypatch):
  run, found = make_run(tmp_path), material()
  run.config.ltrgr.update(max_steps=20, epochs=100.0, learning_rate=1e-2, generation=0.0)
  _, start = opened(run)
  before = measured(run, found, start, ltrgr.METHOD)
  _, params = trained(run, found, monkeypatch, ltrgr.METHOD)
  after = measured(run, found, start | tree.unflatten(params), ltrgr.METHOD)
  assert set(before) == {'loss'} and after['loss'] < before['loss'] / 2


def test_a_resumed_run_gives_the_same_parameters(tmp_path, monkeypatch):
  run, found = make_run(tmp_path), material()
  run.config.align.update(max_steps=6, epochs=100.0, save_every=3)
  first, params = trained(run, found, monkeypatch)
  shutil.rmtree(run.folder('align') / 'checkpoints' / '6')
  again, resumed = trained(run, found, monkeypatch)
  assert first == again
  assert all(np.array_equal(params[path], resumed[path]) for path in params)


def test_held_out_queries_are_measured(tmp_path, monkeypatch):
  run, found = make_run(tmp_path), material(60)
  run.config.validation.update(share=0.4)
  run.config.align.update(max_steps=2)
  results, _ = trained(run, found, monkeypatch)
  facts = results['validation']
  assert 10 <= facts['queries'] == 60 - results['rows'] and {'loss', 'tau'} <= set(facts)
  rows = [json.loads(s) for s in (tmp_path / 'align' / 'metrics.jsonl').read_text().splitlines()]
  assert rows[-1]['validation/loss'] == facts['loss'] and 0 < rows[0]['pair_accuracy'] < 1


def test_the_held_out_loss_is_that_of_training(tmp_path):
  run, found = make_run(tmp_path), material(4)
  model, variables = opened(run)
  measure = align.METHOD.measure(run, model, found, found.examples, 60.0)
  task = align.METHOD.task(run.config, model.network, 60.0)
  encode, draw = align.METHOD.encoder(run.config, found), align.METHOD.drawing(run.config, found)
  groups = [encode(draw(e, ranking.rng_of(e.query))) for e in found.examples]
  total, queries, _ = jax.jit(task.loss)(variables, packed(groups, task.shape))
  assert measure(variables)['loss'] == pytest.approx(float(total / queries), rel=1e-4)


# Settings


def test_the_tokens_of_a_stage_are_estimated(tmp_path, monkeypatch):
  run = make_run(tmp_path, ltrgr={'epochs': 2.0})
  monkeypatch.setattr(prepare, 'records', lambda run, kind: [None] * 40)
  [use] = align.STAGE.uses(run.config)
  assert use.tokens(run) == (3 * 40 * (6 * 3 * 7 + 100), '40 queries, 3 times')
  assert ltrgr.STAGE.uses(run.config)[0].tokens(run)[0] == 2 * 40 * (4 * 3 * 7 + 100)
  run.config.align.max_steps = 2
  assert use.tokens(run)[0] == 2 * 8 * 64
  model = use.open()
  assert use.writes(run, model) == ([], '')
  run.config.align.update(max_steps=3, refresh=1)  # before steps 2 and 3
  searched = retrieve.writing(run.config, model, 40)
  assert use.writes(run, model) == ([(b, 2 * n) for b, n in searched], 'searched 2 times')
  run.config.retrieve.queries = 16  # are searched, so no more are learned
  searched = retrieve.writing(run.config, model, 16)
  assert use.writes(run, model) == ([(b, 2 * n) for b, n in searched], 'searched 2 times')
  run.config.align.max_steps = 0
  assert use.tokens(run) == (3 * 16 * (6 * 3 * 7 + 100), '16 queries, 3 times')


def test_a_config_is_checked():
  c = configs.defaults('dgr')
  align.STAGE.check(c)
  ltrgr.STAGE.check(c)
  c.align.loss = 'distilled_ranket'
  with pytest.raises(UserError, match=r"align.loss=.*did you mean 'distilled_ranknet'"):
    align.STAGE.check(c)
  c.ltrgr.validation.metric = 'tau'
  with pytest.raises(UserError, match=r'ltrgr.validation.metric=.*choose of loss'):
    ltrgr.STAGE.check(c)


def test_a_held_out_share_is_needed_where_a_stage_decides_by_it():
  c = configs.defaults('dgr')
  c.validation.share = 0.0
  c.align.validation.keep_best = True
  with pytest.raises(UserError, match='holds out no query to decide by'):
    held_out.check(c, 'align', align.METHOD.names)


@pytest.mark.parametrize('stage', [align, ltrgr])
def test_a_decision_counts_the_held_out_queries_that_are_searched(tmp_path, monkeypatch, stage):
  """As the stage does, which learns from these alone."""
  run, asked = make_run(tmp_path), [Group(f'{i}', f'query {i}', ()) for i in range(40)]
  monkeypatch.setattr(prepare, 'records', lambda run, kind: asked)
  run.config.validation.share = 0.5
  held = {asked[i].query_id for i in held_out.find(run, asked)[0]}
  asked.sort(key=lambda group: group.query_id in held)  # the held-out ones come last
  run.config[stage.NAME].validation.keep_best = True
  stage.STAGE.check_records(run)
  most = run.config.retrieve.queries = len(asked) - len(held)
  message = (
    rf'keep_best=True: {stage.NAME}: 0 of its {most} queries are held out .* are needed; raise it, '
    rf'or config\.retrieve\.queries={most} \(0: all\)$'
  )
  with pytest.raises(UserError, match=message):
    stage.STAGE.check_records(run)
  run.config.retrieve.queries, asked[:] = 100, asked[:most]  # more would not help
  with pytest.raises(UserError, match=r'are needed; raise it$'):
    stage.STAGE.check_records(run)
