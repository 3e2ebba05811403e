"""Vectors and rewards by embeddings are those of sentence-transformers."""

import json

import numpy as np
import pytest

from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.rewriting import rewards
from disranker_jax.rewriting.embedder import Embedder
from disranker_jax.rewriting.queries import Query

DOCS = (Document('split', 'str split', 'Divide a text.'), Document('join', '', 'Join words.'))
TEXTS = ['cut a text', 'the str', '', 'words ' * 100, *(doc.summary for doc in DOCS)]


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_the_same_as_sentence_transformers(pooling, tmp_path):
  pytest.importorskip('torch')
  library = pytest.importorskip('sentence_transformers')
  from sentence_transformers.sentence_transformer import modules

  network = modules.Transformer(str(weights.find('tiny-encoder')), max_seq_length=32)
  parts = [network, modules.Pooling(network.get_embedding_dimension(), pooling)]
  model = library.SentenceTransformer(modules=[*parts, modules.Normalize()], device='cpu')
  model.save(str(tmp_path / 'saved'))
  ours = Embedder(str(tmp_path / 'saved'), 32, 'float32')
  np.testing.assert_allclose(ours(TEXTS), model.encode(TEXTS), atol=1e-5)

  rewrites = ['str join', 'divide words']
  got = rewards.Embedding(ours, 'replace')([Query('q', 'cut a text', DOCS)], [rewrites])
  of_docs = model.encode([rewards.document_text(doc) for doc in DOCS])
  gain = (model.encode(rewrites) - model.encode(['cut a text'])) @ of_docs.T
  np.testing.assert_allclose(got[0], 10 * gain.mean(1), atol=1e-4)


@pytest.mark.parametrize(
  ('kinds', 'pooling', 'message'),
  [
    (('Transformer', 'Pooling', 'Dense'), 'mean', 'Transformer, Pooling, Dense are not supported'),
    (('Transformer', 'Pooling'), 'max', "pooling 'max' is neither cls nor mean"),
  ],
)
def test_other_modules_are_refused(kinds, pooling, message, tmp_path):
  for file in weights.find('tiny-encoder').iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  rows = []
  for i, kind in enumerate(kinds):
    folder = tmp_path / f'{i}_{kind}'
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps({'pooling_mode': pooling}))
    rows.append({'type': f'sentence_transformers.models.{kind}', 'path': folder.name if i else ''})
  (tmp_path / 'modules.json').write_text(json.dumps(rows))
  with pytest.raises(UserError, match=message):
    Embedder(str(tmp_path), 32)
