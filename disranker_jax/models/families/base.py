"""The protocol of a model family: everything that the other code needs to know of a kind of model.

Other code never asks which family it has; it reads these attributes. The defaults are those of an
encoder that reads a query and a document as one pair and has a single relevance score.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from disranker_jax.data.prompts import PairPrompt, TextPrompt

if TYPE_CHECKING:
  import flax.linen as nn
  import numpy as np
  import onnx

SERVE_USE = '`disranker serve --model {name}` serves it.'
CROSS_ENCODER_USE = """```python
from sentence_transformers import CrossEncoder

model = CrossEncoder('{name}')
model.predict([('{query}', 'open : Open file and return a stream.')])
```

`disranker serve --model {name}` serves it. `AutoModelForSequenceClassification` of transformers and
servers of cross-encoders load it too."""
PAIR_SCORES = """
The document is `title : summary`. Scores are raw: any real number, larger is better. The model was
trained on pairs of at most {max_len} tokens, of which at most {max_query_len} are the query's.
"""
# What programs put before the names of a model's tensors when it is a part of something larger.
WRAPPERS = ('model.', 'language_model.', 'module.', 'base_model.')


class Config(Protocol):
  """Sizes and constants of a network that other code reads.

  A config is a frozen dataclass, so that it can be static under jit. `heads` and `head_dim` are
  those of attention; only `disranker plan` reads them.
  """

  model_type: str
  vocab: int
  width: int
  layers: int
  heads: int
  head_dim: int
  max_positions: int
  pad_id: int | None


class Family:
  """A kind of model. Subclasses set what differs from these defaults; instances hold no state.

  Network
    causal         positions attend to earlier ones only
    can_be_bidirectional  config.teacher.bidirectional makes them attend to later ones too
    pre_norm       a layer's last product is added to its input, and no norm follows it
    heads          what the network can end in: 'rank' (a score), 'lm' (next-token logits), 'both'
    inputs         keys of a batch that the Flax module takes, in order
    layer_states   whether the module can return the hidden states of all layers
  Hugging Face folders
    architecture   prefix of the class names in transformers, as in BertForSequenceClassification
    prefix         first part of the names of all tensors but the heads', which bare files lack
    tensors        {Hugging Face name: our path}; '{}' is the layer. The tensors of a path below
                   'blocks' are stacked, and those of a path that ends in 'kernel' are transposed.
                   Several paths are parameters that one tensor holds, on its first axis
    absent         {Hugging Face name: value} of tensors that no file has, for example of a layer
                   that lacks a norm; this value fills their place in the stack of layers
    fresh          prefixes of our paths that a base model's file may lack; they start at random
    ignored        regular expression of tensors that are heads of other tasks
    head_modules   the head as a list of kinds of sentence-transformers' modules (see modules.py)
  Exports
    title          what the model card calls the model
    usage          the card's section on use, with {name}, {query}, {architecture}, {max_len},
                   {max_query_len}
    formats        what can be written besides safetensors: keys of exporting.formats.FORMATS
    readers        other libraries that load the folder: keys of exporting.parity.READERS
    served         whether the server can use it: the prompt has `encode_texts`
    prompt_settings  settings that decide how text is read, to be stored in config.json
    vocabulary_tables  paths of the arrays [vocab, ...] that a smaller vocabulary cuts; empty if the
                   vocabulary cannot be reduced
  """

  causal = False
  can_be_bidirectional = False
  pre_norm = False
  heads: tuple[str, ...] = ('rank',)
  inputs: tuple[str, ...] = ('tokens_BT', 'segments_BT', 'positions_BT')
  layer_states = False

  architecture = ''
  prefix = ''
  tensors: ClassVar[dict[str, str | tuple[str, ...]]] = {}
  absent: ClassVar[dict[str, float]] = {}
  fresh: tuple[str, ...] = ()
  ignored = ''
  head_modules: tuple[str, ...] = ()

  title = 'cross-encoder'
  usage = SERVE_USE + PAIR_SCORES
  formats: tuple[str, ...] = ()
  readers: tuple[str, ...] = ()
  served = True
  prompt_settings: tuple[str, ...] = ()
  vocabulary_tables: tuple[str, ...] = ()

  # Network

  def from_hf(self, config: dict) -> Config:
    """The config of a Hugging Face config dict.

    Raises: UserError for options that the network does not compute; KeyError for a missing key.
    """
    raise NotImplementedError

  def to_hf(self, config: Config) -> dict:
    """The Hugging Face config dict of the same network, without architecture and labels."""
    raise NotImplementedError

  def take(self, config: Config, layers: Sequence[int]) -> Config:
    """The config of a student that keeps these layers, in this order."""
    kinds = {'kinds': tuple(config.kinds[i] for i in layers)} if hasattr(config, 'kinds') else {}
    return dataclasses.replace(config, layers=len(layers), **kinds)

  def module(self, config: Config, *, head: str, states: bool, **options) -> nn.Module:
    """The Flax module; `options` are Network's precision, LoRA, remat, scan, attention, sequence.

    It has the methods
      __call__(*inputs) -> hidden_BTD; with `states` hidden_LBTD, the embeddings first
      score(hidden_PD) -> scores_P, fp32
      logits(hidden_PD) -> logits_PV, fp32, where `heads` has 'lm'
      everything(*inputs): touches each parameter once, for init
    """
    raise NotImplementedError

  def bidirectional(self, config: Config) -> Config:
    """The config with attention to later positions too, where `can_be_bidirectional`."""
    raise NotImplementedError

  def is_causal(self, config: Config) -> bool:
    """Whether positions of this model attend to earlier ones only."""
    return self.causal

  def pooling(self, config: Config) -> str:
    """Which hidden state of a document the score is computed from: a key of pooling.POOLINGS."""
    return 'token'

  def position_offset(self, config: Config) -> int:
    """The position of a text's first token; a batch counts from 0."""
    return 0

  def max_len(self, config: Config) -> int:
    """The most tokens that a text can have."""
    return config.max_positions - self.position_offset(config)

  def logits_path(self, config: Config) -> str:
    """The path of the parameter that gives next-token logits, where `heads` has 'lm'."""
    raise NotImplementedError

  def prompt(
    self,
    tokenizer,
    max_len: int,
    max_query_len: int,
    *,
    template: str = '',
    predict: str = 'document',
    reads: str = 'template',
  ) -> PairPrompt | TextPrompt:
    """What turns a query and a document into tokens; `template` and `predict` are TextPrompt's.

    `reads` is config.teacher.input. Without a template a decoder reads a pair.
    """
    return PairPrompt(tokenizer, max_len, max_query_len)

  # Hugging Face folders

  def canonical(self, name: str) -> str:
    """The name in `tensors` of a tensor that older, bare or larger files call `name`."""
    bare = name
    while True:
      for known in (bare, f'{self.prefix}.{bare}'):
        if re.sub(r'\.\d+\.', '.{}.', known) in self.tensors:
          return known
      wrapper = next((each for each in WRAPPERS if bare.startswith(each)), None)
      if not wrapper:
        return name
      bare = bare.removeprefix(wrapper)

  def class_name(self, task: str) -> str:
    """The class of transformers for a task, such as BertForSequenceClassification."""
    return f'{self.architecture}For{task}'

  def scoring_config(self, config: dict) -> dict:
    """The Hugging Face config as a model that gives one score needs it."""
    return config

  @property
  def tokenizer_inputs(self) -> tuple[str, ...]:
    """The arrays that the folder's tokenizer makes for the network."""
    types = ('token_type_ids',) if 'types_BT' in self.inputs else ()
    return ('input_ids', *types, 'attention_mask')

  # Exports

  def readers_of(self, config: Config) -> tuple[str, ...]:
    """The `readers` that compute this model's scores."""
    return self.readers

  def usage_of(self, config: Config) -> str:
    """The `usage` of this model."""
    return self.usage

  def onnx(self, name: str, config: dict, tensors: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The ONNX model of a format in `formats`, from config.json and fp32 tensors by name.

    Raises: KeyError for a tensor that is missing.
    """
    raise NotImplementedError
