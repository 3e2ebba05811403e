"""A small student with scores far apart, and texts of all kinds."""

import jax
import numpy as np
import pytest
from students import MAX_LEN, MAX_QUERY, Student

from disranker_jax.data import prompts
from disranker_jax.models import load, tiny
from disranker_jax.models.network import from_hf


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
