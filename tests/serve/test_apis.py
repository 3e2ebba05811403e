"""Each API: the model's own scores in the API's own format, and its own errors."""

import json

import numpy as np
import pytest

from disranker_jax.exporting import formats, graph

QUERY = 'list of names'
TEXTS = [
  'len : Return the number of items.',
  'dir : an ordered list of names',
  '',
  '文字 : Ünï',
]


@pytest.fixture(scope='module')
def raw(model, prompt):
  """The model's scores, by onnx's own reference evaluation of each pair alone."""
  from onnx.reference import ReferenceEvaluator

  network = ReferenceEvaluator(formats.build_onnx(model, 'onnx'))
  scores = []
  for pair in prompt.encode_texts(QUERY, TEXTS):
    rows = pair.ids[None], np.ones((1, len(pair))), pair.types[None]
    feeds = {n: r.astype(np.int64) for n, r in zip(graph.INPUTS, rows, strict=True)}
    scores.append(float(network.run(None, feeds)[0][0, 0]))
  assert np.std(scores) > 0.01
  return np.array(scores)


@pytest.fixture(scope='module')
def sigmoid(raw):
  return 1 / (1 + np.exp(-raw))


@pytest.fixture
def post(server):
  def call(path, **body):
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()

  return call


def close(value):
  return pytest.approx(value, abs=1e-4)


