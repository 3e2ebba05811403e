"""The memory lines: expected bytes against a count by hand, measured against what was taken."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from disranker_jax.devices import memory, sharding
from disranker_jax.training import train
from disranker_jax.training.settings import defaults as training_settings

UNITS = {'B': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30}


def program(width, rows):
  def loss(variables, batch):
    out = jnp.tanh(batch['x'] @ variables['params']['w'])
    return (out**2).sum(), jnp.float32(rows), {}

  variables = {'params': {'w': np.zeros((width, width), np.float32)}}
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  batch = {'x': np.zeros((rows, width), np.float32), 'mask_GN': np.ones((rows, 1), bool)}
  return train.Program(loss, training_settings(), 10, variables, batch, 1, mesh)


def test_parts_are_what_shapes_say_and_sum_to_the_compilers_peak():
  width, rows = 64, 32
  made = program(width, rows)

  class Compiled:  # what it says is up to the compiler, so here it says what a person can add up
    @staticmethod
    def memory_analysis():
      class Stats:
        generated_code_size_in_bytes, temp_size_in_bytes = 7, 1000
        argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 60_000, 50_000, 49_000

      return Stats

  found = memory.parts(made, Compiled)
  weights = 4 * width * width
  assert found['parameters'] == weights and found['batch'] == 4 * rows * width + rows
  assert 2 * weights <= found['moments'] < 2 * weights + 100  # and a few counters
  assert sum(found.values()) == 60_000 + 50_000 - 49_000 + 1000 + 7


def test_scratch_space_is_counted_on_this_platform_too():
  made = program(256, 4096)
  compiled = made.lower().compile()
  scratch = compiled.memory_analysis().temp_size_in_bytes
  assert scratch > 4096 * 256  # x @ w and its gradient are somewhere
  assert memory.parts(made, compiled)['activations'] >= scratch


@pytest.mark.parametrize('mib', [1, 300])
def test_measured_is_at_least_what_is_held(mib):
  held = np.ones(mib * 2**20, np.uint8)
  number, unit = re.search(r'held ([\d.]+) (\w+) at most', memory.measured('sft')).groups()
  assert float(number) * UNITS[unit] * 1.01 > held.nbytes
