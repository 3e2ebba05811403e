"""Which documents of a query a step sees: every grade where there is room, always bad ones too."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax.data import batches, streams
from disranker_jax.data.batches import Shape
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.records import UNJUDGED, Document, Group
from disranker_jax.stages import sft

examples = settings(max_examples=60, deadline=None)


def judged(labels) -> Group:
  return Group('q', 'text', tuple(Document(str(i), 't', 's', x) for i, x in enumerate(labels)))


@examples
@given(
  labels=st.lists(st.integers(UNJUDGED, 4), max_size=12),
  size=st.integers(0, 13),
  seed=st.integers(0, 99),
)
def test_a_sample_has_every_grade_that_fits_or_the_best_and_the_worst(labels, size, seed):
  chosen = batches.sample(judged(labels), size, np.random.default_rng(seed)).tolist()
  assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(len(labels)))
  assert len(chosen) == min(size or len(labels), len(labels))
  grades, drawn = set(labels), {labels[i] for i in chosen}
  if len(grades) <= len(chosen):
    assert drawn == grades
  elif chosen:
    known = grades - {UNJUDGED}
    # All grades differ, so that no pair is wasted.
    assert len(drawn) == len(chosen) and max(known) in drawn
    assert len(chosen) == 1 or min(known) in drawn


@pytest.mark.parametrize('labels, size', [([1, 1, 1, 1], 1), ([1, 0, 0, 0], 2), ([0, 1, 1, 2], 3)])
def test_documents_of_one_grade_have_the_same_chance(labels, size):
  rng = np.random.default_rng(0)
  draws = np.zeros(4)
  for _ in range(300):
    draws[batches.sample(judged(labels), size, rng)] += 1
  for grade in set(labels):
    mine = draws[np.array(labels) == grade]
    # Six standard deviations of a fair draw are less than 52 of 300.
    assert np.abs(mine - mine.mean()).max() < 52 and mine.min() > 0


@pytest.mark.parametrize(('labels', 'size'), [(range(5), 4), (range(0, 100, 5), 8)])
def test_grades_between_the_best_and_the_worst_have_the_same_chance(labels, size):
  rng, times = np.random.default_rng(0), 2000
  draws = sum(np.isin(range(len(labels)), batches.sample(judged(labels), size, rng))
              for _ in range(times))  # fmt: skip
  assert draws[0] == draws[-1] == times
  wanted = times * (size - 2) / (len(labels) - 2)
  assert np.abs(draws[1:-1] - wanted).max() < 6 * np.sqrt(wanted)  # six standard deviations


def test_an_epoch_draws_others_and_a_resume_the_same_ones():
  def encode(group):
    docs = [Encoded(np.ones(3, np.int32), np.zeros(3, np.int32), 0, (0, 0)) for _ in group.docs]
    return batches.encode_group(Fixed(docs), group)

  draw = functools.partial(sft.draw, 4)
  data = streams.training([judged(range(5))], encode, Shape(1, 12, 4), seed=0, draw=draw)

  def labels(count, stream):
    found = (stream.next()[0] for _ in range(count))
    return [tuple(batch['labels_GN'][0].astype(int).tolist()) for batch in found]

  stream = data.stream(0)
  first = labels(10, stream)
  position = stream.position
  rest = labels(30, stream)
  assert {0, 4} <= set.intersection(*map(set, first + rest))
  assert set(first + rest) == {(0, *pair, 4) for pair in itertools.combinations((1, 2, 3), 2)}
  again = data.stream(0)
  again.seek(position)
  assert labels(30, again) == rest


class Fixed:
  """A prompt that gives prepared documents."""

  def __init__(self, docs):
    self._docs = docs

  def encode(self, query, docs):
    return self._docs
