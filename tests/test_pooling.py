"""One vector per document: the scored token's hidden state, or the mean of the document's."""

import jax
import jax.numpy as jnp
import numpy as np

from disranker_jax.data.batches import EncodedGroup, Packer, Shape, join
from disranker_jax.data.encoded import Encoded
from disranker_jax.models import pooling


def document(length, anchor=0):
  return Encoded(np.ones(length, np.int32), np.zeros(length, np.int32), anchor)


def block(groups):
  packer = Packer(Shape(6, 16, 3))
  for i, docs in enumerate(groups):
    zeros = np.zeros(len(docs), np.float32)
    assert packer.add(EncodedGroup(docs, zeros, zeros, str(i)))
  return packer.batch()


def two_blocks():
  """Rows with several documents, a document whose scored token is not its first one, padding."""
  first = block([[document(5), document(9)], [document(3, anchor=2), document(4), document(2)]])
  return join([first, block([[document(16)], [document(1)]])])


def test_the_mean_is_that_of_the_documents_tokens():
  batch = two_blocks()
  assert batch['index_AX'].shape[0] == 2 and batch['segments_BT'].max() > 1
  hidden = np.random.default_rng(0).normal(size=(*batch['tokens_BT'].shape, 4)).astype(np.float32)
  means = np.asarray(jax.jit(pooling.mean)(hidden, batch))
  mask_AX = batch['mask_GN'].reshape(2, -1)
  assert mask_AX.sum() == 7
  for a, x in np.argwhere(mask_AX):
    row, at = divmod(int(batch['index_AX'][a, x]) + a * 96, 16)
    own = batch['segments_BT'][row] == batch['segments_BT'][row, at]
    np.testing.assert_allclose(means[a, x], hidden[row, own].mean(0), atol=1e-6)
  assert not means[~mask_AX].any()


def test_every_token_of_a_document_has_an_equal_gradient_and_padding_none():
  batch = two_blocks()
  hidden = jnp.zeros((*batch['tokens_BT'].shape, 1))
  slope_BT = jax.grad(lambda h: pooling.mean(h, batch).sum())(hidden)[..., 0]
  for row, segments in enumerate(batch['segments_BT']):
    for segment in set(segments.tolist()):
      own = segments == segment
      expected = 1 / own.sum() if segment else 0
      np.testing.assert_allclose(slope_BT[row, own], expected, rtol=1e-6)


def test_padding_does_not_count_whatever_its_positions_are():
  row = {'positions_BT': np.arange(8)[None], 'segments_BT': (np.arange(8) < 3)[None].astype(int)}
  row |= {'index_AX': np.array([[0]]), 'mask_GN': np.ones((1, 1), bool)}
  hidden = jnp.arange(8.0)[None, :, None]
  assert float(pooling.mean(hidden, row)[0, 0, 0]) == 1.0


def test_the_mean_of_low_precision_states_is_exact():
  batch = two_blocks()
  hidden = jnp.full((*batch['tokens_BT'].shape, 1), 1.0078125, jnp.bfloat16)
  means = pooling.mean(hidden, batch)
  mask_AX = batch['mask_GN'].reshape(2, -1)
  assert means.dtype == jnp.float32 and (np.asarray(means)[mask_AX] == 1.0078125).all()
