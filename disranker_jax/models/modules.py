"""Rerankers as sentence-transformers stores them: a bare network, and its head in further folders.

modules.json lists the parts, such as Transformer, Pooling, Dense, LayerNorm, Dense of the Ettin
rerankers. Here the parts behind the network become config keys and tensors of the classifier that
transformers has for the network, so that other code sees one model. Nothing is imported by name.
"""

import dataclasses
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from disranker_jax.data import contents
from disranker_jax.errors import UserError

# Activations by the names of their torch classes.
ACTIVATIONS = {
  'torch.nn.modules.linear.Identity': 'identity',
  'torch.nn.modules.activation.GELU': 'gelu',
  'torch.nn.modules.activation.ReLU': 'relu',
}
OLD_POOLING = {'pooling_mode_cls_token': 'cls', 'pooling_mode_mean_tokens': 'mean'}
STORED = {'Dense': 'linear', 'LayerNorm': 'norm'}  # first part of the names of tensors
NORM_EPS = 1e-5  # of LayerNorm modules, which do not store it


@dataclasses.dataclass(frozen=True)
class Module:
  """One part: the last word of its type, its folder and its config."""

  kind: str
  folder: Path
  config: dict

  def tensors(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """These tensors in fp32, by name. Raises: UserError for a missing one or another shape."""
    file, out = self.folder / 'model.safetensors', {}
    if not file.is_file():
      raise UserError(f'{file} is missing: fetch the model again')
    try:
      with safe_open(file, 'np') as opened:
        for name, shape in shapes.items():
          out[name] = opened.get_tensor(f'{STORED[self.kind]}.{name}').astype(np.float32)
          if out[name].shape != shape:
            raise UserError(f'{file}: {name} is {out[name].shape}, expected {shape}')
    except (SafetensorError, OSError, TypeError, ValueError) as error:
      raise UserError(f'{file} is damaged or lacks a tensor, fetch it again: {error}') from None
    return out

  def activation(self) -> str | None:
    """The name of a Dense module's activation, None if it is not one of ACTIVATIONS."""
    name = self.config.get('activation_function', 'torch.nn.modules.activation.Tanh')
    return ACTIVATIONS.get(name) if isinstance(name, str) else None

  def has_bias(self) -> bool:
    """Whether a Dense module has a bias."""
    return bool(self.config.get('bias', True))


def head(folder: str | Path) -> list[Module]:
  """The modules behind the network of a reranker's folder; [] if it has no such modules.

  Modules of an embedding model are not a reranker's head, and are left out.

  Raises: UserError for a reranker whose text is changed before it is read, and for broken files.
  """
  folder = Path(folder)
  if not (folder / 'modules.json').is_file():
    return []
  file = folder / 'config_sentence_transformers.json'
  # Embedding models from before version 2 of the library lack the file.
  settings = _read(file, dict) if file.is_file() else {}
  if settings.get('model_type') != 'CrossEncoder':
    return []
  rows = _read(folder / 'modules.json', list)
  first, *others = [_module(folder, row) for row in rows] or [None]
  if first is None or first.kind != 'Transformer' or first.folder != folder:
    raise UserError(f'{folder}/modules.json: the first module must be a Transformer in the folder')
  if [module.kind for module in others] in ([], ['LogitScore']):
    return []  # the network's own head, or that of a language model
  if prompt := settings.get('default_prompt_name'):
    raise UserError(f'{folder}: the prompt {prompt!r:.80} before each text is not supported')
  return others


def embedding(folder: str | Path) -> str:
  """How an embedding model makes one vector of a text's hidden states: 'cls' or 'mean'.

  'mean' where the folder has no modules.json. Raises: UserError for modules that do more.
  """
  file = Path(folder) / 'modules.json'
  if not file.is_file():
    return 'mean'
  found = [_module(Path(folder), row) for row in _read(file, list)]
  kinds = [module.kind for module in found if module.kind != 'Normalize']
  if kinds != ['Transformer', 'Pooling']:
    raise UserError(f'{file}: the modules {", ".join(kinds)} are not supported for embeddings')
  mode = _pooling(next(module.config for module in found if module.kind == 'Pooling'))
  if mode not in ('cls', 'mean'):
    raise UserError(f'{file}: the pooling {mode!r} is neither cls nor mean')
  return mode


def max_tokens(folder: str | Path) -> int:
  """How many tokens an embedding model reads, as sentence_bert_config.json says; 0: it does not.

  Raises: UserError for a file that cannot be read, and for a value that is no number of tokens.
  """
  file = Path(folder) / 'sentence_bert_config.json'
  found = _read(file, dict).get('max_seq_length') if file.is_file() else None
  if found is not None and (type(found) is not int or found < 1):
    raise UserError(f'{file}: max_seq_length {found!r:.80} is not a number of tokens')
  return found or 0


def classifier(modules: list[Module], kinds: tuple[str, ...], config: dict) -> dict:
  """The head as ModernBERT's keys of config.json; `kinds` are the modules that a family computes.

  Raises: UserError for modules that compute something else.
  """
  found = [module.kind for module in modules]
  if found != list(kinds):
    place, model_type = modules[0].folder.parent / 'modules.json', config['model_type']
    computed = f'those of a {model_type} model are {", ".join(kinds)}'
    if not kinds:
      computed = f'a {model_type} model has its own head only'
    raise UserError(f'{place}: the modules {", ".join(found)} are not supported: {computed}')
  pooling, dense, norm, last = modules
  mode = _pooling(pooling.config)
  _check_pooling_and_norm(pooling, mode, norm, config)
  _check_dense(dense, 'sentence_embedding', config['hidden_size'], ('gelu', 'relu'))
  _check_dense(last, 'scores', 1, ('identity',))
  return {
    'architectures': ['ModernBertForSequenceClassification'],
    'id2label': {0: 'LABEL_0'},
    'classifier_pooling': mode,
    'classifier_bias': dense.has_bias(),
    'classifier_activation': dense.activation(),
  }


def _pooling(config: dict):
  """The mode of a Pooling module, as now and as earlier versions wrote it."""
  mode = config.get('pooling_mode') or [k for k in OLD_POOLING if config.get(k)]
  mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
  return OLD_POOLING.get(mode, mode) if isinstance(mode, str) else mode


def _check_pooling_and_norm(pooling: Module, mode, norm: Module, config: dict) -> None:
  if mode not in ('cls', 'mean'):
    raise UserError(f'{pooling.folder}/config.json: pooling_mode {mode!r} is neither cls nor mean')
  if norm.config.get('dimension') != config['hidden_size']:
    raise UserError(f'{norm.folder}/config.json: dimension is not {config["hidden_size"]}')
  if (eps := config.get('norm_eps', NORM_EPS)) != NORM_EPS:
    raise UserError(f'{norm.folder}: its epsilon is {NORM_EPS}, that of the network {eps}')


def _check_dense(module: Module, output: str, size: int, activations: tuple[str, ...]) -> None:
  c = module.config
  name = c.get('module_output_name') or c.get('module_input_name', 'sentence_embedding')
  problem = (
    (name != output and f'module_output_name {name!r} is not {output}')
    or (c.get('out_features') != size and f'out_features {c.get("out_features")!r} is not {size}')
    or (c.get('use_residual') and 'use_residual is not supported')
    or (
      module.activation() not in activations
      and f'activation_function {c.get("activation_function")!r} is not {" or ".join(activations)}'
    )
  )
  if problem:
    raise UserError(f'{module.folder}/config.json: {problem}')


def _read(file: Path, kind: type):
  return contents.read_json(file, kind, 'fetch the model again')


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
  size = norm.config['dimension']
  out = dense.tensors({'weight': (size, size)} | ({'bias': (size,)} if dense.has_bias() else {}))
  scales = norm.tensors({'weight': (size,), 'bias': (size,)})
  score = last.tensors({'weight': (1, size)} | ({'bias': (1,)} if last.has_bias() else {}))
  bias = score.get('bias', np.zeros(1, np.float32))
  if not has_norm_bias:
    bias = (bias + score['weight'].astype(np.float64) @ scales.pop('bias')).astype(np.float32)
  return {
    **{f'head.dense.{name}': value for name, value in out.items()},
    **{f'head.norm.{name}': value for name, value in scales.items()},
    'classifier.weight': score['weight'],
    'classifier.bias': bias,
  }
