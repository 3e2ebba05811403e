"""What the sides of benches of text generation have in common; benchmarks/_worker.py calls them."""

import argparse
import resource
import time

from disranker_jax.models import weights


class Side:
  """A side that opens a model, whose first pass is timed apart because it compiles.

  A bench adds `open()`, `first()` and `turn()`.
  """

  def __init__(self, args: argparse.Namespace):
    self.args, self.folder = args, weights.find(args.model)

  def start(self) -> dict:
    self.open()
    begin = time.perf_counter()
    self.first()
    return {'first_s': time.perf_counter() - begin}

  def warm(self) -> dict:
    return {}

  def end(self) -> dict:
    return {'memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
