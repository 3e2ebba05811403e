"""Rerankers as sentence-transformers stores them: a bare network, and its head in further folders.

modules.json lists the parts, such as Transformer, Pooling, Dense, LayerNorm, Dense of the Ettin
rerankers. Here the parts behind the network become config keys and tensors of the classifier that
transformers has for the network, so that other code sees one model. Nothing is imported by name.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from disranker_jax.data import contents
from disranker_jax.errors import UserError

# Activations by the names of their torch classes: our names; '' for none.
ACTIVATIONS = {
  'torch.nn.modules.linear.Identity': '',
  'torch.nn.modules.activation.GELU': 'gelu',
  'torch.nn.modules.activation.ReLU': 'relu',
  'torch.nn.modules.activation.Tanh': 'tanh',
}
OLD_POOLING = {'pooling_mode_cls_token': 'cls', 'pooling_mode_mean_tokens': 'mean'}
NORM_EPS = 1e-5  # of LayerNorm modules, which do not store it


@dataclasses.dataclass(frozen=True)
class Module:
  """One part: the last word of its type, its folder and its config."""

  kind: str
  folder: Path
  config: dict

  def tensors(self) -> dict[str, np.ndarray]:
    """Its tensors in fp32, by name."""
    file = self.folder / 'model.safetensors'
    if not file.is_file():
      raise UserError(f'{file} is missing: fetch the model again')
    try:
      with safe_open(file, 'np') as opened:
        return {name: opened.get_tensor(name).astype(np.float32) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
      raise UserError(f'{file} is truncated or corrupt, fetch it again: {error}') from None

  def activation(self) -> str:
    """The name of a Dense module's activation. Raises: UserError for one that is not known."""
    name = self.config.get('activation_function', 'torch.nn.modules.activation.Tanh')
    if name not in ACTIVATIONS:
      raise UserError(f'{self.folder}/config.json: activation_function {name!r} is not supported')
    return ACTIVATIONS[name]


def head(folder: str | Path) -> list[Module]:
  """The modules behind the network of a reranker's folder; [] if it has no such modules.

  Modules of an embedding model are not a reranker's head, and are left out.

  Raises: UserError for a reranker whose text is changed before it is read, and for broken files.
  """
  folder = Path(folder)
  if not (folder / 'modules.json').is_file():
    return []
  settings = _read(folder / 'config_sentence_transformers.json', dict)
  if settings.get('model_type') != 'CrossEncoder':
    return []
  rows = _read(folder / 'modules.json', list)
  first, *others = [_module(folder, row) for row in rows] or [None]
  if first is None or first.kind != 'Transformer' or first.folder != folder:
    raise UserError(f'{folder}/modules.json: the first module must be a Transformer in the folder')
  if [module.kind for module in others] in ([], ['LogitScore']):
    return []  # the network's own head, or that of a language model
  if prompt := (settings.get('prompts') or {}).get(settings.get('default_prompt_name')):
    raise UserError(f'{folder}: the prompt {prompt!r:.80} before texts is not supported')
  return others


def classifier(modules: list[Module], kinds: tuple[str, ...], config: dict) -> dict:
  """The head as keys of the network's config; `kinds` are the modules that its family computes.

  Raises: UserError for modules that compute something else.
  """
  found = [module.kind for module in modules]
  if found != list(kinds):
    place, model_type = modules[0].folder.parent / 'modules.json', config['model_type']
    computed = (
      f'those of a {model_type} model are {", ".join(kinds)}'
      if kinds
      else (f'a {model_type} model has its own head only')
    )
    raise UserError(f'{place}: the modules {", ".join(found)} are not supported: {computed}')
  pooling, dense, norm, last = modules
  width = config['hidden_size']
  mode = pooling.config.get('pooling_mode') or [
    name for key, name in OLD_POOLING.items() if pooling.config.get(key)
  ]
  mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
  wanted = (
    (pooling, mode in ('cls', 'mean'), f'pooling_mode {mode!r} is neither cls nor mean'),
    (dense, dense.config.get('out_features') == width, f'out_features is not {width}'),
    (dense, dense.activation() not in ('', 'tanh'), 'activation_function is neither GELU nor ReLU'),
    (norm, norm.config.get('dimension') == width, f'dimension is not {width}'),
    (
      norm, config.get('norm_eps', NORM_EPS) == NORM_EPS,
      f'divides with {NORM_EPS}, the network with {config.get("norm_eps")}',
    ),
    (last, last.config.get('out_features') == 1, 'out_features is not 1: scores are one number'),
    (last, last.activation() == '', 'activation_function is not Identity'),
    (last, last.config.get('module_output_name') == 'scores', 'module_output_name is not scores'),
    *((m, not m.config.get('use_residual'), 'use_residual is unsupported') for m in (dense, last)),
  )  # fmt: skip
  for module, fits, problem in wanted:
    if not fits:
      raise UserError(f'{module.folder}/config.json: {problem}')
  return {
    'architectures': ['ModernBertForSequenceClassification'],
    'id2label': {0: 'LABEL_0'},
    'classifier_pooling': mode,
    'classifier_bias': bool(dense.config.get('bias', True)),
    'classifier_activation': dense.activation(),
  }


def _read(file: Path, kind: type):
  """A JSON file of this kind of value. Raises: UserError for a missing, broken or another one."""
  try:
    value = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(f'{file} is missing: fetch the model again') from None
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f'{file} cannot be read: {error}') from None
  if not isinstance(value, kind):
    raise UserError(f'{file} is not a {"list" if kind is list else "set of named values"}')
  return value


def _module(folder: Path, row) -> Module:
  """The module of a row of modules.json."""
  file = folder / 'modules.json'
  if not isinstance(row, dict) or not isinstance(row.get('type'), str):
    raise UserError(f'{file}: {row!r:.80} is not a module')
  kind, path = row['type'].rpartition('.')[2], row.get('path')
  if path == '':
    return Module(kind, folder, {})
  if not contents.is_name(path):
    raise UserError(f'{file}: {path!r:.80} is not the name of a folder in the folder')
  inside = folder / path
  has_config = kind != 'LogitScore' and (inside / 'config.json').is_file()
  return Module(kind, inside, _read(inside / 'config.json', dict) if has_config else {})


def tensors(modules: list[Module], has_norm_bias: bool) -> dict[str, np.ndarray]:
  """The tensors of the classifier that `classifier` describes.

  LayerNorm modules always have a bias. Where the norms of the network have none, it is part of the
  classifier's bias: w (x + b) + c = w x + (w b + c).
  """
  _, dense, norm, last = modules
  norm_tensors, score = norm.tensors(), last.tensors()
  kernel = score['linear.weight']
  bias = score.get('linear.bias', np.zeros(len(kernel), np.float32))
  out = {f'head.dense.{name.rpartition(".")[2]}': value for name, value in dense.tensors().items()}
  out['head.norm.weight'] = norm_tensors['norm.weight']
  if has_norm_bias:
    out['head.norm.bias'] = norm_tensors['norm.bias']
  else:
    bias = bias + kernel.astype(np.float64) @ norm_tensors['norm.bias']
  return out | {'classifier.weight': kernel, 'classifier.bias': bias.astype(np.float32)}
