"""Each API: the model's own scores in the API's own format, and its own errors."""

import json
import math

import numpy as np
import pytest

from disranker_jax.evaluation import fusion
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.exporting import formats, graph
from disranker_jax.serve import apis

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


class TestFirstStage:
  FIRST = (0.0, 30.0, None, 15.0)

  def wanted(self, raw, weight):
    first = {i: value for i, value in enumerate(self.FIRST) if value is not None}
    return fusion.convex(dict(enumerate(raw.tolist())), first, weight)

  def test_tei_gets_fused_scores_best_first(self, post, raw):
    rows = post('/rerank', query=QUERY, texts=TEXTS, first_scores=self.FIRST, fuse=0.4)
    assert {r['index']: r['score'] for r in rows} == close(self.wanted(raw, 0.4))
    assert [r['score'] for r in rows] == sorted((r['score'] for r in rows), reverse=True)
    again = post('/rerank', query=QUERY, texts=TEXTS, first_scores=self.FIRST, fuse=0.4,
                 raw_scores=True)  # fmt: skip
    assert again == rows

  @pytest.mark.parametrize('path', ['/v1/rerank', '/v2/rerank', '/rerank'])
  def test_cohere_too_and_ranks_are_taken(self, post, path, raw):
    body = {'query': QUERY, 'documents': TEXTS, 'first_ranks': [3, 1, None, 2], 'fuse': 0.4}
    results = post(path, **body)['results']
    ranks = {0: 1 / 63, 1: 1 / 61, 3: 1 / 62}
    wanted = fusion.convex(dict(enumerate(raw.tolist())), ranks, 0.4)
    assert {r['index']: r['relevance_score'] for r in results} == close(wanted)

  def test_the_weight_of_the_folder_is_the_default(self, server, post, raw, monkeypatch):
    monkeypatch.setattr(server.service.ranker, 'fusion', Fusion(0.4, 'scores', 24))
    rows = post('/rerank', query=QUERY, texts=TEXTS, first_scores=self.FIRST)
    assert {r['index']: r['score'] for r in rows} == close(self.wanted(raw, 0.4))
    body = {'query': QUERY, 'texts': TEXTS, 'first_ranks': [3, 1, None, 2]}
    response = server.client.post('/rerank', json=body)
    assert response.status_code == 422 and 'records is for first_scores' in response.text

  def test_scores_inside_the_texts_are_ignored_as_other_fields_are(self, post):
    plain = post('/rerank', query=QUERY, texts=TEXTS)
    texts = [{'text': t, 'score': i, 'rank': i} for i, t in enumerate(TEXTS)]
    assert post('/rerank', query=QUERY, texts=texts) == plain
    assert post('/rerank', query=QUERY, texts=TEXTS, first_scores=None, fuse=None) == plain

  @pytest.mark.parametrize(
    ('path', 'fields', 'what'),
    [
      ('/rerank', {'first_scores': [1, 2]}, 'first_scores: has 2 values for 4 texts'),
      ('/rerank', {'first_scores': [1, 2, 'x', 4]}, 'first_scores[2]: must be a finite number'),
      ('/rerank', {'first_scores': 'x'}, '`first_scores` must be a list'),
      ('/rerank', {'first_ranks': [1, 2, 3, 0]}, 'first_ranks[3]: must be an integer of 1'),
      ('/rerank', {'first_ranks': [1, 2, 3, 4], 'fuse': 2}, 'fuse: must be a number from 0'),
      ('/rerank', {'fuse': 0.5}, 'fuse: there is nothing to fuse with'),
      ('/rerank', {'first_ranks': [1, 2, 3, 4]}, 'fuse: the model folder records no weight'),
      ('/score', {'first_scores': [1, 2, 3, 4]}, '`first_scores` is not supported here'),
    ],
  )
  def test_what_is_wrong_is_named(self, server, path, fields, what):
    texts = {'queries': QUERY, 'documents': TEXTS} if path == '/score' else {'texts': TEXTS}
    response = server.client.post(path, json={'query': QUERY, **texts, **fields})
    assert response.status_code == 422 and what in response.text

  def test_a_number_that_json_lacks_is_refused(self, server):
    body = json.dumps({'query': QUERY, 'texts': TEXTS, 'first_scores': [1.0, 2.0, 3.0, math.nan]})
    headers = {'content-type': 'application/json'}
    assert server.client.post('/rerank', content=body, headers=headers).status_code == 422


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


