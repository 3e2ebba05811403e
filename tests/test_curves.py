"""The charts of a training: which panels there are, what they show, and what they say of it."""

import html
import json
import math
import re

import numpy as np
import pytest
from small_collection import collection
from test_report_page import opened, written

from disranker_jax import config as configs
from disranker_jax.pipeline import manifest, systems
from disranker_jax.report import curves, facts, page
from disranker_jax.rewriting.stages.rewrite import PANELS
from disranker_jax.training import logs
from disranker_jax.training.panels import LOSS, Line, Panel


def alt(svg) -> str:
  return html.unescape(re.search(r'aria-label="([^"]*)"', svg).group(1))


def log(count: int = 30, **values) -> list[dict]:
  """A metrics.jsonl; `values` are numbers or functions of the step."""
  of = lambda value, step: value(step) if callable(value) else value  # noqa: E731
  return [
    {'step': step, 'loss': 1 / step} | {name: of(value, step) for name, value in values.items()}
    for step in range(1, count + 1)
  ]


def grpo(count: int = 30) -> list[dict]:
  """What GRPO logs."""
  return log(
    count, reward=0.1, reward_std=0.05, reward_best=0.3, kl=lambda step: step / 10, entropy=2.5,
    length=7.0, equal_groups=0.25, cut=0.125, failures=0.0,
  )  # fmt: skip


def alts(steps: list[dict], before: dict[str, float] | None = None) -> dict[str, str]:
  """{label of a panel: the words of its chart}."""
  every = curves.fill(PANELS, steps, before or {})
  return {each.panel.label: alt(curves.small('rewrite', steps, each)) for each in every}


def test_an_infinite_value_is_not_drawn(tmp_path):
  written = logs.MetricsLog(tmp_path, 0)
  for i, pnr in ((1, 3.0), (2, math.inf)):
    written.write(i, {'loss': 1.0, 'validation/pnr': pnr})
  written.close()
  steps = logs.read(tmp_path / logs.FILE)
  [found] = curves.fill([Panel('PNR', (), held_out=('pnr',))], steps, {})
  assert found.held_out == {'pnr': {1: 3.0}}
  assert not curves.fill([Panel('PNR', (), held_out=('pnr',))], steps[1:], {})


def test_smoothing_starts_at_the_first_value_and_stays_between_the_extremes():
  assert curves.smoothed([5.0] * 4).tolist() == pytest.approx([5.0] * 4)
  smooth = curves.smoothed([4.0, 0.0, 0.0, 0.0])
  assert smooth[0] == pytest.approx(4.0)
  assert all(smooth[1:] < smooth[:-1]) and smooth[-1] > 0


def test_the_chart_of_a_loss_shows_held_out_values_where_there_are_any():
  steps = log()
  plain = str(curves.loss('cpt', steps))
  assert '>one step<' in plain and '>exponential mean<' in plain
  assert 'held' not in plain and alt(plain).startswith('Loss of cpt over 30 steps: from 1 to ')
  for i in (15, 30):
    steps[i - 1] |= {'validation/loss': 0.3 + i / 100, 'validation/tau': i / 60}
  shown = str(curves.loss('distill', steps))
  assert 'held-out loss from 0.45 to 0.6; held-out tau from 0.25 to 0.5' in alt(shown)
  assert '>held out<' in shown and '>one step<' in shown


@pytest.mark.parametrize('depth', [1, 5, 20])
def test_held_out_ndcg_is_shown_whatever_its_depth(depth):
  steps = log()
  steps[-1] |= {'validation/loss': 0.3, f'validation/ndcg@{depth}': 0.5, 'validation/pnr': 2.0}
  shown = alt(curves.loss('sft', steps))
  assert shown.endswith(f'held-out loss from 0.3 to 0.3; held-out nDCG@{depth} from 0.5 to 0.5')


def test_every_panel_of_grpo_says_what_it_shows():
  found = alts(grpo())
  assert found['reward'].startswith('Reward of rewrite over 30 steps: mean reward from 0.1 to 0.1')
  assert found['KL'].startswith('KL of rewrite over 30 steps: from 0.1 to ')
  assert found['KL'].endswith(' nats per rewrite (smoothed)')
  said = ' '.join(found.values())
  for words in (
    'best reward of a query from 0.3 to 0.3 (smoothed)', 'from 2.5 to 2.5 nats per token',
    'Length of rewrite over 30 steps: from 7 to 7 tokens per rewrite',
    'share of queries with equal rewards from 0.25 to 0.25',
    'share of rewrites that are cut off from 0.125 to 0.125',
    'share of rewrites that failed from 0 to 0',
  ):  # fmt: skip
    assert words in said


