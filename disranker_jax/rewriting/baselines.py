"""Rewrites without a trained rewriter, which it has to beat, and the ceiling of its samples.

rm3      words of the documents that BM25 finds, as weights for `BM25.top_weighted`
nearest  words of the documents of the most similar training queries, as text
best_of  the best of several rewrites, if the judgements chose (an oracle)
"""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from disranker_jax.data import sources
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document
from disranker_jax.rewriting import queries
from disranker_jax.rewriting.queries import Query


def rm3(
  asked: Sequence[Query],
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
    feedback: how many documents are read, none that the query excludes; their scores are their
      weights.
    terms: how many of their words are added, those with the highest mean share of a document.
    weight: of these words together; that of the query's own is the rest of 1.

  Source: the relevance model RM3, Abdul-Jaleel et al., TREC 2004.
  """
  texts, ids = [query.text for query in asked], [doc.doc_id for doc in documents]
  found = queries.found(index.top, ids, asked, texts, feedback)
  needed = set().union(*found)
  read = {d.doc_id: f'{d.title} {d.summary}' for d in documents if d.doc_id in needed}
  words = dict(zip(read, index.analyse(list(read.values())), strict=True))
  expanded = []
  for own, top in zip(index.analyse(texts), found, strict=True):
    relevance: collections.Counter[str] = collections.Counter()
    for doc_id, score in top.items():
      for word, count in collections.Counter(words[doc_id]).items():
        relevance[word] += score * count / len(words[doc_id])
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

  Those of the title, if the source does not know better ones.
  """
  topics = sources.open(address).topics()
  return (lambda doc: topics[doc.doc_id]) if topics else title


def nearest(
  texts: Sequence[str],
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
  for top in index.top(texts, near):
    lent = [words(doc) for i, _ in top for doc in training[i].positives]
    counts = collections.Counter(
      word for each in index.analyse(lent) for word in dict.fromkeys(each)
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
