"""Places of a few records that stand for all of a long sequence."""

import numpy as np


def spaced(count: int, most: int) -> list[int]:
  """At most `most` of `count` places, evenly spaced from the first to the last, in order.

  They are the same in every process and at every call, so that what is measured on them repeats.
  """
  return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()
