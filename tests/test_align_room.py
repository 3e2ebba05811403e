"""Queries that do not fit into the batches of align and ltrgr are known early."""

import itertools
import re
import types

import numpy as np
import pytest
from ranked_examples import SIZE, groups_of, make_run, material, packed

from disranker_jax.errors import UserError
from disranker_jax.generative.examples import Example, ExamplePage, Material
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.records import VIEWS, Match, Ngram
from disranker_jax.generative.stages import align, ltrgr, ranking
from disranker_jax.models import load
from disranker_jax.pipeline import opening


def largest_example(count: int, ngrams: int) -> Example:
  """A query for whose pages the retriever wrote texts as long as it can, with nothing in common."""
  places = itertools.count(600)

  def match():
    tokens = (next(places), *[7] * 14)
    return Match(Ngram('query', tokens, -6.0, 0, 3), 1.0, 1.0)

  pages = [
    ExamplePage(f'{i}', float(i), int(i < 2), tuple(match() for _ in range(ngrams)))
    for i in range(count)
  ]
  return Example('q' * 12, tuple(pages))


@pytest.mark.parametrize('stage', [align, ltrgr])
def test_what_may_not_fit_into_a_batch_is_known_before_anything_trains(tmp_path, stage, capsys):
  run, method = make_run(tmp_path), stage.METHOD
  model = load.open_model(run.config.retriever, 'lm')
  c = run.config[stage.NAME]
  c.update(ngrams=12, batch_rows=6, data_shards=2)
  opening.models_of(run, stage.STAGE)
  said = capsys.readouterr().err
  assert said.startswith(
    f'warning: config.{stage.NAME}.batch_rows=6: each of data_shards=2 parts of a batch has 3 rows '
    'of 64 tokens, and the n-grams of a query'
  )
  # As long prompts and texts as the settings allow fit into the rows that it advises, not into 6.
  advised = int(re.search(r'set config\.\w+\.batch_rows=(\d+), or lower its', said)[1])
  long = [100] * (Prompts(model).longest - 1)
  ask = lambda query, view: [*long, 200 + VIEWS.index(view)]  # noqa: E731
  write = lambda *_: [(view, tuple(range(300, 312))) for view in VIEWS]  # noqa: E731
  found = Material([largest_example(method.pages(c) + 1, 12)], SIZE, ask, write)
  with pytest.raises(UserError) as caught:
    method.refuse_large(run, model, found, found.examples)
  assert "into which 1 of 1 query, 'qqqqqqqqqqqq', does not fit with the n-grams of its" in str(
    caught.value
  )
  [group] = groups_of(run, found, method)
  assert len(group.docs) == method.pages(c) * 12 + 3
  with pytest.raises(UserError, match='do not fit'):
    packed([group], method.block(run.config, model))
  c.batch_rows = advised
  packed([group], method.block(run.config, model))
  method.refuse_large(run, model, found, found.examples)
  opening.models_of(run, stage.STAGE)
  assert not capsys.readouterr().err


def test_queries_that_fit_are_learned_from_although_longer_ones_would_not(tmp_path, capsys):
  run, found = make_run(tmp_path), material(4)
  run.config.retrieve.update(depth=4, matches=3)
  model = load.open_model(run.config.retriever, 'lm')
  opening.models_of(run, align.STAGE)
  assert 'can take 9 rows; set config.align.batch_rows=9, or lower' in capsys.readouterr().err
  align.METHOD.refuse_large(run, model, found, found.examples)
  run.config.retrieve.matches = 2  # of a page, so that no more are learned
  opening.models_of(run, align.STAGE)
  assert not capsys.readouterr().err


def page(number: int, label: int, length: int, target: float | None = None) -> ExamplePage:
  """A page with 12 n-grams of one length."""
  matches = [
    Match(Ngram('query', (600 + 20 * number + i, *[7] * (length - 1)), -6.0, 0, 3), 1.0, 1.0)
    for i in range(12)
  ]
  target = float(number) if target is None else target
  return ExamplePage(str(number), target, label, tuple(matches))


@pytest.mark.parametrize('stage', [align, ltrgr])
def test_a_query_is_not_refused_for_pages_that_no_step_takes_together(tmp_path, stage):
  """One relevant page is always taken, and no two pages with one target are."""
  run, method = make_run(tmp_path), stage.METHOD
  model = load.open_model(run.config.retriever, 'lm')
  c = run.config[stage.NAME]
  c.update(ngrams=12)
  target = 5.0 if stage is align else None
  pages = (page(0, 1, 2), *(page(i, 0, 14, target) for i in range(1, 6)))
  ask = lambda query, view: [1, 2, 200 + VIEWS.index(view)]  # noqa: E731
  found = Material([Example('q', pages)], SIZE, ask, lambda *_: ())
  block = method.block(run.config, model)
  encode, draw = method.encoder(run.config, found), method.drawing(run.config, found)
  groups = [encode(draw(found.examples[0], np.random.default_rng(i))) for i in range(40)]
  c.batch_rows = max(ranking.rows_for(group, block) for group in groups)
  method.refuse_large(run, model, found, found.examples)
  c.batch_rows -= 1
  with pytest.raises(UserError, match='not fit'):
    method.refuse_large(run, model, found, found.examples)


def test_a_held_out_query_is_not_packed_and_may_be_larger(tmp_path, monkeypatch):
  run, method = make_run(tmp_path), align.METHOD
  found, looked = material(4), []
  monkeypatch.setattr(ranking, 'open_material', lambda *_: found)
  split = types.SimpleNamespace(learned=found.examples[:3], measured=found.examples[3:])
  monkeypatch.setattr(ranking.held_out, 'split', lambda *_, **more: split)

  def refuse_large(self, run, model, material, examples):
    looked.extend(examples)
    raise KeyboardInterrupt

  monkeypatch.setattr(ranking.Method, 'refuse_large', refuse_large)
  with pytest.raises(KeyboardInterrupt):
    method.execute(run)
  assert looked == split.learned
  run.config.align.batch_rows = 1
  model = load.open_model(run.config.retriever, 'lm')
  large = Material([largest_example(7, 12)], SIZE, found.prompt, found.written)
  assert method.measure(run, model, large, large.examples, 1.0).queries == 1
