"""The SDKs of Cohere, Hugging Face and LlamaIndex as clients of the server."""

import pytest

DOCS = ['len : Return the number of items.', 'dir : an ordered list of names', 'zip']
QUERY = 'list of names'


@pytest.fixture(scope='module')
def expected(server):
  rows = server.client.post('/rerank', json={'query': QUERY, 'texts': DOCS}).json()
  return {row['index']: row['score'] for row in rows}


class TestCohere:
  @pytest.mark.parametrize('version', ['Client', 'ClientV2'])
  def test_rerank(self, server, expected, version):
    cohere = pytest.importorskip('cohere')
    client = getattr(cohere, version)(api_key='any', base_url=server.url)
    answer = client.rerank(model='rerank-v3.5', query=QUERY, documents=DOCS, top_n=2)
    assert {r.index: r.relevance_score for r in answer.results}.items() <= expected.items()
    scores = [r.relevance_score for r in answer.results]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)

  def test_errors_become_the_sdks_own_exceptions(self, server):
    cohere = pytest.importorskip('cohere')
    client = cohere.ClientV2(api_key='any', base_url=server.url)
    with pytest.raises(cohere.errors.UnprocessableEntityError, match='documents'):
      client.rerank(model='m', query=QUERY, documents='not a list')


class TestHuggingFace:
  def test_health_info_and_pairs(self, server, expected, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    # The hub is offline in tests, but this server is local.
    monkeypatch.setattr(hub.constants, 'HF_HUB_OFFLINE', False)
    client = hub.InferenceClient(model=server.url, provider='hf-inference')
    assert client.health_check()
    assert client.get_endpoint_info()['model_id'] == 'student'
    pairs = hub.InferenceClient(model=f'{server.url}/predict')
    answer = pairs.text_classification([[QUERY, DOCS[1]]])
    assert answer[0].score == pytest.approx(expected[1], abs=1e-6)


class TestLlamaIndex:
  def test_a_postprocessor_reranks_nodes(self, server, expected):
    # It needs thirty packages, so it is not in the extra `test`.
    tei = pytest.importorskip(
      'llama_index.postprocessor.tei_rerank', reason='needs llama-index-postprocessor-tei-rerank'
    )
    from llama_index.core.schema import NodeWithScore, TextNode

    reranker = tei.TextEmbeddingInference(base_url=server.url, top_n=2)
    nodes = [NodeWithScore(node=TextNode(id_=str(i), text=t)) for i, t in enumerate(DOCS)]
    answer = reranker.postprocess_nodes(nodes, query_str=QUERY)
    best = sorted(expected, key=lambda i: -expected[i])[:2]
    assert [int(n.node_id) for n in answer] == best
    assert [n.score for n in answer] == pytest.approx([expected[i] for i in best], abs=1e-6)
