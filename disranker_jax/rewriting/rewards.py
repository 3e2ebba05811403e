"""How good a rewrite is: by embeddings, by a search, by rules; several are added by weight.

`make` reads the config; a Reward is a function of texts. What depends on the query alone, such as
the vectors of its documents and its own rank, is computed once for all its samples and steps.

Shapes: G queries, S samples of each.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.progress import amount
from disranker_jax.rewriting import embedder, engines, queries
from disranker_jax.rewriting.queries import Query

FACTOR = 10.0  # of the gain in similarity, as in the paper
DEPTH = 1000  # ranks of a search that count
TERM = re.compile(r'(?:(?P<weight>\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?(?P<name>\w+)')

# values [G, S] of the rewrites of each query; those that failed a rule are ''.
Term = Callable[[Sequence[Query], Sequence[Sequence[str]]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class RewardResult:
  """The rewards of the samples of some queries.

  rewards_GS  float32, finite
  parts       {term: [G, S]} before weights, 0 for a sample that failed
  failed_GS   which samples have the failure value, because a rule was broken
  """

  rewards_GS: np.ndarray
  parts: Mapping[str, np.ndarray]
  failed_GS: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reward:
  """The weighted sum of terms; rewrites that break a rule get the value `failure` instead.

  The rules: a rewrite has a letter or digit, can be written as UTF-8, has at most `max_words` words
  (0: any number), and its terms are finite.
  """

  terms: Mapping[str, tuple[float, Term]]  # {name: (weight, function)}
  failure: float = -1.0
  max_words: int = 0

  def __call__(self, queries: Sequence[Query], rewrites: Sequence[Sequence[str]]) -> RewardResult:
    """The rewards of rewrites, equally many for each query."""
    if len(queries) != len(rewrites) or len(set(map(len, rewrites))) > 1:
      raise ValueError(
        f'{amount(len(queries), "query has", "queries have")} rewrites '
        f'{[len(each) for each in rewrites]}'
      )
    failed_GS = np.array([[self._fails(text) for text in each] for each in rewrites], bool)
    valid = [
      ['' if fails else text for text, fails in zip(*pair, strict=True)]
      for pair in zip(rewrites, failed_GS, strict=True)
    ]
    values = {name: term(queries, valid) for name, (_, term) in self.terms.items()}
    for value_GS in values.values():
      failed_GS |= ~np.isfinite(value_GS)
    parts = {
      name: np.where(failed_GS, 0, value_GS).astype(np.float32) for name, value_GS in values.items()
    }
    total_GS = sum(weight * parts[name] for name, (weight, _) in self.terms.items())
    rewards_GS = np.where(failed_GS, self.failure, total_GS).astype(np.float32)
    return RewardResult(rewards_GS, parts, failed_GS)

  def _fails(self, text: str) -> bool:
    if not queries.has_words(text) or (self.max_words and len(text.split()) > self.max_words):
      return True
    try:
      text.encode()
    except UnicodeEncodeError:
      return True
    return False


class Embedding:
  """FACTOR times the mean gain in cosine similarity to the query's positive documents.

  The paper embeds the rewrite alone; with mode 'append' the query is part of what is embedded, once
  (repetitions are weights for BM25 only).

  Source: TongSearch QR, arXiv:2506.11603, scripts/train/reward.py.

  Args:
    embed: texts -> vectors of length 1, [N, D].
  """

  def __init__(self, embed: Callable[[Sequence[str]], np.ndarray], mode: str = 'append'):
    self._embed, self._mode = embed, mode
    self._vectors: dict[str, np.ndarray] = {}  # of texts of queries and documents
    # Of each query: the mean of its documents' vectors, and its own similarity to it.
    self._known: dict[tuple[str, str], tuple[np.ndarray, float]] = {}

  def __call__(self, queries_G: Sequence[Query], rewrites: Sequence[Sequence[str]]) -> np.ndarray:
    self._learn([query for query in queries_G if query.key not in self._known])
    texts = [
      queries.searched(query.text, text, self._mode, 1)
      for query, each in zip(queries_G, rewrites, strict=True)
      for text in each
    ]
    vectors = np.split(self._embed(texts), len(queries_G))
    known = (self._known[query.key] for query in queries_G)
    gains = [of_query @ mean - own for of_query, (mean, own) in zip(vectors, known, strict=True)]
    return FACTOR * np.stack(gains)

  def _learn(self, new: Sequence[Query]) -> None:
    """Embeds the texts of queries and of their documents that are not known yet."""
    of_docs = [[document_text(doc) for doc in query.positives] for query in new]
    texts = dict.fromkeys([*(query.text for query in new), *itertools.chain(*of_docs)])
    if missing := [text for text in texts if text not in self._vectors]:
      self._vectors |= zip(missing, self._embed(missing), strict=True)
    for query, docs in zip(new, of_docs, strict=True):
      mean = np.mean([self._vectors[text] for text in docs], axis=0)
      self._known[query.key] = mean, float(self._vectors[query.text] @ mean)


class Ranking:
  """The gain in nDCG@DEPTH of the positive documents when an engine searches the rewrite.

  For one positive document the nDCG is 1 / log2(1 + its rank). So deep a cut-off gives most
  rewrites of a query different values.

  Args:
    index: one of engines.ENGINES, over `documents` in this order.
  """

  def __init__(self, index, documents: Sequence[Document], mode: str = 'append', repeat: int = 2):
    self._index, self._mode, self._repeat = index, mode, repeat
    self._ids = [doc.doc_id for doc in documents]
    self._own: dict[tuple[str, str], float] = {}

  def __call__(self, queries_G: Sequence[Query], rewrites: Sequence[Sequence[str]]) -> np.ndarray:
    new = list({query.key: query for query in queries_G if query.key not in self._own}.values())
    own = self._values(new, [query.text for query in new])
    self._own |= {query.key: value for query, value in zip(new, own, strict=True)}
    pairs = [
      (query, queries.searched(query.text, text, self._mode, self._repeat))
      for query, each in zip(queries_G, rewrites, strict=True)
      for text in each
    ]
    values_GS = np.reshape(self._values(*zip(*pairs, strict=True)), (len(queries_G), -1))
    return values_GS - np.array([[self._own[query.key]] for query in queries_G])

  def _values(self, queries_N: Sequence[Query], texts: Sequence[str]) -> list[float]:
    """nDCG of each text as a search of its query."""
    rankings = queries.found(self._top, self._ids, queries_N, texts, DEPTH)
    pairs = zip(queries_N, rankings, strict=True)
    return [metrics.ndcg(ranking, query.relevant, DEPTH) for query, ranking in pairs]

  def _top(self, texts: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
    """Equal texts are searched once."""
    different = list(dict.fromkeys(texts))
    by_text = dict(zip(different, self._index.top(different, k), strict=True))
    return [by_text[text] for text in texts]


def repetition(queries_G: Sequence[Query], rewrites: Sequence[Sequence[str]]) -> np.ndarray:
  """Minus the share of a rewrite's words that it has before: 0 without repetition."""
  return np.array([[-_repeated(text) for text in each] for each in rewrites])


