"""Every format of an exported student gives the student's scores; 8 bits give its order."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from disranker_jax.errors import UserError
from disranker_jax.exporting import formats, graph, parity, quantised
from disranker_jax.models import families, hf, tiny

BERT = families.find('bert')


def arrays(rows: list[list[int]], length: int, split: int = 3) -> dict[str, np.ndarray]:
  """Token ids as padded inputs, the second text from `split` on."""
  out = {name: np.zeros((len(rows), length), np.int64) for name in graph.INPUTS}
  for i, ids in enumerate(rows):
    out['input_ids'][i, : len(ids)] = ids
    out['attention_mask'][i, : len(ids)] = 1
    out['token_type_ids'][i, split : len(ids)] = 1
  return out


def session(file):
  return onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])


@pytest.fixture(scope='module')
def texts(student):
  """Random token rows of very different lengths."""
  rng = np.random.default_rng(1)
  vocab = student.network.config.vocab
  return [rng.integers(5, vocab, n).tolist() for n in (60, 4, 17, 33, 50, 8, 64, 29)]


@pytest.fixture(scope='module')
def expected(student, texts):
  """The network's scores of the rows, by jax, each row alone."""
  batch = arrays(texts, 64)
  T = batch['input_ids'].shape[1]
  ours = {
    'tokens_BT': batch['input_ids'], 'segments_BT': batch['attention_mask'],
    'types_BT': batch['token_type_ids'], 'positions_BT': np.tile(np.arange(T), (len(texts), 1)),
    'index_AX': np.arange(len(texts))[None] * T, 'mask_GN': np.ones((len(texts), 1), bool),
  }  # fmt: skip
  return np.asarray(student.network.scores(student.variables, ours))[:, 0]


@pytest.mark.parametrize('name, tolerance', [('onnx', 1e-4), ('onnx_fp16', 2e-2)])
def test_onnx_gives_the_networks_scores_at_any_batch_and_length(
  exported, texts, expected, name, tolerance
):
  run = session(exported / formats.ONNX[name])
  scale = np.abs(expected).max()
  assert expected.std() > 0.05 * scale  # not all alike
  [[logits]] = (run.run(None, arrays(texts, 64)),)
  assert logits.shape == (len(texts), 1)
  np.testing.assert_allclose(logits[:, 0], expected, atol=tolerance * scale)
  for text, score in zip(texts, expected, strict=True):
    [alone] = run.run(None, arrays([text], len(text)))
    np.testing.assert_allclose(alone[0, 0], score, atol=tolerance * scale)


class TestInt8:
  def test_keeps_the_order(self, exported, texts, expected):
    [logits] = session(exported / formats.ONNX['onnx_int8']).run(None, arrays(texts, 64))
    assert parity.order_kept([logits[:, 0]], [expected], 0.05 * expected.std()) > 0.9
    assert np.abs(logits[:, 0] - expected).max() < 0.2 * expected.std()

  def test_scores_do_not_depend_on_the_rest_of_the_batch(self, exported, texts):
    run = session(exported / formats.ONNX['onnx_int8'])
    [together] = run.run(None, arrays(texts, 64))
    for i, text in enumerate(texts):
      [alone] = run.run(None, arrays([text], len(text)))
      np.testing.assert_allclose(alone[0], together[i], atol=1e-5 * np.abs(together).max())

  def test_the_kernels_of_all_layers_are_8_bits(self, exported, student):
    """Unsigned: without VNNI instructions ONNX Runtime's sums overflow for signed ones."""
    model = onnx.load(exported / formats.ONNX['onnx_int8'])
    kinds = {c.name: c.data_type for c in model.graph.initializer}
    kernels = [n for n, t in kinds.items() if t == onnx.TensorProto.UINT8 and 'kernel8' in n]
    # query and key + value apart in the last layer, together in the others.
    assert len(kernels) == 4 * student.network.config.layers + 1

  def test_channels_that_are_large_are_found_without_data(self, student, exported):
    config, tensors = hf.read_config(exported), formats.tensors(exported)
    tensors['bert.embeddings.LayerNorm.weight'] = tensors['bert.embeddings.LayerNorm.weight'].copy()
    tensors['bert.embeddings.LayerNorm.weight'][5] *= 50
    peaks = quantised.peaks(graph.Bert, BERT, config, tensors)[
      'bert.encoder.layer.0.attention.self.query'
    ]
    assert peaks.argmax() == 5

  def test_a_huge_channel_costs_the_others_nothing(self, student, exported, texts):
    """A channel that a norm scales up and its reader down changes nothing; 8 bits must bear it."""
    config, tensors = hf.read_config(exported), formats.tensors(exported)
    name = 'bert.encoder.layer.0.attention.output.LayerNorm'
    for part in ('weight', 'bias'):
      tensors[f'{name}.{part}'] = tensors[f'{name}.{part}'].copy()
      tensors[f'{name}.{part}'][7] *= 40
    up = 'bert.encoder.layer.0.intermediate.dense.weight'
    tensors[up] = tensors[up].copy()
    tensors[up][:, 7] /= 40
    inputs, scores = arrays(texts, 64), {}
    for kind, model in (
      ('fp32', graph.Bert(BERT, config, tensors).model()),
      ('int8', quantised.build(graph.Bert, BERT, config, tensors)),
    ):
      [scores[kind]] = session_of(model).run(None, inputs)
    assert np.abs(scores['int8'] - scores['fp32']).max() < 0.2 * scores['fp32'].std()


