"""Which kernel runs: the table, and what the choice sees of a device."""

import types

import attention_reference as reference
import hf_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import attention, attention_choice, families, layers
from disranker_jax.models.attention_choice import Device, choose
from disranker_jax.models.families.modernbert import ModernBertConfig
from disranker_jax.models.kinds import Kind
from disranker_jax.models.network import Network

ONE = {'data': 1, 'fsdp': 1, 'model': 1}
AMPERE, HOPPER, BLACKWELL = (Device('cuda', n) for n in ((8, 0), (9, 0), (10, 0)))


@pytest.mark.parametrize(
  ('device', 'precision', 'head_dim', 'kernel'),
  [
    (AMPERE, 'bfloat16', 64, 'cudnn'),
    (Device('cuda', (8, 9)), 'bfloat16', 128, 'cudnn'),
    (AMPERE, 'bfloat16', 136, 'xla'),
    (HOPPER, 'bfloat16', 128, 'cudnn'),
    (HOPPER, 'bfloat16', 256, 'cudnn'),
    (HOPPER, 'bfloat16', 264, 'xla'),
    (HOPPER, 'bfloat16', 100, 'xla'),  # no multiple of 8
    (BLACKWELL, 'bfloat16', 128, 'cudnn'),
    (BLACKWELL, 'bfloat16', 256, 'xla'),
    (Device('cuda', (12, 0)), 'bfloat16', 64, 'cudnn'),
    (Device('cuda', (7, 5)), 'bfloat16', 64, 'xla'),  # Turing has no bf16
    (HOPPER, 'float32', 64, 'xla'),
    (HOPPER, 'bfloat16_dots', 64, 'xla'),
    (Device('rocm'), 'bfloat16', 64, 'xla'),
    (Device('gpu'), 'bfloat16', 64, 'xla'),
    (Device('tpu'), 'bfloat16', 100, 'splash'),
    (Device('tpu'), 'bfloat16_dots', 64, 'splash'),
    (Device('tpu'), 'float32', 64, 'xla'),
    (Device('cpu'), 'bfloat16', 64, 'xla'),
  ],
)
def test_auto_is_the_fast_kernel_of_the_device_where_it_runs(device, precision, head_dim, kernel):
  assert choose('auto', device, precision, head_dim)[0] == kernel


@pytest.mark.parametrize(
  ('device', 'precision', 'head_dim', 'words'),
  [
    (HOPPER, 'float32', 64, "'xla' and not 'cudnn'.*'float32' on a cuda device.*9.0, heads of 64"),
    (AMPERE, 'bfloat16', 256, r'at most 128 \(Ampere.*heads of 256'),
    (Device('rocm'), 'bfloat16', 64, 'NVIDIA GPU.*rocm device'),
    (Device('tpu'), 'float32', 64, "'xla' and not 'splash'"),
  ],
)
def test_the_reason_for_xla_is_told(device, precision, head_dim, words):
  with pytest.raises(AssertionError, match=words):
    raise AssertionError(choose('auto', device, precision, head_dim)[1])


def test_there_is_nothing_to_tell_where_the_fast_kernel_runs_or_there_is_none():
  assert choose('auto', HOPPER, 'bfloat16', 64)[1] == ''
  assert choose('auto', Device('cpu'), 'float32', 64)[1] == ''
  assert choose('xla', HOPPER, 'float32', 64) == ('xla', '')


def test_a_named_kernel_obeys_the_same_table():
  assert choose('cudnn', HOPPER, 'bfloat16', 256) == ('cudnn', '')
  with pytest.raises(UserError, match=r"'cudnn' needs an NVIDIA GPU.*heads of 256: use 'auto'"):
    choose('cudnn', AMPERE, 'bfloat16', 256)


def test_the_reason_is_logged_once(monkeypatch):
  told = []
  monkeypatch.setattr(attention_choice, 'say', told.append)
  monkeypatch.setattr(attention_choice, 'device_of', lambda mesh: AMPERE)
  attention_choice.tell.cache_clear()
  for _ in range(3):
    reference.attend(reference.qkv(), np.ones((1, 10), int), causal=True, kernel='auto')
  assert len(told) == 1 and "'float32' on a cuda device" in told[0]


def mesh_of(platform: str, kind: str) -> AbstractMesh:
  device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
  return AbstractMesh((1, 1, 1), sharding.AXES, (AxisType.Auto,) * 3, abstract_device=device)


@pytest.mark.parametrize(
  ('version', 'kind', 'expected'),
  [
    ('cuda 13000', 'a card', HOPPER),
    ('rocm 60300', 'a card', Device('rocm')),
    ('cuda 13000', 'another card', Device('gpu')),  # compiled for a card that is not here
  ],
)
def test_amds_gpus_and_absent_ones_are_not_nvidias(monkeypatch, version, kind, expected):
  here = types.SimpleNamespace(
    platform='gpu', device_kind='a card', compute_capability='9.0',
    client=types.SimpleNamespace(platform_version=version),
  )  # fmt: skip
  monkeypatch.setattr(jax, 'local_devices', lambda: [here])
  assert attention_choice.device_of(mesh_of('gpu', kind)) == expected


def test_a_mesh_of_tpus_is_one_of_tpus_on_any_host():
  assert attention_choice.device_of(mesh_of('tpu', 'TPU v5e')) == Device('tpu')


@pytest.mark.parametrize('mesh', [AbstractMesh((), ()), sharding.make_mesh(ONE, jax.devices()[:1])])
def test_other_meshes_are_of_this_process(mesh):
  assert attention_choice.device_of(mesh) == Device(jax.default_backend())


@pytest.mark.parametrize(('remat', 'calls'), [('none', 1), ('dots', 1), ('full', 2)])
def test_remat_dots_keeps_what_cudnn_computed(monkeypatch, remat, calls):
  cudnn = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91800)
  q, k, v = (x.astype(jnp.bfloat16) for x in reference.qkv(2, 128, 4, 2, 64))

  def attend(q, k, v):
    segments = jnp.ones((2, 128), int)
    return attention._attend_cudnn(q, k, v, segments, True, None, 0.1).astype(jnp.float32)

  if remat != 'none':
    policy = layers.keeps_dots if remat == 'dots' else None
    attend = jax.checkpoint(attend, policy=policy)
  traced = str(jax.make_jaxpr(jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x)))))(q, k, v))
  assert traced.count('dot_product_attention_fwd_wrapper') == calls
  assert traced.count('dot_product_attention_bwd_wrapper') == 1


@pytest.mark.parametrize('kind', [*hf_reference.DECODERS, 'modernbert'])
def test_cudnn_gets_bf16_of_every_family(monkeypatch, kind):
  """It refuses fp32, and 'auto' must not choose what fails."""
  got = []

  def attend(q, k, v, **options):
    got.append({x.dtype.name for x in (q, k, v)})
    return jnp.zeros_like(q)

  monkeypatch.setattr(attention, 'attend', attend)
  if kind == 'modernbert':
    config = ModernBertConfig(
      vocab=61, width=32, ffn=48, layers=2, heads=4, kinds=(Kind(), Kind(5)), pooling='mean'
    )
  else:
    config = families.from_hf(hf_reference.config(kind).to_dict())
  network = Network(config, precision='bfloat16', attention='auto')
  batch, _ = hf_reference.packed(hf_reference.sequences((9, 4)), length=24)
  jax.eval_shape(network.hidden, network.shapes(), batch)
  assert got and all(types == {'bfloat16'} for types in got)