class TestTei:
  def test_rerank_is_sorted_and_between_0_and_1(self, post, sigmoid):
    rows = post('/rerank', query=QUERY, texts=TEXTS)
    assert [set(r) for r in rows] == [{'index', 'score'}] * 4
    assert [r['score'] for r in rows] == sorted((r['score'] for r in rows), reverse=True)
    assert {r['index']: r['score'] for r in rows} == close(dict(enumerate(sigmoid.tolist())))

  def test_raw_scores_and_texts_on_request(self, post, raw):
    rows = post('/rerank', query=QUERY, texts=TEXTS, raw_scores=True, return_text=True)
    assert {r['index']: r['score'] for r in rows} == close(dict(enumerate(raw.tolist())))
    assert all(r['text'] == TEXTS[r['index']] for r in rows)

  def test_predict_takes_a_pair_or_many(self, post, raw, sigmoid):
    [alone] = post('/predict', inputs=[QUERY, TEXTS[0]])
    assert alone == {'score': close(sigmoid[0]), 'label': 'LABEL_0'}
    many = post('/predict', inputs=[[QUERY, t] for t in TEXTS], raw_scores=True)
    assert [row['score'] for [row] in many] == close(raw.tolist())

  def test_info_has_the_limits_that_clients_read(self, server):
    info = server.client.get('/info').json()
    assert info['model_type'] == {
      'reranker': {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
    }
    assert info['max_input_length'] == 64 and info['max_client_batch_size'] == 1000


class TestCohereAndJina:
  @pytest.mark.parametrize('path', ['/v1/rerank', '/v2/rerank', '/rerank'])
  def test_results_best_first(self, post, path, sigmoid):
    answer = post(path, model='rerank-v3.5', query=QUERY, documents=TEXTS, top_n=2)
    best = np.argsort(-sigmoid)[:2].tolist()
    assert [r['index'] for r in answer['results']] == best
    assert [r['relevance_score'] for r in answer['results']] == close(sigmoid[best].tolist())
    assert answer['id'] and answer['meta']['billed_units'] == {'search_units': 1}

  def test_documents_may_be_objects_and_are_returned_on_request(self, post, sigmoid):
    documents = [{'text': t} for t in TEXTS]
    answer = post('/v1/rerank', query=QUERY, documents=documents, return_documents=True)
    assert all(r['document'] == documents[r['index']] for r in answer['results'])
    assert answer['usage']['total_tokens'] > len(TEXTS) * 5

  def test_max_tokens_per_doc_truncates_documents(self, post, server, prompt):
    long = 'names ' * 30
    a = post('/v2/rerank', query=QUERY, documents=[long], max_tokens_per_doc=3)
    [pair] = prompt.encode_texts(QUERY, [long], 3)
    assert a['usage']['total_tokens'] == len(pair)


class TestVllm:
  @pytest.mark.parametrize('names', [('queries', 'documents'), ('text_1', 'text_2')])
  def test_one_to_many_in_the_order_given(self, post, names, sigmoid):
    answer = post('/v1/score', model='m', **dict(zip(names, (QUERY, TEXTS), strict=True)))
    assert [r['index'] for r in answer['data']] == [0, 1, 2, 3]
    assert [r['score'] for r in answer['data']] == close(sigmoid.tolist())

  def test_one_to_one_by_position(self, post, raw):
    body = {'queries': [QUERY] * 4, 'documents': TEXTS, 'use_activation': False}
    assert [r['score'] for r in post('/score', **body)['data']] == close(raw.tolist())


class TestErrors:
  CASES = (
    ({'query': 'q'}, 422, '`{}` is missing'),
    ({'{}': ['t']}, 422, '`query` is missing'),
    ({'query': 'q', '{}': 't'}, 422, '`{}` must be a list'),
    ({'query': 'q', '{}': [1]}, 422, '`{}[0]` must be a string'),
    ({'query': 'q', '{}': ['t', {'title': 't'}]}, 422, '`{}[1].text` is missing'),
    ({'query': 'q', '{}': [{'text': 7}]}, 422, '`{}[0].text` must be a string'),
    ({'query': 7, '{}': ['t']}, 422, '`query` must be a string'),
    ({'query': 'q', '{}': []}, 400, '`{}` is empty'),
    ({'query': ' ', '{}': ['t']}, 400, '`query` is empty'),
  )

  @pytest.mark.parametrize('body, status, message', CASES)
  @pytest.mark.parametrize('path, name', [('/rerank', 'texts'), ('/v2/rerank', 'documents')])
  def test_name_the_field_and_its_type(self, server, path, name, body, status, message):
    body = {k.format(name): v for k, v in body.items()}
    response = server.client.post(path, json=body)
    assert response.status_code == status
    error = response.json()
    assert message.format(name) == (error['error'] if path == '/rerank' else error['message'])
    if path == '/rerank':
      assert error['error_type'] == ('Empty' if status == 400 else 'Validation')

  @pytest.mark.parametrize('content', [b'{', b'[1]', b'\xff', b'', b'[' * 100_000, b'7'])
  def test_a_body_that_is_not_json_is_422(self, server, content):
    response = server.client.post('/score', content=content)
    assert response.status_code == 422 and 'JSON' in response.json()['error']['message']

  @pytest.mark.parametrize('name', ['queries', 'documents', 'text_1', 'text_2'])
  def test_name_the_text_that_an_object_lacks_in_vllm(self, server, name):
    other = {'queries': 'documents', 'text_1': 'text_2'}
    other |= {b: a for a, b in other.items()}
    response = server.client.post('/score', json={name: [{'title': 'x'}], other[name]: ['a']})
    assert response.status_code == 422
    assert response.json()['error']['message'] == f'`{name}[0].text` is missing'

  def test_vllm_lists_must_match(self, server):
    body = {'queries': ['a', 'b'], 'documents': ['c', 'd', 'e']}
    response = server.client.post('/score', json=body)
    assert response.status_code == 422 and response.json()['error']['code'] == 422

  @pytest.mark.parametrize(
    'inputs', [['only'], [['a', 'b', 'c']], [['a']], ['a', ['b']], [[1, 2]], 'text', []]
  )
  def test_predict_wants_pairs(self, server, inputs):
    response = server.client.post('/predict', json={'inputs': inputs})
    assert response.status_code in (400, 422) and response.json()['error']

  def test_lone_surrogates_are_replaced_and_scored(self, server):
    body = '{"query": "a \\ud800 b", "texts": ["\\udfff"]}'
    assert server.client.post('/rerank', content=body).status_code == 200

  def test_the_sigmoid_keeps_large_scores_distinct(self):
    from disranker_jax.serve import apis

    assert len(set(apis.shown([20.0, 20.1, 25.0, -700.0], raw=False))) == 4
    assert json.dumps(apis.shown([1e9, -1e9], raw=False)) == '[1.0, 0.0]'
