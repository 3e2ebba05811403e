"""A stage's real step on shapes instead of arrays: no weights, tokenizer, data or device."""

import copy
import dataclasses
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from disranker_jax.devices import sharding
from disranker_jax.devices.memory import per_device
from disranker_jax.errors import UserError
from disranker_jax.models import load, tiny, weights
from disranker_jax.models.network import Network
from disranker_jax.pipeline import systems
from disranker_jax.rankers import pointwise
from disranker_jax.training import train

# From the published config.json files of the paper's two models.
PUBLISHED = {
  'mistralai/Mistral-7B-v0.1': {
    'model_type': 'mistral', 'vocab_size': 32000, 'hidden_size': 4096, 'intermediate_size': 14336,
    'num_hidden_layers': 32, 'num_attention_heads': 32, 'num_key_value_heads': 8,
    'max_position_embeddings': 32768, 'sliding_window': 4096, 'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0, 'tie_word_embeddings': False, 'bos_token_id': 1, 'eos_token_id': 2,
  },
  'google-bert/bert-base-multilingual-cased': {
    'model_type': 'bert', 'vocab_size': 119547, 'hidden_size': 768, 'intermediate_size': 3072,
    'num_hidden_layers': 12, 'num_attention_heads': 12, 'max_position_embeddings': 512,
    'type_vocab_size': 2, 'layer_norm_eps': 1e-12, 'pad_token_id': 0,
  },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
  """One traced step of a stage, the bytes that it holds per device, and its batch."""

  network: Network
  lowered: object  # jax.stages.Lowered, for devices that can only compile
  held: dict[str, int]  # by part
  batch: dict  # shapes of one micro-batch
  trained: str | None  # see flops.count
  accumulate: int = 1


def trace(config: ConfigDict, name: str, mesh) -> Step:
  """The step that the stage would run on this mesh."""
  stage = systems.find(name, config.system)
  settings = _resolved(config[stage.role], mesh)
  with tempfile.TemporaryDirectory() as scratch:
    folder = config_folder(settings.model, pathlib.Path(scratch))
    network = load.open_network(folder, settings, stage.head(config))
  variables = _variables(network, settings.param_dtype)
  if stage.task is None:
    return _scoring(config, network, variables, mesh)
  return _training(config[name], stage.task(config, network), network, variables, mesh)


def _training(c: ConfigDict, task: train.Task, network: Network, variables: dict, mesh) -> Step:
  batch = task.shape.block(c.data_shards).zeros(c.data_shards)
  steps = c.max_steps or 1000  # only the schedule depends on it
  program = train.Program(task.loss, c, steps, variables, batch, c.data_shards, mesh)
  held = {
    'parameters': per_device((program.trained, program.frozen)),
    'moments': per_device(program.state),
    'batch': per_device(program.batches),
  }
  return Step(network, program.lower(), held, batch, c.trainable, c.gradient_accumulation_steps)


def _scoring(config, network: Network, variables: dict, mesh) -> Step:
  network, variables = load.merged(network, variables)
  rows, row_len, kind = config.score.batch_rows, config.teacher.row_len, config.teacher.scorer
  scorer = pointwise.PointwiseRanker(network, None, None, mesh, rows, row_len, kind)
  batch = scorer.shape.zeros(scorer.blocks)
  where = sharding.batch_shardings(batch, mesh, scorer.blocks)
  shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[k]) for k, v in batch.items()}
  spread = NamedSharding(mesh, PartitionSpec(sharding.AXES))
  flags = {k: jax.ShapeDtypeStruct((mesh.size,), bool, sharding=spread) for k in ('more', 'stop')}
  variables = sharding.abstract(variables, mesh)
  held = {'parameters': per_device(variables), 'batch': per_device(shapes)}
  return Step(network, scorer.lower(variables, shapes, flags), held, batch, None)


def _resolved(side, mesh):
  """A model's settings with 'auto' resolved for the mesh's devices, not for this machine."""
  side = copy.deepcopy(side)
  platform = mesh.devices.flat[0].platform
  side.precision = load.precision(side.precision, platform)
  if side.attention == 'auto':
    side.attention = 'splash' if platform == 'tpu' and side.precision != 'float32' else 'xla'
  return side


def _variables(network: Network, dtype: str) -> dict:
  """Shapes of the variables, base parameters in the dtype in which they are loaded."""
  shapes = dict(jax.eval_shape(network.init, jax.random.key(0)))
  cast = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))  # noqa: E731
  return shapes | {'params': jax.tree.map(cast, shapes['params'])}


def config_folder(name: str, scratch: pathlib.Path) -> pathlib.Path:
  """A folder with a model's config.json, all that a plan needs; no weights are fetched.

  Tried in order: a local folder, the Hugging Face cache, PUBLISHED (also for a folder of that name
  on another machine), and the hub, for this one small file.
  """
  local = pathlib.Path(name).expanduser()
  if (local / 'config.json').exists():
    return local
  if name in tiny.CONFIGS or name in weights.KNOWN:
    return weights.find(name)
  import huggingface_hub

  cached = huggingface_hub.try_to_load_from_cache(name, 'config.json') if _is_hub_id(name) else None
  if isinstance(cached, str):
    return pathlib.Path(cached).parent
  for known, config in PUBLISHED.items():
    if name == known or local.name == known.rpartition('/')[2]:
      (scratch / 'config.json').write_text(json.dumps(config))
      return scratch
  try:
    if not _is_hub_id(name):
      raise FileNotFoundError(f'no {local / "config.json"}')
    return pathlib.Path(huggingface_hub.hf_hub_download(name, 'config.json')).parent
  except Exception as e:  # the hub's HTTP library, and so its exceptions, change
    reason = str(e).strip().splitlines()[0]
    raise UserError(
      f'model {name!r}: its config.json cannot be found ({reason}); name a folder that has '
      f'it, or one of {", ".join(PUBLISHED)}'
    ) from e


def _is_hub_id(name: str) -> bool:
  return not name.startswith(('/', '.', '~')) and name.count('/') <= 1
