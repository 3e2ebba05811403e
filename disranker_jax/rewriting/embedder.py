"""An encoder as it comes, without training: one vector per text, for the reward by similarity."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.data import tokenising
from disranker_jax.data.batches import Shape
from disranker_jax.data.bundles import Bundle
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.pool import pack
from disranker_jax.data.prompts import PairPrompt
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import modules, pooling, weights
from disranker_jax.models.load import open_model, open_network
from disranker_jax.models.settings import defaults
from disranker_jax.progress import amount, part_of, say

TOKENS = 2048  # of a batch, if no text is longer; 64 rewrites of 24 tokens are one batch
MAX_LEN = 256  # tokens of a text with its special tokens, where the model does not say it


class Embedder:
  """Texts to vectors of length 1, as sentence-transformers computes them.

  It runs on one device of this process; of several, process 0 computes the rewards.

  Args:
    name: an encoder that embeds texts: a folder or a name of docs/models.md. Its vector is that of
      its first token where its modules.json says so, else the mean of all its tokens.
    max_len: longer texts are cut; a message is printed once. By default what the model says in
      sentence_bert_config.json, else 256, and no more than it has positions.

  Raises: UserError for a decoder, and for a longer `max_len` than the model reads.
  """

  def __init__(self, name: str, max_len: int = 0, precision: str = 'auto'):
    max_len = max_len or _max_len(name)
    settings = defaults(model=name, max_len=max_len, row_len=max_len, precision=precision)
    model = open_model(settings, 'rank')
    if model.network.causal:
      raise UserError(f'{name}: is a decoder; an encoder embeds texts, such as minilm-l6')
    self.name, self._tokenizer, self._network = name, model.tokenizer, model.network
    self._max_len, self._cut = max_len, False
    before, _, after, _ = PairPrompt(model.tokenizer, max_len, max_len).frame
    self._ends = before, after
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
    self._variables = model.pretrained(0, mesh)
    mode = modules.embedding(model.folder)
    self._pooling = pooling.token if mode == 'cls' else pooling.mean
    self._embed = jax.jit(self._vectors)

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """The vectors of one or more texts: [N, D] fp32. Equal texts are computed once."""
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    vectors: list[np.ndarray] = [None] * len(places)
    rows = self._encode(list(places))
    encoded = ((Bundle.alone(each), [i]) for i, each in enumerate(rows))
    for keys, batch in pack(encoded, shape_of(max(len(each.ids) for each in rows), self._max_len)):
      found_XD = np.asarray(self._embed(self._variables, batch))
      for key, vector in zip(keys, found_XD, strict=False):
        vectors[key] = vector
    return np.stack([vectors[places[text]] for text in texts])

  def _encode(self, texts: list[str]) -> list[Encoded]:
    before, after = self._ends
    room = self._max_len - len(before) - len(after)
    rows = tokenising.text_ids(self._tokenizer, texts)
    if not self._cut and (longer := sum(len(ids) > room for ids in rows)):
      self._cut = True
      say(
        f'{self.name}: {part_of(longer, len(rows), "text", "texts", "has", "have")} more than '
        f'{amount(self._max_len, "token")}; only these many are embedded, of later texts too'
      )
    return [
      Encoded(ids := np.array([*before, *row[:room], *after], np.int32), np.zeros_like(ids), 0)
      for row in rows
    ]

  def _vectors(self, variables, batch) -> jax.Array:
    hidden_BTD = self._network.hidden(variables, batch)
    vectors_XD = self._pooling(hidden_BTD, batch)[0].astype(jnp.float32)
    norms_X1 = jnp.linalg.norm(vectors_XD, axis=-1, keepdims=True)
    return vectors_XD / jnp.maximum(norms_X1, 1e-12)


def shape_of(longest: int, most: int) -> Shape:
  """The batch shape of texts with at most `longest` tokens, of a model that reads `most`.

  Few row lengths, because each is compiled; no longer than needed, because attention takes memory
  by the square of the length.
  """
  row_len = MAX_LEN
  while row_len < longest:
    row_len *= 2
  row_len = min(row_len, most)
  return Shape(max(1, TOKENS // row_len), row_len, 1)


def _max_len(name: str) -> int:
  """The tokens that a model's own texts have at most."""
  folder = weights.find(name)
  network = open_network(folder, defaults(model=name))
  most = network.family.max_len(network.config)
  return min(modules.max_tokens(folder) or MAX_LEN, most)


@functools.lru_cache(maxsize=2)
def shared(name: str) -> Embedder:
  """The embedder of a name, opened once in a process: baselines and rewards use the same."""
  return Embedder(name)