def session_of(model):
  return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def test_all_activations_of_our_encoder_are_those_of_onnx(student, exported, texts):
  import jax

  from disranker_jax.models.families.bert import ACTS

  x = np.linspace(-4, 4, 41, dtype=np.float32)
  for name, ours in ACTS.items():
    bert = graph.Bert(BERT, {**hf.read_config(exported), 'hidden_act': name}, {})
    y = bert.act('x')
    g = onnx.helper.make_graph(
      bert.nodes, 'g', [onnx.helper.make_tensor_value_info('x', 1, [41])],
      [onnx.helper.make_tensor_value_info(y, 1, [41])],
    )  # fmt: skip
    model = onnx.helper.make_model(
      g, opset_imports=[onnx.helper.make_opsetid('', graph.OPSET)], ir_version=graph.IR_VERSION
    )
    [theirs] = session_of(model).run(None, {'x': x})
    np.testing.assert_allclose(theirs, jax.jit(ours)(x), atol=1e-5)


def test_stablehlo_runs_without_this_package(exported, texts, expected, tmp_path):
  np.savez(tmp_path / 'in.npz', **arrays(texts, 64))
  program = f'''
import sys, numpy as np, jax
from jax import export
from safetensors.flax import load_file
prepare, score = (export.deserialize(bytearray(open("{exported}/stablehlo/" + n, "rb").read())).call
                  for n in ("prepare", "score"))
params = prepare(load_file("{exported}/model.safetensors"))
given = np.load("{tmp_path}/in.npz")
names = ("input_ids", "attention_mask", "token_type_ids")
out = score(params, *(given[n].astype(np.int32) for n in names))
assert not any(m.startswith("disranker") for m in sys.modules)
np.save("{tmp_path}/out.npy", out)
'''
  subprocess.run([sys.executable, '-c', program], check=True, timeout=120, cwd=tmp_path)
  scores = np.load(tmp_path / 'out.npy')
  np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_halved_folders_are_half_as_large_and_become_onnx_too(student, tmp_path, dtype, exported):
  folder = student.save(tmp_path / 'half', dtype=dtype)
  sizes = [(f / 'model.safetensors').stat().st_size for f in (folder, exported)]
  assert sizes[0] < 0.6 * sizes[1]
  assert json.loads((folder / 'config.json').read_text())['dtype'] == dtype
  formats.write(folder, ('onnx', 'stablehlo'))
  assert (folder / 'onnx' / 'model.onnx').exists()


def test_a_decoder_is_refused_by_name(tmp_path):
  tiny.make('tiny-decoder', tmp_path / 'm')
  with pytest.raises(UserError, match="mistral models have no format 'onnx'"):
    formats.write(tmp_path / 'm', ('onnx',))
