"""Opens a model by its name and settings: network, tokenizer, and the parameters of its folder."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.devices import processor, sharding
from disranker_jax.errors import UserError, first_line
from disranker_jax.models import families, hf, recorded, rerankers, tree, weights
from disranker_jax.models.network import Network, from_hf
from disranker_jax.models.settings import defaults

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

# The head that each way of scoring needs (config.teacher.scorer).
HEADS = {'score_head': 'rank', 'query_likelihood': 'lm', 'score_head+query_likelihood': 'both'}

READY_LEN = 1024  # tokens of a pair; some tables have 8,192 or more positions


@dataclasses.dataclass(frozen=True)
class TextModel:
  """A network with its tokenizer and settings: it scores text once it has parameters.

  `settings` is config.teacher, config.student, or another section made by `config.model`.
  """

  settings: ConfigDict
  folder: Path  # the Hugging Face folder that it was opened from
  network: Network
  tokenizer: PreTrainedTokenizerFast

  @property
  def scorer(self) -> str:
    """The way of scoring, a key of HEADS; without a setting, what the network's head can do."""
    usual = 'query_likelihood' if self.network.head == 'lm' else 'score_head'
    return self.settings.get('scorer', usual)

  @property
  def end_ids(self) -> frozenset[int]:
    """The tokens that end a text: those of the tokenizer and of the model's config.json."""
    return frozenset({self.tokenizer.eos_token_id, *self.network.end_ids} - {None})

  def prompt(self, predict: str | None = None) -> PairPrompt | TextPrompt:
    """How the model reads a query and a document.

    `predict` is what a decoder learns to write, 'query' or 'document'; None: as its scorer needs.
    """
    s = self.settings
    if predict is None:
      predict = 'query' if 'query_likelihood' in self.scorer else 'document'
    options = {'template': s.get('template', ''), 'reads': s.get('input', 'template')}
    prompt = self.network.family.prompt(
      self.tokenizer, s.max_len, s.max_query_len, predict=predict, **options
    )
    return rerankers.as_trained(prompt, self.folder)

  def pretrained(self, seed: int, mesh: jax.sharding.Mesh, trainable: str | None = None) -> dict:
    """The folder's parameters on the mesh; `trainable` as of `types`.

    What the folder lacks, a head or LoRA, is random, from `seed` plus the model's own seed.
    """
    shapes = self.network.shapes()
    variables = hf.load(
      self.folder,
      self.network,
      jax.random.key(seed + self.settings.seed),
      layers=list(self.settings.layers) or None,
      dtype=types(self.settings.param_dtype, trainable),
      shardings=tree.flatten(sharding.shardings(shapes, mesh)['params']),
    )
    return sharding.put(variables, mesh)


def types(param_dtype: str, trainable: str | None = None) -> Callable[[str], str]:
  """Gives the type of a base parameter by its path.

  It is `param_dtype`, and float32 for a parameter that a stage is about to train: one whose path
  matches the stage's `trainable`. None: nothing is trained.
  """
  if trainable is None:
    return lambda path: param_dtype
  return lambda path: 'float32' if re.search(trainable, f'params/{path}') else param_dtype


def shapes(network: Network, param_dtype: str, trainable: str | None = None) -> dict:
  """Shapes of the variables in the types in which they are loaded; `trainable` as of `types`."""
  own, type_of = dict(network.shapes()), types(param_dtype, trainable)
  flat = {
    path: jax.ShapeDtypeStruct(x.shape, jnp.dtype(type_of(path)))
    for path, x in tree.flatten(own['params']).items()
  }
  return own | {'params': tree.unflatten(flat)}


def open_model(settings: ConfigDict, head: str = '') -> TextModel:
  """Finds the model `settings.model`, reads its config and tokenizer, but no parameters.

  `head` is by default the one that the settings' way of scoring needs.

  Raises: UserError if the model is not found or not supported, or cannot read so long texts.
  """
  folder = weights.find(settings.model)
  head = head or HEADS[settings.get('scorer', 'score_head')]
  if head != 'lm':
    rerankers.check(folder)
  network = open_network(folder, settings, head)
  if 'query_likelihood' in settings.get('scorer', '') and not network.causal:
    raise UserError(
      f'{folder}: is bidirectional, so it sees the query whose probability scorer='
      f"{settings.scorer!r} needs; name a causal model, or set scorer='score_head'"
    )
  if settings.get('ready'):
    refuse_headless(folder, network)
  check_length(network, settings)
  return TextModel(settings, folder, network, open_tokenizer(folder, network.config.vocab))


def open_exported(folder: Path, max_len: int = 0, precision: str = 'auto') -> TextModel:
  """Opens a ranker's folder, as its export recorded it or from elsewhere; reads no parameters.

  `max_len` is as of `lengths`. Raises: UserError as `open_model` does.
  """
  found, most = recorded.read(folder), lengths(folder, max_len)
  row_len = max(128, most['max_len'])
  settings = defaults(model=str(folder), row_len=row_len, precision=precision, **most)
  settings.update(scorer=found.scorer, template=found.template or '', input=found.input)
  return open_model(settings)