# Each API's path, and a body with the query and the texts in its fields.
BODIES = {
  '/rerank': lambda query, text: {'query': query, 'texts': [text]},
  '/predict': lambda query, text: {'inputs': [[query, text]]},
  '/v1/rerank': lambda query, text: {'query': query, 'documents': [text]},
  '/v2/rerank': lambda query, text: {'query': query, 'documents': [text]},
  '/score': lambda query, text: {'queries': query, 'documents': [text]},
  '/v1/score': lambda query, text: {'text_1': query, 'text_2': [text]},
}


def test_every_path_is_in_bodies():
  assert set(BODIES) == set(apis.APIS)


@pytest.mark.parametrize('path', BODIES)
class TestFieldsThatChangeScores:
  @pytest.mark.parametrize('field, value, query_len, total', [
    ('truncate_prompt_tokens', 30, 15, 30), ('truncate_prompt_tokens', 9, 5, 9),
    ('truncate_prompt_tokens', -1, 15, 48), ('truncate_prompt_tokens', 500, 15, 48),
    ('max_tokens_per_query', 4, 4, 37), ('max_tokens_per_query', 0, 15, 48),
    ('max_tokens_per_doc', 3, 15, 21),
  ])  # fmt: skip
  def test_limits_of_tokens_are_used(self, server, prompt, path, field, value, query_len, total):
    assert len(prompt.tokenizer.tokenize('list ' * 15)) == 15
    body = BODIES[path]('list ' * 15, 'list ' * 30) | {field: value}
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers['x-compute-tokens'] == str(total)
    # The same pair, cut beforehand.
    cut = BODIES[path]('list ' * query_len, 'list ' * (total - query_len - 3))
    assert scores(response) == close(scores(server.client.post(path, json=cut)))

  @pytest.mark.parametrize('field, value', [
    ('instruction', 'rank by date'), ('rank_fields', ['title']), ('max_chunks_per_doc', 10),
    ('chat_template', '{{ query }}'), ('chat_template_kwargs', {'a': 1}),
    ('mm_processor_kwargs', {'a': 1}), ('add_special_tokens', False), ('truncation_side', 'left'),
    ('truncation_direction', 'Left'), ('overlap_tokens', 5), ('truncate_prompt_tokens', 4),
    ('truncate_prompt_tokens', -2), ('max_tokens_per_query', -1), ('max_tokens_per_doc', '7'),
    ('raw_scores', 'no'), ('use_activation', 1),
  ])  # fmt: skip
  def test_what_cannot_be_used_is_refused_by_name(self, server, path, field, value):
    response = server.client.post(path, json=BODIES[path](QUERY, 'a') | {field: value})
    assert response.status_code == 422 and f'`{field}`' in response.text

  def test_their_neutral_values_and_unknown_fields_change_nothing(self, server, path):
    body = BODIES[path](QUERY, 'a list')
    neutral = apis.FIXED | {'priority': 0, 'user': 'me', 'truncation_direction': 'Right'}
    plain, *others = (
      scores(server.client.post(path, json=body | more))
      for more in ({}, neutral, dict.fromkeys(neutral))
    )
    assert others == [plain] * 2

  @pytest.mark.parametrize('field, value', [
    ('raw_scores', True), ('use_activation', False), ('activation', False), ('softmax', False),
  ])  # fmt: skip
  def test_raw_scores_have_several_names(self, server, raw, path, field, value):
    response = server.client.post(path, json=BODIES[path](QUERY, TEXTS[0]) | {field: value})
    assert scores(response) == close([raw[0]])


def scores(response) -> list[float]:
  """The scores in a response of any API."""
  assert response.status_code == 200, response.text
  rows = response.json()
  if isinstance(rows, dict):
    rows = rows.get('results') or rows['data']
  rows = [row[0] if isinstance(row, list) else row for row in rows]
  return [row.get('score', row.get('relevance_score')) for row in rows]


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
    assert len(set(apis.shown([20.0, 20.1, 25.0, -700.0], raw=False))) == 4
    assert json.dumps(apis.shown([1e9, -1e9], raw=False)) == '[1.0, 0.0]'
