"""Who may attend to whom, and that every kernel computes the same."""

import functools

import attention_reference as reference
import hf_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import attention, attention_choice, layers
from disranker_jax.models.attention_choice import Device

KERNELS = ('xla', 'splash_interpret')  # what a CPU can run
ON_GPU = jax.default_backend() == 'gpu'
HOPPER = Device('cuda', (9, 0))


# The rule


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('causal, window', [(True, None), (True, 3), (False, None), (False, 3)])
def test_causality_window_edge_and_segments_by_gradient(kernel, causal, window):
  segments = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]])
  q, k, v = reference.qkv()

  def outputs(v):
    out = reference.attend((q, k, v), segments, causal=causal, window=window, kernel=kernel)
    return out.sum(axis=(0, 2, 3))

  seen = np.abs(jax.jit(jax.jacobian(outputs))(v)).sum(axis=(1, 3, 4)) > 0
  np.testing.assert_array_equal(seen, reference.may_see(segments, causal, window)[0])


@pytest.mark.parametrize('causal, window', [(True, None), (True, 4), (False, None), (False, 4)])
def test_xla_computes_attention(causal, window):
  qkv, segments = reference.qkv(B=2, T=30, H=6, K=2), reference.some_segments(2, 30, padding=3)
  out = reference.attend(qkv, segments, causal=causal, window=window)
  np.testing.assert_allclose(
    out, reference.numpy_attention(qkv, segments, causal, window), atol=2e-6
  )


def test_attention_agrees_with_jax_nn_on_grouped_heads_and_windows():
  qkv = reference.qkv(B=2)
  out = reference.attend(qkv, np.ones((2, 10), int), causal=True, window=4)
  theirs = jax.nn.dot_product_attention(*qkv, is_causal=True, local_window_size=(3, 0))
  np.testing.assert_allclose(out, theirs, atol=2e-6)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('precision', list(layers.ACTIVATIONS))
def test_rows_of_padding_have_finite_values_and_gradients(kernel, precision):
  segments = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
  dtype = layers.activation_dtype(precision)

  def loss(qkv):
    options = {'causal': True, 'window': 2, 'precision': precision, 'kernel': kernel}
    return jnp.sum(reference.attend(qkv, segments, **options).astype(jnp.float32) ** 2)

  low = tuple(x.astype(dtype) for x in reference.qkv(B=2, T=4))
  value, grads = jax.jit(jax.value_and_grad(loss))(low)
  assert np.isfinite(value)
  assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)


# Kernels against 'xla'