def lengths(folder: Path, max_len: int = 0) -> dict[str, int]:
  """max_len and max_query_len that the model was trained with (config.json), or another max_len.

  A model from elsewhere, which records none, reads what its tokenizer allows, up to READY_LEN
  tokens. Its query may have half of them, because others cut the longer of the two.
  """
  trained = recorded.read(folder)
  most = hf.family(folder).max_len(hf.open_config(folder))
  if not max_len:
    max_len = trained.max_len or min(tokenizer_length(folder), READY_LEN)
  max_len = min(max_len, most)
  query = trained.max_query_len or max(64, max_len // 2)
  return {'max_len': max_len, 'max_query_len': min(query, max_len - 4)}


def tokenizer_length(folder: Path) -> int:
  """The most tokens by the folder's tokenizer_config.json; READY_LEN if it does not say."""
  path = folder / 'tokenizer_config.json'
  try:
    said = json.loads(path.read_text(encoding='utf-8')).get('model_max_length')
  except (OSError, ValueError, AttributeError, RecursionError):
    return READY_LEN
  return int(said) if isinstance(said, (int, float)) and said >= 8 else READY_LEN


def check_length(network: Network, settings: ConfigDict) -> None:
  """Raises: UserError if the model cannot read texts as long as the settings allow."""
  longest = network.family.max_len(network.config)
  if settings.max_len > longest:
    raise UserError(
      f'max_len={settings.max_len}: {settings.model!r} reads at most {longest} tokens'
    )


def is_language_model(name: str | Path) -> bool:
  """Whether a model can compute next-token logits. Raises: UserError as `open_model` does."""
  config = hf.open_config(weights.find(name))
  return 'lm' in families.find(config.model_type).heads


def refuse_headless(folder: Path, network: Network) -> None:
  """Raises: UserError if the folder lacks a part of the head that gives the score."""
  if missing := hf.lacking(folder, network):
    raise UserError(
      f'{folder}: has no head of its own that gives a score ({", ".join(missing)} missing); name a '
      'reranker, or train the head with labels'
    )


def open_network(folder: Path, settings: ConfigDict, head: str = 'rank') -> Network:
  """The network of a folder's config.json, to be run as the settings say."""
  return from_hf(
    folder,
    precision=precision(settings.precision),
    lora_rank=settings.lora_rank,
    lora_alpha=settings.lora_alpha,
    remat=settings.remat,
    scan=settings.scan_layers,
    layers=list(settings.layers) or None,
    head=head,
    attention=settings.attention,
    sequence=settings.shard_sequence,
    share_prefixes=settings.share_prefixes,
    bidirectional=settings.bidirectional,
    pooling=settings.pooling,
  )


def open_tokenizer(folder: Path, rows: int | None = None) -> PreTrainedTokenizerFast:
  """A folder's tokenizer, without truncation and padding: prompts cut texts themselves.

  `rows` is the size of the model's embedding table.

  Raises: UserError if there is none with a tokenizer.json, or if the table lacks one of its tokens.
  """
  files = [file for name in hf.TOKENIZER_FILES if (file := Path(folder) / name).exists()]
  tokenizer = _tokenizer(folder, rows, tuple((f.name, f.stat().st_mtime_ns) for f in files))
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.backend_tokenizer.no_padding()
  return tokenizer


@functools.lru_cache(maxsize=4)  # opening a large one takes seconds, and several stages do it
def _tokenizer(folder: Path, rows: int | None, files: tuple) -> PreTrainedTokenizerFast:
  from transformers import AutoTokenizer  # imported late: it imports torch where that is installed

  try:
    # Never the folder's own code: for an unknown model_type transformers would ask at the terminal.
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
  except Exception as e:  # the parsers of its files raise many types
    raise UserError(f'{folder}: no usable tokenizer: {first_line(e)}') from e
  if not tokenizer.is_fast:
    raise UserError(f'{folder}: needs a tokenizer.json (a fast tokenizer)')
  tokens = max(tokenizer.get_vocab().values()) + 1
  if rows is not None and tokens > rows:
    raise UserError(
      f'{folder}: the tokenizer has {tokens} tokens, the embedding table only {rows}; restore the '
      'tokenizer that the model was trained with, or resize the table and train its new rows'
    )
  tokenizer.model_max_length = 1 << 30
  return tokenizer


def precision(name: str, platform: str | None = None) -> str:
  """Resolves 'auto' for a platform ('cpu', 'tpu', 'gpu'; None: the default backend's).

  It is bfloat16 on an accelerator. A CPU is fast only with fp32 sums; it takes bf16 operands if its
  processor multiplies them faster.
  """
  if name != 'auto':
    return name
  if (platform or jax.default_backend()) != 'cpu':
    return 'bfloat16'
  return 'bfloat16_dots' if processor.multiplies_bf16_faster() else 'float32'


def merged(network: Network, variables: dict) -> tuple[Network, dict]:
  """The network with its LoRA adapters added to fp32 kernels, which is faster; arrays or shapes.

  Adapters of bf16 kernels stay separate, because a sum in bf16 would round them away.
  """
  kernels = [v for k, v in tree.flatten(variables['params']).items() if k.endswith('kernel')]
  if not network.lora_rank or any(k.dtype != 'float32' for k in kernels):
    return network, variables
  shapes = isinstance(kernels[0], jax.ShapeDtypeStruct)
  add = functools.partial(jax.eval_shape, network.merge_lora) if shapes else network.merge_lora
  params = add(variables['params'], variables['lora'])
  return dataclasses.replace(network, lora_rank=0), {'params': params}
