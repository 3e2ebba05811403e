"""Clicks on pages that the collection lacks: what memorise checks, learns and measures."""

import json

import pytest
import tiny_dgr
from small_collection import collection

from disranker_jax.data.holdout import normalized
from disranker_jax.errors import UserError
from disranker_jax.pipeline import runner
from disranker_jax.stages import held_out

STAGES = 'prepare', 'index', 'memorise'
SHARE = 0.3


@pytest.fixture
def config(tmp_path, monkeypatch):
  """Gives a config whose clicks with queries in `lost(query)` are on pages that are not there."""
  monkeypatch.setenv('DISRANKER_CACHE', str(tmp_path / 'cache'))

  def of(lost, **changes):
    c = tiny_dgr.config(
      collection(tmp_path), stages=STAGES, retriever__views=('title', 'body'),
      memorise__max_steps=2, validation__share=SHARE, **changes,
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / 'clicks.jsonl').open()]
    rows = [row | {'title': 'another page'} if lost(row['query']) else row for row in rows]
    (tmp_path / 'clicks.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return c

  return of


def is_held_out(query: str) -> bool:
  return held_out.salted(normalized(query)) < SHARE


def test_clicks_on_no_page_are_refused_before_anything_trains(config, tmp_path):
  message = (
    r"config\.data\.clicks='jsonl:.*none of the clicked pages is in jsonl:.*documents\.jsonl"
  )
  with pytest.raises(UserError, match=message):
    runner.run(config(lambda query: True), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'index').exists()


def test_a_run_whose_held_out_clicks_are_lost_learns_the_others(config, tmp_path, capsys):
  runner.run(config(is_held_out, retriever__max_query_len=3), tmp_path / 'run')
  said, lost = capsys.readouterr().err, len(held())
  assert f'memorise: {lost} of 40 clicks are on pages that the collection lacks' in said
  assert f'memorise: no validation: 0 of its {40 - lost} clicks are held out' in said
  assert (
    f'memorise: the end of {40 - lost} of {40 - lost} queries is not read; raise config' in said
  )
  results = json.loads((tmp_path / 'run/memorise/manifest.json').read_text())['results']
  assert 'validation' not in results and results['steps'] == 2


def held() -> list[str]:
  """The held-out queries of the clicks."""
  from small_collection import NOUNS, VERBS

  asked = [f'how to {verb} a {noun}' for verb in VERBS for noun in NOUNS]
  return [query for query in asked if is_held_out(query)]


def test_a_decision_by_held_out_clicks_that_are_lost_is_refused_before_anything_trains(
  config, tmp_path
):
  message = (
    r'config\.memorise\.validation\.keep_best=True: memorise: 0 of its \d+ clicks are held out'
  )
  with pytest.raises(UserError, match=message):
    runner.run(config(is_held_out, memorise__validation__keep_best=True), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'index').exists()