def _repeated(text: str) -> float:
  words = text.lower().split()
  return 1 - len(set(words)) / len(words) if words else 0.0


def document_text(doc: Document) -> str:
  """What is embedded of a document: its title and summary, as far as it has both."""
  return ' '.join(filter(None, (doc.title.strip(), doc.summary.strip())))


NAMES = ('embedding', 'bm25', 'repetition')


def parse(text: str) -> dict[str, float]:
  """{term: weight} of a setting such as 'embedding+0.5*bm25'. Raises: UserError."""
  weights: dict[str, float] = {}
  for part in text.split('+'):
    match = TERM.fullmatch(part.strip())
    if not match or match['name'] not in NAMES or match['name'] in weights:
      raise UserError(
        f'config.rewrite.reward={text!r}: cannot use {part.strip()!r}; write each of '
        f"{', '.join(NAMES)} at most once, with weights as in 'embedding+0.5*bm25'"
      )
    weights[match['name']] = float(match['weight'] or 1)
  return weights


def make(settings, documents: Sequence[Document], index=None) -> Reward:
  """The reward of `config.rewrite`.

  Args:
    documents: the collection that is searched, for the term 'bm25'.
    index: of these documents by the engine of the settings, if there is one already.
  """
  s, terms = settings, {}
  for name, weight in parse(s.reward).items():
    if name == 'embedding':
      term = Embedding(embedder.shared(s.embedder), s.mode)
    elif name == 'bm25':
      index = index or engines.ENGINES[s.engine](documents)
      term = Ranking(index, documents, s.mode, s.repeat)
    else:
      term = repetition
    terms[name] = weight, term
  return Reward(terms, s.failure, s.max_words)
