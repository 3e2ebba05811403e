"""The plan of GRPO: its steps, what a step takes beside its update, and what sampling holds."""

import dataclasses
import json
import re

import jax
import pytest

from disranker_jax import config
from disranker_jax.commands.plan import chips, hlo, local, machine, report, rollouts, stages
from disranker_jax.devices import sharding, speed
from disranker_jax.models import writing
from disranker_jax.pipeline import estimate
from disranker_jax.rewriting.rollouts import draws

WHERE = chips.find('v5e:1x1')
MAX_LEN, MAX_NEW, PROMPTS, SAMPLES = 48, 16, 6, 4


def settings(**changes):
  c = config.defaults('query_rewriting')
  c.rewriter.update(model='tiny-decoder', precision='bfloat16', remat='full')
  c.rewriter.update(max_len=MAX_LEN, max_query_len=16, row_len=MAX_LEN)
  c.rewrite.update(prompts=PROMPTS, samples=SAMPLES, max_new=MAX_NEW, max_steps=150, **changes)
  return c


@pytest.fixture
def plan(monkeypatch):
  """`report.plan` with a compiler's answer that is made up."""

  def of(c, rows=0, where=WHERE, used=1 << 20, moved=1 << 30):
    def compiled(step, where):
      cost = report.Cost(True, used, step.held, hlo.Moved({}, {}, moved))
      return dataclasses.replace(cost, fits=used <= where.chip.hbm_bytes)

    monkeypatch.setattr(report, 'compile_step', compiled)
    mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
    return report.plan(c, 'rewrite', where, mesh, rows)

  return of


def test_steps_are_those_of_the_stage(plan):
  assert plan(settings())['steps'] == 150 == plan(settings(), rows=1_000_000)['steps']
  answer = plan(settings(), rows=600)
  assert (answer['rows'], answer['rows_from'], answer['steps']) == (600, '--rows', 100)
  assert plan(settings(iterations=2, epochs=0.5), rows=600)['steps'] == 100
  # A query counts once, however many samples it has.
  more = settings()
  more.rewrite.samples = 8
  assert plan(more, rows=600)['steps'] == 100
  said = report.text(answer)
  assert '100 steps, 600 rows (--rows)' in said and '6 queries x 4 samples, ' in said


def test_steps_that_max_steps_ends_are_not_those_of_all_rows(plan):
  assert '150 steps (max_steps)' in report.text(plan(settings(), rows=906))
  assert '150 steps, 900 rows (--rows)' in report.text(plan(settings(), rows=900))
  twice = plan(settings(iterations=2), rows=600)
  assert twice['steps'] == 150 and twice['steps_from'] == 'max_steps'


def test_it_says_what_is_counted(plan):
  said = report.text(plan(settings()))
  assert 'written tokens/s (tokens of prompts and of the update are not counted)' in said
  # One program is compiled, the update: its FLOPs and its traffic are listed.
  assert re.search(r'FLOPs +[^ ]+ per update', said) and 'per update and chip' in said
  assert ' by the FLOPs of the update' in said and 'per step' not in said


def test_samples_that_are_drawn_are_written_and_those_that_are_learned_are_said(plan):
  answer = plan(settings(drawn=2 * SAMPLES))
  written = PROMPTS * 2 * SAMPLES * MAX_NEW
  assert answer['tokens_per_s'] * answer['seconds']['step'] == pytest.approx(written)
  assert '6 queries x 8 samples (4 are learned from), ' in report.text(answer)
  assert answer['flops'] == plan(settings())['flops']


def test_a_step_is_its_update_and_its_rollout(plan):
  c = settings()
  seconds = plan(c)['seconds']
  assert seconds['update'] == max(seconds[k] for k in ('compute', 'hbm', 'ici'))
  rollout = ('prefill', 'decoding', 'reference')
  assert all(seconds[k] > 0 for k in rollout)
  assert seconds['step'] == pytest.approx(seconds['update'] + sum(seconds[k] for k in rollout))
  answer = plan(c)
  assert answer['hours'] == pytest.approx(150 * seconds['step'] / 3600)
  assert answer['tokens_per_s'] * seconds['step'] == pytest.approx(PROMPTS * SAMPLES * MAX_NEW)
  # Several updates share a rollout, and without a reference there is no pass of it.
  twice = plan(settings(iterations=2))['seconds']
  assert [twice[k] for k in rollout] == pytest.approx([seconds[k] / 2 for k in rollout])
  free = plan(settings(beta=0.0, stop_kl=0.0))['seconds']
  assert free['reference'] == 0 and free['decoding'] == seconds['decoding']
  assert 'rewards are not counted' in report.text(answer)


