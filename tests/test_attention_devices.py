"""Attention kernels on several devices, and compiled for TPUs that are not there."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import attention_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from disranker_jax.devices import sharding

DEVICES, MESH = 8, (2, 2, 2)
CASES = {  # rows, key/value heads, whether the mesh is set; rows and query heads of a device
  'rows and heads divide': (8, 2, True, (2, 2)),
  'no mesh is set': (8, 2, False, (2, 2)),
  'heads do not divide': (8, 1, True, (2, 4)),
  'rows do not divide': (3, 2, True, (3, 2)),
}


def _case(B, K):
  return (
    reference.qkv(B, 40, 4, K, 64),
    reference.some_segments(B, 40),
    {'causal': True, 'window': 15},
  )


def _step(kernel, options):
  def step(qkv, segments):
    return reference.values_and_gradients(qkv, segments, lambda f: f, kernel=kernel, **options)

  return step


def on_a_mesh(folder):
  """What the subprocess runs; a file for each case."""
  assert jax.device_count() == DEVICES
  mesh = jax.make_mesh(MESH, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
  for name, (B, K, set_mesh, _) in CASES.items():
    qkv, segments, options = _case(B, K)
    rows = NamedSharding(mesh, P(('data', 'fsdp')) if B % 4 == 0 else P())
    placed = jax.device_put((qkv, jnp.asarray(segments)), rows)
    with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
      out = jax.jit(_step('splash_interpret', options))(*placed)
    np.savez(folder / f'{name}.npz', *out, part=out[0].sharding.shard_shape(out[0].shape))
  qkv, segments, options = _case(8, 2)
  parts = jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), (qkv, jnp.asarray(segments)))
  out = jax.pmap(_step('splash_interpret', options))(*parts)
  np.savez(folder / 'pmap.npz', *(x.reshape(8, *x.shape[2:]) for x in out))


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
  """Reads what `on_a_mesh` wrote, in a process whose CPU counts as eight devices."""
  folder = tmp_path_factory.mktemp('eight')
  program = (
    'import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import conftest; '
    'import test_attention_devices; test_attention_devices.on_a_mesh(Path(sys.argv[2]))'
  )
  environment = os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES}', 'JAX_PLATFORMS': 'cpu',
  }  # fmt: skip
  command = [sys.executable, '-c', program, str(Path(__file__).parent), str(folder)]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

  def read(name):
    file = folder / f'{name}.npz'
    assert file.exists(), done.stderr[-1500:]
    return dict(np.load(file))

  return read


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_splash_on_a_mesh_gives_what_xla_gives_on_one_device(eight, name):
  found = eight(name)
  qkv, segments, options = _case(*CASES[name][:2])
  reference.agree(
    [found[f'arr_{i}'] for i in range(4)], jax.jit(_step('xla', options))(qkv, segments), 1e-5
  )
  # Each device computes its own part, or the mesh would be for nothing.
  assert tuple(found['part'][[0, 2]]) == CASES[name][-1]


def test_splash_under_pmap_gives_what_xla_gives(eight):
  found = eight('pmap')
  qkv, segments, options = _case(8, 2)
  # Each device weighs its one row as the first row of a batch is weighed.
  row = jax.vmap(lambda *part: _step('xla', options)(*part))
  expected = row(*jax.tree.map(lambda x: x[:, None], (qkv, jnp.asarray(segments))))
  reference.agree([found[f'arr_{i}'] for i in range(4)], [x[:, 0] for x in expected], 1e-5)


@pytest.mark.slow
def test_splash_compiles_for_a_tpu_needs_less_memory_than_xla_and_is_not_run_twice():
  pytest.importorskip('libtpu')
  program = """
import functools, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from disranker_jax.models import attention, layers

devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
axes = ('data', 'fsdp', 'model')
mesh = Mesh(np.array(devices).reshape(2, 1, 2), axes, axis_types=(AxisType.Auto,) * 3)
split = NamedSharding(mesh, P(('data', 'fsdp'), None, 'model'))
rows = NamedSharding(mesh, P(('data', 'fsdp')))
qkv = [jax.ShapeDtypeStruct((8, 1000, n, 128), jnp.bfloat16, sharding=split) for n in (32, 8, 8)]
segments = jax.ShapeDtypeStruct((8, 1000), jnp.int32, sharding=rows)
kept = jax.checkpoint_policies.save_only_these_names(layers.SAVED)
for kernel in ('splash', 'xla'):
  @functools.partial(jax.checkpoint, policy=kept)
  def loss(q, k, v, s):
    out = attention.attend(q, k, v, segments_BT=s, causal=True, window=512,
                           precision='bfloat16', kernel=kernel)
    return jnp.sum(out.astype(jnp.float32) ** 2)
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*qkv, segments).compile()
  print(compiled.memory_analysis().temp_size_in_bytes, compiled.as_text().count('tpu_custom_call'))
"""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
  }  # fmt: skip
  done = subprocess.run(
    [sys.executable, '-c', program], env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-1500:]
  splash, calls, xla, _ = map(int, done.stdout.split())
  assert splash < xla / 4
  # Forward, gradient of q, gradients of k and v: what 'dots' keeps spares a second forward.
  assert calls == 3