@pytest.mark.parametrize(
  'T, H, K, E, causal, window',
  [
    (200, 4, 2, 64, True, None),
    (200, 4, 4, 32, True, 70),  # some blocks are out of every window
    (200, 4, 1, 64, True, 199),
    (200, 4, 2, 64, True, 200),
    (256, 4, 2, 128, True, 1),
    (384, 2, 2, 64, True, 128),  # a block's width exactly, three blocks
    (200, 4, 4, 64, False, None),
    (130, 4, 2, 64, False, 70),
    (7, 2, 1, 64, True, 8),
  ],
)
def test_splash_gives_the_values_and_gradients_of_xla(monkeypatch, T, H, K, E, causal, window):
  monkeypatch.setattr(attention, 'MAX_BLOCK', 128)
  qkv, segments = reference.qkv(2, T, H, K, E), reference.some_segments(2, T, padding=T // 8)
  splash, xla = (
    reference.values_and_gradients(qkv, segments, causal=causal, window=window, kernel=kernel)
    for kernel in ('splash_interpret', 'xla')
  )
  reference.agree(splash, xla, atol=1e-5)


def test_splash_in_bf16_is_as_close_to_fp32_as_xla_in_bf16():
  qkv, segments = reference.qkv(2, 150, 4, 2, 128), reference.some_segments(2, 150)
  exact = reference.values_and_gradients(qkv, segments, causal=True)
  low = tuple(x.astype(jnp.bfloat16) for x in qkv)

  def errors(kernel):
    options = {'causal': True, 'precision': 'bfloat16', 'kernel': kernel}
    found = reference.values_and_gradients(low, segments, **options)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    return np.array(
      [jnp.sqrt(jnp.mean((x - y) ** 2)) for x, y in zip(found, exact, strict=True)], float
    )

  assert (errors('splash_interpret') < 1.5 * errors('xla')).all()


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('causal, window', [(True, None), (True, 20), (False, None), (False, 20)])
def test_packed_rows_equal_separate_rows(kernel, causal, window):
  lengths = (37, 1, 64, 55)
  T, starts = 160, np.cumsum((0, *lengths))
  segments = np.repeat((1, 2, 3, 4, 0), (*lengths, T - sum(lengths)))[None]
  qkv = reference.qkv(1, T, 4, 2, 64)
  options = {'causal': causal, 'window': window, 'kernel': kernel}
  attend = jax.jit(functools.partial(reference.attend, **options))
  packed = attend(qkv, segments)
  for start, length in zip(starts, lengths, strict=False):
    alone = (np.arange(T) < length).astype(int)[None]
    separate = attend(tuple(jnp.roll(x, -start, axis=1) for x in qkv), alone)
    np.testing.assert_allclose(packed[:, start : start + length], separate[:, :length], atol=2e-6)
  # What lies in padding reaches nothing.
  filled = tuple(jnp.where((segments == 0)[:, :, None, None], 1e4, x) for x in qkv)
  real = segments[0] != 0
  np.testing.assert_allclose(attend(filled, segments)[:, real], packed[:, real], atol=2e-6)


@pytest.mark.parametrize('causal, window', [(True, None), (True, 20), (True, 99), (False, None)])
def test_what_is_asked_of_cudnn_is_the_same_attention(monkeypatch, causal, window):
  plain = jax.nn.dot_product_attention
  asked = []

  def instead(*arrays, implementation, **options):
    asked.append((implementation, arrays[0].shape[1], options['is_causal']))
    return plain(*arrays, **options)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
  monkeypatch.setattr(attention_choice, 'device_of', lambda mesh: HOPPER)
  qkv, segments = reference.qkv(2, 99, 4, 2, 64), reference.some_segments(2, 99)
  options = {'causal': causal, 'window': window}
  cudnn = reference.values_and_gradients(
    qkv, segments, jit=lambda f: f, kernel='cudnn', precision='bfloat16', **options
  )
  reference.agree(cudnn, reference.values_and_gradients(qkv, segments, **options), atol=1e-5)
  assert asked == [('cudnn', 128, causal and window != 20)]


@pytest.mark.skipif(not ON_GPU, reason='needs an NVIDIA GPU: run with JAX_PLATFORMS=cuda')
@pytest.mark.parametrize('T', [128, 192, 255, 1000])
@pytest.mark.parametrize('causal, window', [(True, None), (True, 70), (False, None)])
def test_cudnn_gives_the_values_and_gradients_of_xla(T, causal, window):
  qkv = tuple(x.astype(jnp.bfloat16) for x in reference.qkv(2, T, 8, 2, 128))
  segments = reference.some_segments(2, T)
  options = {'causal': causal, 'window': window}
  exact = reference.values_and_gradients(
    tuple(x.astype(jnp.float32) for x in qkv), segments, **options
  )
  found = reference.values_and_gradients(
    qkv, segments, precision='bfloat16', kernel='cudnn', **options
  )
  real = segments != 0
  for one, other in zip(found, exact, strict=True):
    one, other = np.asarray(one, np.float32)[real], np.asarray(other)[real]
    assert np.isfinite(one).all()
    assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


# Which kernel runs


def _jaxpr(qkv, segments, **options):
  return str(jax.make_jaxpr(functools.partial(reference.attend, **options))(qkv, segments))


@pytest.mark.parametrize(
  'kernel, platform, precision, message',
  [
    ('flash', 'cpu', 'float32', "'flash' is unknown: use one of xla, splash, cudnn, auto"),
    ('splash', 'cpu', 'bfloat16', "needs a TPU .* 'bfloat16' on a cpu device, heads of 8: use"),
    ('splash', 'tpu', 'float32', "precision 'bfloat16', and this is 'float32' on a tpu"),
    ('cudnn', 'cpu', 'bfloat16', "NVIDIA GPU.* 'bfloat16' on a cpu device, heads of 8: use"),
    ('cudnn', 'rocm', 'bfloat16', "NVIDIA GPU.* 'bfloat16' on a rocm device"),
    ('cudnn', 'cuda', 'bfloat16_dots', "precision 'bfloat16'.*this is 'bfloat16_dots'"),
  ],
)
def test_kernels_that_cannot_run_are_refused(monkeypatch, kernel, platform, precision, message):
  device = Device(platform, (9, 0) if platform == 'cuda' else ())
  monkeypatch.setattr(attention_choice, 'device_of', lambda mesh: device)
  with pytest.raises(UserError, match=message):
    reference.attend(
      reference.qkv(), np.ones((1, 10), int), causal=True, kernel=kernel, precision=precision
    )


def test_an_unknown_kernel_is_refused_before_anything_is_traced():
  with pytest.raises(UserError, match="attention 'flash' is unknown"):
    hf_reference.network(attention='flash')


@pytest.mark.parametrize(
  'T, H, K, E, causal, window, options',
  [
    (1024, 32, 8, 128, True, 4096, {}),  # Mistral-7B
    (1000, 32, 8, 128, True, 512, {}),
    (250, 9, 3, 64, True, None, {}),  # SmolLM2-135M
    (256, 12, 12, 64, False, None, {}),  # BERT-base
    (256, 12, 12, 32, False, None, {'precision': 'bfloat16_dots'}),  # MiniLM
  ],
)
def test_auto_is_splash_when_the_mesh_is_of_tpus_whatever_the_host(
  T, H, K, E, causal, window, options
):
  qkv = tuple(jax.ShapeDtypeStruct((8, T, n, E), jnp.bfloat16) for n in (H, K, K))
  segments = jax.ShapeDtypeStruct((8, T), jnp.int32)
  options = {
    'causal': causal,
    'window': window,
    'precision': 'bfloat16',
    'kernel': 'auto',
  } | options

  def lowered(platform):
    # A function of its own each time: one that was traced before is not traced again.
    def loss(qkv, segments):
      return jnp.sum(reference.attend(qkv, segments, **options).astype(jnp.float32))

    device = AbstractDevice(device_kind='a chip', num_cores=1, platform=platform)
    mesh = AbstractMesh((2, 2, 2), sharding.AXES, (AxisType.Auto,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
      return jax.jit(jax.grad(loss)).trace(qkv, segments).lower(lowering_platforms=(platform,))

  # Forward, gradient of q, gradients of k and v.
  assert lowered('tpu').as_text().count('custom_call @tpu_custom_call') == 3
  assert 'custom_call @tpu' not in lowered('cpu').as_text()


@pytest.mark.parametrize('window', [None, 3, 40])
@pytest.mark.parametrize('count', [1, 2])
def test_queries_against_a_cache_see_the_slots_before_them(window, count):
  q, k, v = reference.qkv(2, 12, 4, 2, 8)
  segments = jnp.array([[0] * 3 + [1] * 9, [1] * 12])
  whole = reference.attend((q, k, v), segments, causal=True, window=window)
  # Slots behind the queries may hold anything.
  k, v = (x.at[:, 7 + count :].set(9.0).swapaxes(1, 2) for x in (k, v))
  out = attention.attend_cached(
    q[:, 7 : 7 + count], k, v, segments_BS=segments, start=jnp.int32(7), window=window
  )
  np.testing.assert_allclose(out, whole[:, 7 : 7 + count], atol=2e-6)


# Through the networks


@pytest.mark.parametrize('kind, remat', [('mistral', 'dots'), ('bert', 'none')])
def test_networks_with_splash_give_hidden_states_and_gradients_of_xla(kind, remat):
  batch, _ = hf_reference.packed(hf_reference.sequences((9, 4, 6)), length=24)
  real = batch['segments_BT'][0] > 0

  def outcome(kernel):
    model, variables = hf_reference.network(kind, remat=remat, attention=kernel)

    def loss(variables):
      hidden = model.hidden(variables, batch)[0, real]
      return jnp.sum(jnp.sin(hidden)), hidden

    traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(variables)
    assert ('pallas_call' in str(traced.jaxpr)) == (kernel != 'xla')
    return traced.lower().compile()(variables)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    outcome('splash_interpret'),
    outcome('xla'),
  )
