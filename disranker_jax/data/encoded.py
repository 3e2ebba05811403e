"""A text as a model reads it: token ids, where its score is, and what a language model predicts."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
  """One sequence: ids_T, types_T (0/1 of BERT), scored position, what the LM predicts.

  It predicts the tokens of the span `predict`, or `targets`: [positions, their tokens].
  """

  ids: np.ndarray
  types: np.ndarray
  anchor: int
  predict: tuple[int, int] = (0, 0)
  cut: bool = False  # whether the text or, where that is not known apart, the query was cut
  cut_query: bool = False  # whether the query was cut; PairPrompt alone tells them apart
  targets: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def predicted(self) -> tuple[np.ndarray, np.ndarray]:
    """(positions, tokens) of what the LM predicts."""
    if self.targets is not None:
      return self.targets[0], self.targets[1]
    positions = np.arange(*self.predict)
    return positions, self.ids[positions]

  @property
  def predictions(self) -> int:
    """How many tokens the LM predicts."""
    if self.targets is not None:
      return self.targets.shape[1]
    return self.predict[1] - self.predict[0]
