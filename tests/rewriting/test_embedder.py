"""Vectors of texts, and the rewards by them, are those of sentence-transformers."""

import json

import numpy as np
import pytest

from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.rewriting import embedder, rewards
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


def test_a_vector_does_not_depend_on_other_texts():
  embed = Embedder('tiny-encoder', 32, 'float32')
  texts = [f'{"word " * (i % 20)}{i}' for i in range(60)]
  together = embed(texts)
  np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
  alone = np.concatenate([embed([text]) for text in texts[:5]])
  np.testing.assert_allclose(together[:5], alone, atol=1e-5)
  backwards = embed(texts[::-1] + texts[:1])
  np.testing.assert_allclose(backwards[:-1][::-1], together, atol=1e-5)
  assert (backwards[-1] == backwards[-2]).all()


def test_what_is_cut_is_said_once(capsys):
  embed = Embedder('tiny-encoder', 8, 'float32')
  embed(['a b c'])
  assert capsys.readouterr().err == ''
  embed(['one two three four five six seven eight', 'a'])
  embed(['one two three four five six seven eight nine'])
  assert capsys.readouterr().err.count('1 of 2 texts has more than 8 tokens') == 1


@pytest.mark.parametrize(
  ('said', 'positions', 'expected'),
  [(12, 512, 12), (None, 512, 256), (512, 512, 512), (512, 64, 64), (None, 64, 64)],
)
def test_a_text_has_as_many_tokens_as_the_model_says_it_reads(said, positions, expected, tmp_path):
  for file in weights.find('tiny-encoder').iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  config = json.loads((tmp_path / 'config.json').read_text())
  config['max_position_embeddings'] = positions
  (tmp_path / 'config.json').write_text(json.dumps(config))
  if said:
    (tmp_path / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': said}))
  assert embedder._max_len(str(tmp_path)) == expected
  if positions == 512:  # as many as its parameters have
    [encoded] = Embedder(str(tmp_path), precision='float32')._encode(['words ' * 600])
    assert len(encoded.ids) == expected


@pytest.mark.parametrize('said', [0, -1, '12', True, [12]])
def test_a_limit_that_is_no_number_of_tokens_is_refused(said, tmp_path):
  for file in weights.find('tiny-encoder').iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': said}))
  with pytest.raises(UserError, match=r'sentence_bert_config\.json: max_seq_length .* is not'):
    Embedder(str(tmp_path))


def test_a_decoder_is_refused():
  with pytest.raises(UserError, match='tiny-decoder: is a decoder'):
    Embedder('tiny-decoder', 32)


@pytest.mark.parametrize(
  ('longest', 'most', 'rows', 'row_len'),
  [(24, 256, 8, 256), (24, 8192, 8, 256), (300, 512, 4, 512), (300, 400, 5, 400),
   (5000, 8192, 1, 8192), (24, 128, 16, 128)],
)  # fmt: skip
def test_a_batch_is_as_long_as_its_texts_and_not_as_the_model(longest, most, rows, row_len):
  """Attention takes memory by the square of the length, and models read up to 8,192 tokens."""
  shape = embedder.shape_of(longest, most)
  assert (shape.rows, shape.row_len) == (rows, row_len)
