"""A stage's real step on shapes instead of arrays: no weights, tokenizer, data or device."""

import copy
import json
import pathlib
import tempfile

from ml_collections import ConfigDict

from disranker_jax.commands.plan import prompts
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError, first_line
from disranker_jax.models import attention_choice, eight_bits, load, tiny, weights
from disranker_jax.models.network import Network
from disranker_jax.pipeline import opening, steps, systems
from disranker_jax.pipeline.steps import Step
from disranker_jax.rankers.llm.batches import LabelLogits
from disranker_jax.stages import prompting

# From the published config.json files of the models in configs/.
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
  'Qwen/Qwen3-4B': {
    'model_type': 'qwen3', 'vocab_size': 151936, 'hidden_size': 2560, 'intermediate_size': 9728,
    'num_hidden_layers': 36, 'num_attention_heads': 32, 'num_key_value_heads': 8, 'head_dim': 128,
    'max_position_embeddings': 40960, 'rms_norm_eps': 1e-6, 'rope_theta': 1000000.0,
    'tie_word_embeddings': True, 'bos_token_id': 151643, 'eos_token_id': 151645,
  },
  'Qwen/Qwen2.5-1.5B-Instruct': {
    'model_type': 'qwen2', 'vocab_size': 151936, 'hidden_size': 1536, 'intermediate_size': 8960,
    'num_hidden_layers': 28, 'num_attention_heads': 12, 'num_key_value_heads': 2,
    'max_position_embeddings': 32768, 'rms_norm_eps': 1e-6, 'rope_theta': 1000000.0,
    'tie_word_embeddings': True, 'bos_token_id': 151643, 'eos_token_id': 151645,
  },
  'answerdotai/ModernBERT-base': {
    'model_type': 'modernbert', 'vocab_size': 50368, 'hidden_size': 768, 'intermediate_size': 1152,
    'num_hidden_layers': 22, 'num_attention_heads': 12, 'max_position_embeddings': 8192,
    'global_attn_every_n_layers': 3, 'local_attention': 128, 'global_rope_theta': 160000.0,
    'local_rope_theta': 10000.0, 'classifier_pooling': 'mean', 'pad_token_id': 50283,
  },
}  # fmt: skip


def trace(config: ConfigDict, name: str, mesh, platform: str = '') -> Step:
  """The step that the stage would run on this mesh; `evaluate:METHOD` is that of an LLM ranker.

  `platform` is that of the devices which the mesh stands for, by default its own.
  """
  if asked := prompts.find(config, name):
    return _prompting(config, asked, mesh, platform)
  stage = systems.find(config, name)
  if len(stage.uses(config)) > 1:
    raise UserError(
      f'--stage {name}: also runs {stage.uses(config)[1].label}, which the plan leaves out; set '
      'config.distill.hidden_weight=0'
    )
  described, texts = stage.texts(config) if stage.texts else (config[stage.role], None)
  settings = _resolved(described, mesh, platform)
  if texts and settings.attention == 'splash':
    settings.attention = 'xla'  # the devices stand for TPUs; written tokens take no kernel
  with opening.naming(config, stage.role):
    network = _network(settings, stage.head(config))
    load.check_length(network, settings)
  if stage.task:
    with opening.naming_stage(config, stage):
      return steps.training(config, stage, network, mesh)
  if texts:
    return steps.writer(settings, network, texts, mesh)
  [use] = stage.uses(config)
  eight_bits.check_device(f'config.{name}.quantize', use.quantize, mesh.devices.flat[0])
  with opening.naming_stage(config, stage, use):
    opened = steps.by_pairs(settings, settings.scorer, use.rows, mesh)
    return steps.scoring(settings, network, opened, mesh, use.quantize)


def _prompting(config: ConfigDict, asked: prompts.Asked, mesh, platform: str) -> Step:
  """The step that reads an LLM ranker's prompts."""
  settings = _resolved(config.teacher, mesh, platform)
  with opening.naming(config, 'teacher'):
    network = _network(settings, asked.todo.head)
  most = network.family.max_len(network.config)
  if asked.row_len > most and asked.expected.max_len > most:
    raise UserError(
      f'config.teacher.model={settings.model!r}: reads at most {most:,} tokens, but a prompt can '
      f'have about {asked.expected.max_len:,}; lower config.{asked.section}.prompts.window or '
      'doc_tokens'
    )
  quantize = config.score.quantize if asked.section == 'score' else ''
  eight_bits.check_device('config.score.quantize', quantize, mesh.devices.flat[0])
  each = prompting.rows_of(config, asked.section, asked.row_len, mesh)
  rows = each * sharding.parts(mesh)

  def opened(network: Network) -> LabelLogits:
    return LabelLogits(network, None, asked.expected, mesh, rows, asked.row_len)

  return steps.scoring(settings, network, opened, mesh, quantize)


def mesh_of(config: ConfigDict, name: str, mesh):
  """The mesh of a stage: LLM rankers hold all parameters in the devices of each process."""
  devices = list(mesh.devices.flat)
  have = sum(device.process_index == devices[0].process_index for device in devices)
  if have == len(devices) or not prompts.find(config, name):
    return mesh
  return sharding.apart(mesh, have, devices)


def _network(settings: ConfigDict, head: str) -> Network:
  with tempfile.TemporaryDirectory() as scratch:
    folder = config_folder(settings.model, pathlib.Path(scratch))
    return load.open_network(folder, settings, head)


def _resolved(side, mesh, platform: str = ''):
  """A model's settings with 'auto' resolved for the mesh's devices, not for this machine."""
  side = copy.deepcopy(side)
  platform = platform or mesh.devices.flat[0].platform
  side.precision = load.precision(side.precision, platform)
  # cuDNN's calls cannot be traced without a GPU; XLA's attention needs more memory.
  if side.attention == 'auto' or (platform, side.attention) == ('gpu', 'cudnn'):
    where = attention_choice.Device(platform)
    side.attention, _ = attention_choice.choose('auto', where, side.precision, head_dim=0)
  return side


def config_folder(name: str, scratch: pathlib.Path) -> pathlib.Path:
  """A folder with a model's config.json, all that a plan needs; no weights are fetched.

  Tried in order: a local folder, the Hugging Face cache, PUBLISHED (also for a folder of that name
  on another machine), and the hub, for this one small file.
  """
  local = pathlib.Path(name).expanduser()
  if (local / 'config.json').exists():
    return local
  if name in tiny.CONFIGS or name in weights.KNOWN or local.suffix == weights.GGUF:
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
    raise UserError(
      f'its config.json cannot be found ({first_line(e)}); name a folder that has it, or one of '
      f'{", ".join(PUBLISHED)}'
    ) from e


def _is_hub_id(name: str) -> bool:
  return not name.startswith(('/', '.', '~')) and name.count('/') <= 1
