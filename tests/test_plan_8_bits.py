"""What a plan says of scoring in 8 bits."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_plan_machine import one_device, tiny

from disranker_jax.commands.plan import chips, hlo, local, machine, report, stages
from disranker_jax.devices import speed
from disranker_jax.errors import UserError
from disranker_jax.models import flops


def test_a_plan_of_scoring_in_8_bits_has_what_it_saves(monkeypatch):
  speeds = {'float32': 1e9, 'fp8': 4e9}
  monkeypatch.setattr(speed, 'matmul_typical', lambda name, mesh: speeds[name])
  mesh = one_device()
  monkeypatch.setattr(local.sharding, 'make_mesh', lambda sizes: mesh)
  here = machine.Machine('m', 'cpu', 1, None, measured=True)
  [plain], [small] = (
    local.plan(tiny(score__quantize=name), ['score'], here, 0, 0) for name in ('', 'fp8')
  )
  saved = small['in_8_bits']
  step = stages.trace(tiny(score__quantize='fp8'), 'score', mesh)
  kernels = step.network.config.layers * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
  before = plain['memory']['parameters']
  assert saved['parameters_before'] == before
  channels = step.network.config.layers * (3 * 32 + 2 * 16 + 2 * 64)  # a scale in fp32 for each
  assert saved['parameters'] == before - 4 * kernels + kernels + 4 * channels
  # Until the gate has passed, the parameters are there in full precision.
  parts = small['memory']
  assert parts['parameters'] + parts['full precision'] == before
  assert saved['compute_s_before'] > saved['compute_s'] > saved['compute_s_before'] / 4
  assert step.flops.in_8_bits == 2.0 * kernels * step.batch['tokens_BT'].size
  assert small['tokens_per_s'] > 1.3 * plain['tokens_per_s'] and 'in_8_bits' not in plain
  said = local.text(here, [small])
  assert 'fp8: parameters ' in said and ' times as fast' in said
  assert 'fp8: ' not in local.text(here, [plain])


def test_mixing_before_int8_is_counted():
  step = stages.trace(tiny(score__quantize='int8'), 'score', one_device())
  layers, tokens = step.network.config.layers, step.batch['tokens_BT'].size
  # Blocks of 32 values before q, k, v, o, gate and up, of 64 before down.
  assert step.flops.mixed == 2.0 * tokens * layers * (6 * 32 * 32 + 64 * 64)


def test_a_chip_multiplies_8_bits_at_their_own_peak():
  count = flops.Flops(3e12, in_8_bits=2e12, mixed=1e12)
  nothing = hlo.Moved({}, {}, 0)
  v5e, v6e = (report.times(count, nothing, chips.find(name)) for name in ('v5e:1x1', 'v6e:1x1'))
  assert v5e['compute'] == pytest.approx((2 / 197 + 2 / 393) / 0.6)
  assert v6e['compute'] == pytest.approx((2 / 918 + 2 / 1836) / 0.5)


def test_a_chip_without_fp8_is_refused_in_a_plan():
  mesh = SimpleNamespace(
    devices=np.array([SimpleNamespace(platform='tpu', device_kind='TPU v5 lite')])
  )
  with pytest.raises(UserError, match=r"score\.quantize='fp8': TPU v5 lite does not multiply fp8"):
    stages.trace(tiny(score__quantize='fp8'), 'score', mesh)
