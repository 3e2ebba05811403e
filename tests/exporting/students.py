"""What the tests of exports export."""

import dataclasses

import numpy as np

from disranker_jax.data import records
from disranker_jax.devices import sharding
from disranker_jax.models import hf
from disranker_jax.rankers.pointwise import PointwiseRanker

MAX_LEN, MAX_QUERY = 64, 16


@dataclasses.dataclass
class Student:
  """What is exported: a network with its variables, and where its tokenizer is."""

  network: object
  variables: dict
  base: object
  prompt: object

  def scores(self, group: records.Group) -> np.ndarray:
    """Our own, in fp32."""
    mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
    scorer = PointwiseRanker(self.network, self.variables, self.prompt, mesh, 8, MAX_LEN)
    [(_, scores)] = scorer([group])
    return scores

  def save(self, folder, **options):
    extra = {'disranker_jax': {'max_len': MAX_LEN, 'max_query_len': MAX_QUERY}}
    hf.save(
      folder,
      self.network,
      self.variables,
      tokenizer_folder=self.base,
      extra_config=extra,
      **options,
    )
    return folder
