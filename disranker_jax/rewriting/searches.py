"""What a search finds with rewrites of held-out queries, measured while a rewriter learns."""

import math
from collections.abc import Sequence

import numpy as np

from disranker_jax import escaping
from disranker_jax.data.records import Document
from disranker_jax.devices import processes
from disranker_jax.evaluation import metrics
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run
from disranker_jax.rewriting import queries, rewards
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.rewriter import Rewriter
from disranker_jax.training import optimizer
from disranker_jax.training.validation import STEP

NDCG, REWARD, DEPTH = 'ndcg@10', 'reward', 10


class Searches:
  """How the engine finds the documents of held-out queries by their likeliest rewrites; a Measure.

  nDCG@10 is of a search in the whole collection. samples.md has the rewrites of the last call, and
  `by_query` {name: values_Q} its values.
  """

  names = (NDCG, REWARD)

  def __init__(
    self,
    run: Run,
    model: TextModel,
    measured: Sequence[Query],
    documents: Sequence[Document],
    index,
    reward: rewards.Reward,
  ):
    c = run.config.rewrite
    self._c, self._asked, self._index, self._reward = c, list(measured), index, reward
    self._ids = [doc.doc_id for doc in documents]
    self._rewriter = Rewriter.of(model, c, run.mesh, rows=c.prompts * c.samples)
    self._file = run.folder('rewrite') / 'samples.md'
    self.by_query: dict[str, np.ndarray] = {}
    self.queries = self.labelled = len(measured)
    self.made_of = manifest.digest([[q.text, sorted(q.relevant.items())] for q in measured])
    # A pass over `rows` queries takes about as long as a step of training.
    self.batches = STEP * math.ceil(len(measured) / (c.prompts * c.samples))

  def __call__(self, variables: dict) -> dict[str, float]:
    texts = self._rewriter(optimizer.own(variables), [query.text for query in self._asked])
    # The values decide what is kept and when training ends, in all processes alike.
    self.by_query = processes.of_first('searches', lambda: self._measured(texts))
    return {name: float(values_Q.mean()) for name, values_Q in self.by_query.items()}

  def _measured(self, rewrites: Sequence[str]) -> dict[str, np.ndarray]:
    """The values of each query; writes samples.md."""
    found = self._reward(self._asked, [[text] for text in rewrites]).rewards_GS[:, 0]
    gains = self._searched(rewrites)
    self._write(rewrites, found, gains)
    return {NDCG: np.array(gains), REWARD: np.asarray(found, np.float64)}

  def _searched(self, rewrites: Sequence[str]) -> list[float]:
    """nDCG@10 of each query with its rewrite."""
    c, asked = self._c, self._asked
    pairs = zip(asked, rewrites, strict=True)
    what = [queries.searched(query.text, text, c.mode, c.repeat) for query, text in pairs]
    # As deep as the reward: which documents of equal scores are the first ten is decided here.
    rankings = queries.found(self._index.top, self._ids, asked, what, rewards.DEPTH)
    return [
      metrics.ndcg(ranking, query.relevant, DEPTH)
      for query, ranking in zip(asked, rankings, strict=True)
    ]

  def _write(
    self, rewrites: Sequence[str], values: Sequence[float], gains: Sequence[float]
  ) -> None:
    lines = ['# The likeliest rewrites of some queries', '']
    rows = zip(self._asked, rewrites, values, gains, strict=True)
    for query, rewrite, value, gain in list(rows)[: self._c.shown]:
      lines.append(f'- {escaping.code(query.text)}')
      lines.append(f'  - {escaping.code(rewrite)}: reward {value:.3g}, nDCG@10 {gain:.3g}')
    self._file.parent.mkdir(parents=True, exist_ok=True)
    self._file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
