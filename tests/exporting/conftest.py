"""A small student with scores far apart, and texts of all kinds."""

import dataclasses

import jax
import numpy as np
import pytest

from disranker_jax.data import prompts, records
from disranker_jax.devices import sharding
from disranker_jax.models import hf, load, tiny
from disranker_jax.models.network import from_hf
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


@pytest.fixture(scope='session')
def student(tmp_path_factory):
  base = tmp_path_factory.mktemp('base') / 'tiny-encoder'
  tiny.make('tiny-encoder', base)
  network = from_hf(base)
  variables = network.init(jax.random.key(3))
  # Matrices so large that attention and activations matter, biases that are not zero.
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: np.asarray(x) * 8 if x.ndim > 1 and x.std() > 0 else x + rng.normal(0, 0.2, x.shape),
    variables,
  )
  variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
  prompt = prompts.PairPrompt(load.open_tokenizer(base), MAX_LEN, MAX_QUERY)
  return Student(network, variables, base, prompt)


@pytest.fixture(scope='session')
def exported(student, tmp_path_factory):
  """The student's folder with every format."""
  from disranker_jax.exporting import formats

  folder = student.save(tmp_path_factory.mktemp('export') / 'student')
  formats.write(folder, formats.FORMATS)
  return folder
