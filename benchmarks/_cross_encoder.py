"""The student's second peer: sentence-transformers' CrossEncoder, from texts, as documented.

It sorts by length itself and pads to the longest of 32 texts.
"""

import resource

import torch
from sentence_transformers import CrossEncoder

from benchmarks._torch import DEVICE, kind, repeated
from benchmarks._work import Work
from disranker_jax.data.prompts import document_text
from disranker_jax.errors import UserError


class Score:
  """Turns of queries from their texts to their scores."""

  def __init__(self, work: Work, steps: int, bf16: bool):
    self._work, self._steps, self._bf16 = work, steps, bf16

  def start(self) -> dict:
    side = self._work.settings
    if side.layers:
      raise UserError(
        'CrossEncoder reads all layers of a model, and the config selects some of them'
      )
    self._prompt, self._groups = self._work.open_side().prompt(), self._work.groups()
    places = self._steps * self._work.config[self._work.stage].batch_rows * side.row_len
    self._queries = self._groups.queries(self._prompt, places)
    self._model = CrossEncoder(
      str(self._work.model_folder()), num_labels=1, device=DEVICE, max_length=side.max_len,
      model_kwargs={'dtype': torch.bfloat16 if self._bf16 else torch.float32},
    )  # fmt: skip
    self._predict([self._groups[0]])
    return {'device': kind()}

  def _predict(self, groups) -> None:
    pairs = [(g.query, document_text(d)) for g in groups for d in g.docs]
    self._model.predict(pairs, show_progress_bar=False)

  def warm(self) -> dict:
    self._predict(self._groups.take(max(1, self._queries // self._steps)))
    return {}

  def turn(self) -> dict:
    groups = self._groups.take(self._queries)
    lengths = [len(doc) for g in groups for doc in self._prompt.encode(g.query, g.docs)]
    took, done = repeated(1, lambda _: self._predict(groups))
    # Tokens are counted as ours are, so ratios are of the same pairs; its padding is unknown.
    tokens, pairs = done * sum(lengths), done * len(lengths)
    return {'tokens': tokens, 'places': tokens, 'pairs': pairs, 'steps': self._steps * done} | took

  def end(self) -> dict:
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {'memory_bytes': process, 'process_bytes': process}
