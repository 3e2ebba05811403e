"""The Python API: an exported model as an object that scores and ranks texts.

`disranker rerank`, the server and the export's parity check score through this class.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from disranker_jax.data.encoded import Encoded
from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.models import hf, recorded, rerankers, weights
from disranker_jax.models.load import open_exported, refuse_headless
from disranker_jax.models.network import from_hf
from disranker_jax.rankers import backends

# A text as people have it: a string, (title, summary), {'title': ..., 'summary': ...}, or an object
# with these two attributes.
Text = str | tuple[str, str] | Mapping[str, str] | Document


def load(
  folder: str | Path, backend: str = 'auto', max_len: int | None = None, *, fast: bool = False
) -> 'LoadedRanker':
  """Loads an exported model, once; everything is compiled when this returns.

  Example:
    import disranker_jax
    ranker = disranker_jax.load('runs/quickstart/export/student')
    ranker.rank('open a file', ['open : Open a file.', 'len : Number of items.'], top=1)
    # [(0, 3.1)]

  Args:
    folder: a model folder that the stage `export` wrote, a ready reranker's folder, or its name.
    backend: 'onnx' (ONNX Runtime on the CPU), 'onnx-int8' (8-bit kernels), 'jax' (any device), or
      'auto': 'jax' on an accelerator and for decoders, else 'onnx', which starts sooner.
    max_len: tokens per pair, if not the number that the model was trained with.
    fast: permits 8 bits for 'auto' and bfloat16 for 'jax'. By default scores are exact in fp32.

  Raises:
    UserError: the folder is not an exported model, or an argument does not fit it.
  """
  folder = locate(folder)
  check(folder)
  longest = hf.family(folder).max_len(hf.open_config(folder))
  if max_len is not None and not 5 <= max_len <= longest:
    raise UserError(f'max_len {max_len}: {folder} takes from 5 to {longest} tokens')
  model = open_exported(folder, max_len or 0, 'auto' if fast else 'float32')
  prompt = model.prompt()  # first, because the backend may compile for long
  return LoadedRanker(prompt, backends.open_backend(model, backend, fast), fusion_of(folder))


def locate(name: str | Path) -> Path:
  """The folder of a path, or of a model's name. Raises: UserError if no model has the name."""
  if Path(name).exists() or str(name).startswith(('/', '.', '~')):
    return Path(name).expanduser()
  return weights.find(name)


def fusion_of(folder: Path) -> Fusion | None:
  """How to fuse with the first stage, if the export recorded it. Raises: UserError."""
  found = recorded.read(folder).fusion
  return None if found is None else Fusion.from_dict(found, f'{folder}/config.json')


def weighted(recorded: Fusion | None, weight: float | None, where: str, signal: str = '') -> Fusion:
  """The recorded fusion, with another weight if one is given.

  Args:
    signal: what is known of the first stage, as in Fusion; '': it can be either, so that the
      recorded one decides.

  Raises: UserError without both, or for a recorded weight that was chosen for the other signal.
  """
  if weight is not None:
    signal = signal or (recorded.signal if recorded else 'scores')
    return Fusion(fusion.check_weight(weight, where), signal)
  if recorded is None:
    raise UserError(
      f'{where}: the model folder records no weight for the first stage; give one, such as '
      f'{fusion.DEFAULT:g}'
    )
  if signal not in ('', recorded.signal):
    raise UserError(
      f'{where}: the weight that the model folder records is for first_{recorded.signal}; give '
      f'these in the place of first_{signal}, or a weight'
    )
  return recorded


def check(folder: Path) -> None:
  """Raises: UserError naming what the folder of a ranker lacks."""
  if not (folder / 'config.json').is_file():
    raise UserError(f'{folder}: has no config.json; name an exported model folder')
  # Without any of these files transformers makes an empty tokenizer.
  if not any((folder / n).is_file() for n in ('tokenizer.json', 'vocab.txt', 'tokenizer.model')):
    raise UserError(f'{folder}: has no tokenizer.json; name an exported model folder')
  for file in hf.weight_files(folder):
    if not file.is_file():
      raise UserError(f'{file} is missing; name an exported model folder')
  rerankers.check(folder)
  config = hf.read_config(folder)
  found = recorded.read(folder)
  if found.task != recorded.RANKING:
    what = f'was exported for {found.task!r:.40} and does not rank'
    raise UserError(f'{folder}: {what}; name a ranker')
  classifier = rerankers.is_classifier(config)
  if not classifier and found.template is None:
    what = rerankers.architecture(config) or config['model_type']
    raise UserError(
      f'{folder}: {what} is not a sequence classifier with one label; name an exported model folder'
    )
  if classifier:
    refuse_headless(folder, from_hf(folder))