def test_a_written_token_reads_all_parameters_and_caches(plan):
  c = settings()
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  step = stages.trace(c, 'rewrite', mesh)
  found, sizes = rollouts.find(c, 'rewrite', step, mesh), step.network.config
  kernels = sum(
    x.size for path, x in jax.tree_util.tree_leaves_with_path(step.network.shapes())
    if 'kernel' in jax.tree_util.keystr(path)
  )  # fmt: skip
  # Norms are a few bytes more; of the table of embeddings some rows are read.
  assert 2 * kernels <= found.held['operands'] < 2.02 * kernels
  slots = 64  # 32 tokens of a prompt and 16 new ones, in 64s
  one = 2 * sizes.kv_heads * sizes.head_dim * sizes.layers * slots * 2
  assert found.held['caches'] == PROMPTS * SAMPLES * one
  each = (found.held['operands'] + found.held['caches']) / WHERE.chip.hbm_rate
  assert plan(c)['seconds']['decoding'] == pytest.approx(MAX_NEW * each)
  assert found.held['logits'] == PROMPTS * SAMPLES * sizes.vocab * 4
  # The pass of the reference has no gradient: a third of the FLOPs, less what is recomputed.
  assert 0.2 < found.reference < 1 / 3


def test_it_has_to_fit_while_it_samples_too(plan):
  answer = plan(settings())
  sampling = answer['phases']['sampling']
  assert answer['fits'] and answer['bytes_per_device'] == sampling > 1 << 20
  assert sum(answer['memory'].values()) == sampling and answer['memory']['caches']
  larger = plan(settings(), used=1 << 30)
  assert larger['bytes_per_device'] == 1 << 30 and 'caches' not in larger['memory']
  chip = dataclasses.replace(WHERE.chip, hbm_bytes=sampling - 1)
  small = plan(settings(), where=chips.Slice(chip, (1, 1)))
  assert not small['fits'] and small['bytes_per_device'] == sampling
  said = report.text(small)
  assert 'does NOT fit' in said and 'sampling' in said
  # What makes an update smaller does not help.
  assert '--config.rewrite.samples=' in said and 'accumulation' not in said and 'remat' not in said
  assert not json.loads(report.as_json(small))['fits']


@pytest.mark.parametrize(
  ('drawn', 'samples', 'fewer'),
  [
    (0, 8, '--config.rewrite.samples=4'),
    (8, 8, '--config.rewrite.samples=4 --config.rewrite.drawn=0'),
    (12, 8, '--config.rewrite.drawn=8'),
    (0, 2, ''),
  ],
)
def test_what_is_tried_for_sampling_writes_fewer_samples(drawn, samples, fewer):
  c = settings(drawn=drawn)
  c.rewrite.samples = samples
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  said = [words for words in rollouts.remedies(c, 1, mesh) if re.search('samples|drawn', words)]
  assert said == ([fewer] if fewer else [])
  before = draws(c.rewrite)
  changes = dict(word.removeprefix('--config.').split('=') for word in fewer.split())
  c.update_from_flattened_dict({key: int(value) for key, value in changes.items()})
  assert (draws(c.rewrite) < before) == bool(fewer)


def test_other_stages_sample_nothing():
  c = config.defaults()
  c.teacher.model = 'tiny-decoder'
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  assert rollouts.find(c, 'cpt', None, mesh) is None
  assert not rollouts.is_asked(settings(), 'cpt')


def test_on_this_machine_a_step_is_its_update_its_samples_and_a_pass(monkeypatch):
  """Samples take what writing takes anywhere; a pass is a third of training."""
  monkeypatch.setattr(speed, 'matmul_typical', lambda name, mesh: 1e9)
  monkeypatch.setattr(speed, 'reading', lambda mesh: 1e6)
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  monkeypatch.setattr(local.sharding, 'make_mesh', lambda sizes: mesh)

  def seconds(**changes):
    here = machine.Machine('here', 'cpu', 1, None, 0, True)
    [answer] = local.plan(settings(**changes), ['rewrite'], here, 0, 0)
    return answer['hours'] * 3600 / answer['steps']

  c = settings(beta=0.0, stop_kl=0.0)
  step = stages.trace(c, 'rewrite', mesh, 'cpu')
  texts = writing.Texts(PROMPTS, SAMPLES, MAX_LEN - MAX_NEW, MAX_NEW)
  found = rollouts.find(c, 'rewrite', step, mesh)
  read = MAX_NEW * (found.held['operands'] + found.held['caches']) / 1e6
  written = (
    writing.count(step.network, texts).hardware / 1e9 / estimate.EFFICIENCY['writing'] + read
  )
  updated = step.flops.hardware / 1e9 / estimate.EFFICIENCY['training']
  assert seconds(beta=0.0, stop_kl=0.0) == pytest.approx(updated + written)
  assert seconds(beta=0.1) == pytest.approx(updated * 4 / 3 + written)
  assert seconds(beta=0.1, iterations=2) == pytest.approx(updated * 7 / 6 + written / 2)