def test_values_that_are_not_logged_leave_out_their_panel_and_its_note():
  steps = grpo()
  every = alts(steps)
  for row in steps:
    del row['kl'], row['failures']  # as with beta=0 and stop_kl=0
  found = alts(steps)
  assert every.keys() - found.keys() == {'KL'}
  assert 'cut off' in found['shares'] and 'failed' not in found['shares']
  filled = curves.fill(PANELS, steps, {})
  assert 'KL:' not in curves.caption(filled) and 'Shares:' in curves.caption(filled)
  assert 'held-out' not in curves.caption(filled).split('Reward:')[0]


def test_held_out_values_are_points_from_before_the_first_step_on():
  steps = grpo()
  steps[9] |= {'validation/ndcg@10': 0.45, 'validation/reward': 0.2}
  steps[29] |= {'validation/ndcg@10': 0.5, 'validation/reward': 0.25}
  found = alts(steps, {'ndcg@10': 0.4, 'reward': 0.15})
  assert found['held-out queries'].endswith('held-out nDCG@10 from 0.4 to 0.5')
  assert found['reward'].endswith('held-out reward from 0.15 to 0.25')
  assert alts(steps)['reward'].endswith('held-out reward from 0.2 to 0.25')


def test_single_values_that_are_not_finite_are_left_out():
  steps = log(reward=0.5)
  steps[3]['reward'], steps[5]['reward'] = float('nan'), float('inf')
  [found] = curves.fill([Panel('reward', (Line('reward', 'mean', 'mean reward'),))], steps, {})
  [series] = found.series
  assert len(series.steps_S) == 28 and not {4, 6} & set(series.steps_S.tolist())
  assert np.isfinite(series.smooth_S).all()


def test_the_band_is_as_wide_as_the_deviation_and_in_sight():
  steps = log(reward=0.1, reward_std=0.5)
  panel = Panel('reward', (Line('reward', 'mean', 'mean reward', spread='reward_std'),))
  [found] = curves.fill([panel], steps, {})
  assert min(found.series[0].edges) == pytest.approx(-0.4)
  assert max(found.series[0].edges) == pytest.approx(0.6)


def test_many_steps_do_not_make_a_large_page():
  steps = grpo(20_000)
  every = curves.fill(PANELS, steps, {})
  assert sum(len(curves.small('rewrite', steps, each)) for each in every) < 2_000_000
  assert len(curves.loss('cpt', steps)) < 500_000


class TestPage:
  @pytest.fixture
  def run(self, tmp_path):
    run = opened(tmp_path)
    run.config = configs.defaults(system='query_rewriting')
    run.config.name = 'run'
    run.config.data.update(collection(tmp_path))
    for stage, steps in (('cpt', log()), ('rewrite', grpo())):
      (tmp_path / stage).mkdir()
      steps[-1] |= {'validation/reward': 0.25} if stage == 'rewrite' else {}
      lines = ''.join(json.dumps(row) + '\n' for row in steps)
      (tmp_path / stage / 'metrics.jsonl').write_text(lines)
    return run

  def test_each_training_has_the_caption_that_fits(self, run):
    losses, rewrite = page.trainings(facts.gather(run))
    assert losses['caption'] == 'Loss by step, its exponential mean.' and not losses['title']
    assert [alt(svg) for svg in losses['charts']] == [alt(curves.loss('cpt', log()))]
    assert rewrite['title'] == 'rewrite' and len(rewrite['charts']) == len(alts(grpo()))
    assert 'Loss' not in rewrite['caption']
    assert 'Points: held-out training queries' in rewrite['caption']
    text, parsed = written(run)
    assert text.count('<svg') == 1 + len(rewrite['charts'])
    assert rewrite['caption'] in parsed.text and losses['caption'] in parsed.text

  def test_values_before_the_first_step_come_from_the_manifest(self, run):
    record = manifest.Manifest(run.folder('rewrite'), 'rewrite', {}, {})
    record.finished({'before': {'reward': 0.125}})
    said = [alt(svg) for svg in page.trainings(facts.gather(run))[1]['charts']]
    assert any(each.endswith('held-out reward from 0.125 to 0.25') for each in said)

  def test_a_log_without_any_value_of_a_panel_draws_nothing(self, run):
    rows = ''.join(json.dumps(row) + '\n' for row in log())
    (run.folder('rewrite') / 'metrics.jsonl').write_text(rows)
    assert [each['title'] for each in page.trainings(facts.gather(run))] == ['']


@pytest.mark.parametrize('system', systems.every())
def test_a_panel_has_no_more_lines_than_there_are_styles(system):
  panels = [p for stage in systems.get(system).stages for p in (*LOSS, *stage.panels)]
  assert all(len(panel.lines) <= len(curves.LINES) for panel in panels)
  assert all(panel.lines or panel.held_out for panel in panels)
