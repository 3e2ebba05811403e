"""Rewrites without a trained rewriter, which it has to beat, and the ceiling of its samples.

rm3      words of the documents that BM25 finds, as weights for `BM25.top_weighted`
nearest  words of the documents of the most similar training queries, as text
best_of  the best of several rewrites, if the judgements chose (an oracle)
"""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from disranker_jax.data import python_docs, sources
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.rewriting.queries import Query


def rm3(
  queries: Sequence[str],
  index: BM25,
  documents: Sequence[Document],
  *,
  feedback: int = 10,
  terms: int = 10,
  weight: float = 0.1,
) -> list[dict[str, float]]:
  """{word: weight} of each query with the words of the documents that it finds.

  Args:
    index: of `documents`.
    feedback: how many documents are read; their scores are their weights.
    terms: how many of their words are added, those with the highest mean share of a document.
    weight: of these words together; that of the query's own is the rest of 1.

  Source: the relevance model RM3, Abdul-Jaleel et al., TREC 2004.
  """
  found = index.top(queries, feedback)
  texts = list(
    {i: f'{documents[i].title} {documents[i].summary}' for top in found for i, _ in top}.items()
  )
  words = dict(zip((i for i, _ in texts), index.analyse([text for _, text in texts]), strict=True))
  expanded = []
  for own, top in zip(index.analyse(queries), found, strict=True):
    relevance: collections.Counter[str] = collections.Counter()
    for i, score in top:
      for word, count in collections.Counter(words[i]).items():
        relevance[word] += score * count / len(words[i])
    best = dict(relevance.most_common(terms))
    mixed = collections.Counter()
    for model, share in ((collections.Counter(own), 1 - weight if best else 1.0), (best, weight)):
      total = sum(model.values())
      for word, value in model.items():
        mixed[word] += share * value / total
    expanded.append(dict(mixed))
  return expanded


def title(doc: Document) -> str:
  return doc.title


def words_at(address: str) -> Callable[[Document], str]:
  """The words of documents at an address that similar queries have in common, for `nearest`.

  Those of the module in python_docs, because a page's own name is of no use to other queries; the
  title elsewhere.
  """
  scheme, rest = sources.split(address)
  if scheme != 'python_docs':
    return title
  modules = python_docs.module_words(sources.packages(rest))
  return lambda doc: modules[doc.doc_id]


def nearest(
  queries: Sequence[str],
  training: Sequence[Query],
  *,
  words: Callable[[Document], str] = title,
  near: int = 1,
  terms: int = 5,
) -> list[str]:
  """The most frequent words of the positive documents of the most similar training queries.

  This is what can be learned without generalising: '' where no training query has a common word.
  Similar is what BM25 finds among the texts of the queries.

  Args:
    words: document -> the words that count, such as those of its title or module.
    near: how many training queries.
    terms: how many words. Of equally frequent ones the first.
  """
  index = BM25([Document(query.query_id, query.text, '') for query in training])
  rewrites = []
  for top in index.top(queries, near):
    texts = [words(doc) for i, _ in top for doc in training[i].positives]
    counts = collections.Counter(
      word for each in index.analyse(texts) for word in dict.fromkeys(each)
    )
    rewrites.append(' '.join(word for word, _ in counts.most_common(terms)))
  return rewrites


def best_of(values_GS) -> np.ndarray:
  """The index of each query's best sample, [G]; of equal ones the first.

  Args:
    values_GS: a metric or a reward of each sample, measured with the judgements: no system knows
      it, so this is the ceiling of choosing.
  """
  return np.argmax(np.asarray(values_GS), axis=1)