class LoadedRanker:
  """An exported model, ready to score; made by `disranker_jax.load`.

  A text is a string, scored as transformers and sentence-transformers score it; or a document with
  title and summary, as a tuple, a dict or an object, which is scored as 'title : summary'. (A
  decoder reads title and summary by its template, and a string as a summary without a title.)
  Texts longer than the model's length lose their end, queries beyond `max_query_len` too.

  Methods may be called from several threads. Other numbers or lengths of texts compile nothing.
  """

  def __init__(self, prompt: PairPrompt | TextPrompt, backend, fusion: Fusion | None = None):
    self.prompt, self.backend, self.fusion = prompt, backend, fusion
    self._pool = concurrent.futures.ThreadPoolExecutor(backend.workers, 'score')

  def rank(
    self,
    query: str,
    texts: Iterable[Text],
    top: int | None = None,
    *,
    first_scores: Sequence[float | None] | None = None,
    first_ranks: Sequence[int | None] | None = None,
    fuse: float | None = None,
  ) -> list[tuple[int, float]]:
    """(index in `texts`, score) of the `top` best texts (None: all), best first.

    Equal scores are ordered by index. Scores are raw: any real number, larger is better.

    With `first_scores` or `first_ranks`, the first stage's scores or ranks (1 = best) of the texts,
    None for a text that it did not find, the order is by fused scores: see evaluation/fusion.py.
    `fuse` is the model's weight, 0 to 1; None: the one that the export recorded.

    Raises:
      TypeError: the query is not a string, or a text is not a `Text`.
      UserError: `top` is negative, an argument of the fusion is wrong, the folder has no weight or
        one for the other signal, or the model's parameters are broken.
    """
    if top is not None and top < 0:
      raise UserError(f'top {top}: must be 0 or more')
    if isinstance(texts, (str, Mapping)):
      raise TypeError(f'texts must be a list of texts, not one {type(texts).__name__}')
    texts = list(texts)
    first = first_stage(len(texts), first_scores, first_ranks, fuse)
    signal = 'scores' if first_ranks is None else 'ranks'
    how = None if first is None else weighted(self.fusion, fuse, 'fuse', signal)
    scores = self.score((query, text) for text in texts)
    if how is not None:
      scores = fused(scores, first, how.weight)
    return [(i, float(scores[i])) for i in order(scores)[:top]]

  def score(self, pairs: Iterable[tuple[str, Text]]) -> np.ndarray:
    """Raw scores of (query, text) pairs, in their order: float32 [pairs]. Raises: as `rank`."""
    rows = [as_pair(pair, i) for i, pair in enumerate(pairs)]
    # Equal pairs are scored once, so that rounding in different batches cannot order them.
    places = {row: n for n, row in enumerate(dict.fromkeys(rows))}
    encoded = self.encode(list(places))
    parts = backends.divide([len(e) for e in encoded], self.backend)
    calls = self._pool.map(lambda part: self.backend.score([encoded[i] for i in part])[0], parts)
    scores = np.zeros(len(encoded), np.float32)
    for part, values in zip(parts, calls, strict=True):
      scores[part] = values
    if not np.isfinite(scores).all():
      raise UserError('the model gives scores that are not finite; its parameters are broken')
    return scores[np.array([places[row] for row in rows], int)]

  def encode(
    self,
    pairs: Sequence[tuple[str, str | Document]],
    max_text_tokens: int = 0,
    max_query_tokens: int = 0,
    max_tokens: int = 0,
  ) -> list[Encoded]:
    """Token ids of pairs. Limits that are not 0 shorten the text, the query, and the whole pair."""
    prompt = self.prompt
    shorter = {
      name: min(most, getattr(prompt, name))
      for name, most in (('max_len', max_tokens), ('max_query_len', max_query_tokens))
      if most
    }
    prompt = dataclasses.replace(prompt, **shorter) if shorter else prompt
    options = {'most': max_text_tokens} if max_text_tokens else {}
    encoded = []
    for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
      encoded += prompt.encode_texts(query, [text for _, text in group], **options)
    return encoded


def first_stage(
  count: int, scores: Sequence | None, ranks: Sequence | None, fuse: float | None
) -> dict[int, float] | None:
  """{index: first-stage score} of `count` texts; None if there is nothing to fuse with.

  Raises: UserError naming `first_scores`, `first_ranks` or `fuse` if it is wrong.
  """
  if fuse is not None:
    fusion.check_weight(fuse, 'fuse')
  if scores is not None and ranks is not None:
    raise UserError('first_scores: cannot be used with first_ranks; give one of them')
  if scores is not None:
    return fusion.check_signal(scores, count, 'first_scores', 'scores')
  if ranks is not None:
    return fusion.check_signal(ranks, count, 'first_ranks', 'ranks')
  if fuse is not None:
    raise UserError('fuse: there is nothing to fuse with; give first_scores or first_ranks')
  return None


def fused(scores: np.ndarray, first: Mapping[int, float], weight: float) -> np.ndarray:
  """The fused scores of one query's texts: float64, from 0 to 1."""
  values = fusion.convex(dict(enumerate(scores.tolist())), first, weight)
  return np.array([values[i] for i in range(len(scores))], np.float64)


def as_pair(pair, index: int) -> tuple[str, str | Document]:
  """A checked (query, text). Raises: TypeError naming the pair's index."""
  if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
    raise TypeError(f'pair {index}: must be (query, text), not {type(pair).__name__}')
  query, text = pair
  if not isinstance(query, str):
    raise TypeError(f'pair {index}: the query must be a string, not {type(query).__name__}')
  match text:
    case str():
      return query, text
    case (
      (str(title), str(summary))
      | {'title': str(title), 'summary': str(summary)}
      | object(title=str(title), summary=str(summary))
    ):
      return query, Document('', title, summary)
  raise TypeError(
    f'text {index}: must be a string, (title, summary), or a document with title and summary, '
    f'not {type(text).__name__}'
  )


def order(scores) -> list[int]:
  """Indices by descending score; equal scores keep their order."""
  return np.argsort(-np.asarray(scores), kind='stable').tolist()
