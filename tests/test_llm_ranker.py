"""LLM rankers on small random models: batches, decoding, heads, and models that do not fit."""

import dataclasses
import json
import shutil

import hf_reference as reference
import jax
import llm_models
import numpy as np
import pytest

from disranker_jax.data.prompts import TextPrompt
from disranker_jax.data.records import Document, Group
from disranker_jax.devices import sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.models import hf, network, rerankers
from disranker_jax.rankers import pointwise
from disranker_jax.rankers.llm import methods, ranker
from disranker_jax.rankers.llm.methods import METHODS, Options

WORDS = llm_models.WORDS.split()
LABELS = [name for name in METHODS if not name.startswith('rankllama')]


def text(rng, low, high):
  return ' '.join(rng.choice(WORDS, rng.integers(low, high)))


def make_groups(sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Group(f'q{q}', text(rng, 1, 5), tuple(
      Document(f'd{i}', text(rng, 0, 3), text(rng, 1, 9), rank=i + 1) for i in range(n)
    ))
    for q, n in enumerate(sizes)
  ]  # fmt: skip


GROUPS = make_groups((4, 1, 0, 6, 2))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return llm_models.write(tmp_path_factory.mktemp('llm') / 'model')


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])


def plan_of(name, **options):
  method = methods.find(name)
  options = Options(**{'window': 4, 'stride': 2, 'top': 3} | options)
  return ranker.Plan(method, methods.contract_of(method), options, 8, 12)


def opened(folder, mesh, name, rows=4, live=256, precision='float32', quantize='', **options):
  plan = plan_of(name, **options)
  model, prompt = ranker.open_for(plan, folder, precision=precision)
  variables = model.pretrained(0, mesh)
  return ranker.LLMRanker(plan, model.network, variables, prompt, mesh, rows, live, quantize)


def test_a_process_stops_with_the_others_after_its_own_share(folder, mesh, monkeypatch):
  made, asked = opened(folder, mesh, 'yes_no'), []
  # Another process was asked to stop, this one was not.
  monkeypatch.setattr(ranker.processes, 'any_of', lambda stop: asked.append(stop) or True)
  with pytest.raises(Stopped):
    list(made(GROUPS))
  assert asked == [False]
  assert made.queries == len(GROUPS)


def results(found):
  return {group.query_id: ranked for _, group, ranked in found}


@pytest.mark.parametrize('name', LABELS)
def test_a_query_gets_what_it_gets_alone(folder, mesh, name):
  """Whatever the size of batches, the other queries, and their order."""
  together = results(opened(folder, mesh, name, rows=3).ranked([(None, GROUPS)]))
  assert list(together) == [group.query_id for group in GROUPS]
  one = opened(folder, mesh, name, rows=1, live=1)
  alone = results(one.ranked([(group, [group]) for group in GROUPS[::-1]]))
  assert len({tuple(r.scores.tolist()) for r in together.values()}) == len(GROUPS)
  for query, ranked in together.items():
    np.testing.assert_allclose(ranked.scores, alone[query].scores, atol=2e-4)
    assert ranked.counts == alone[query].counts


def test_prompts_and_tokens_are_counted(folder, mesh):
  made = opened(folder, mesh, 'prp_allpair')
  made.work._ready = -1e9  # an earlier pass ended long ago
  counts = [ranked.counts for _, _, ranked in made.ranked([(None, GROUPS)])]
  assert [c['prompts'] for c in counts] == [12, 0, 0, 30, 2]
  work = made.work
  assert work.scored == sum(c['documents'] for c in counts) and work.seconds > 0
  assert work.idle < 1e8
  # What prompts share is computed once.
  assert 0 < work.tokens < sum(c['tokens'] for c in counts)
  assert work.places % (4 * made.row_len) == 0 and work.places >= work.tokens


def test_documents_come_in_the_order_of_the_first_stage_and_not_of_the_data(folder, mesh):
  group = GROUPS[3]
  shuffled = dataclasses.replace(group, docs=tuple(group.docs[i] for i in (3, 5, 0, 2, 4, 1)))
  for name in ('prp_sliding', 'listwise'):
    made = opened(folder, mesh, name)
    a, b = (
      dict(zip([d.doc_id for d in g.docs], r.scores.tolist(), strict=True))
      for _, g, r in made.ranked([(None, [group, shuffled])])
    )
    assert a == pytest.approx(b, abs=1e-4)


def test_documents_without_a_rank_follow_by_id():
  docs = [Document(i, '', '', label=0, rank=r) for i, r in (('z', 0), ('b', 2), ('a', 0), ('c', 1))]
  assert ranker.places(Group('q', '', tuple(docs))) == [3, 1, 2, 0]


class TestPermutations:
  def reference(self, made, query, docs):
    """Without a cache: the whole text again for every decision."""
    net, prompt = made.network, made.prompt
    variables = made._answering._variables
    ids = prompt.encode_many([(query, docs)])[0].ids.tolist()
    left, order = list(range(len(docs))), []

    @jax.jit
    def read(batch, index):
      return net.label_logits(variables, net.hidden(variables, batch), index, prompt.label_ids)

    while left:
      batch = reference.rows([ids], length=512)
      logits = read(batch, np.array([[len(ids) - 1]]))
      best = max(left, key=lambda i: float(logits[0, i]))
      left.remove(best)
      order.append(best)
      ids += [prompt.label_ids[best], *prompt.separator_ids]
    return order

  def test_are_those_of_decoding_without_a_cache(self, folder, mesh):
    made = opened(folder, mesh, 'listwise_permutation', window=6, stride=3)
    groups = make_groups((6, 3, 5, 2), seed=3)
    seen = set()
    for _, group, ranked in made.ranked([(None, groups)]):
      order = np.argsort(-ranked.scores).tolist()
      assert order == self.reference(made, group.query, group.docs)
      seen.add(tuple(order))
    assert any(list(order) != sorted(order) for order in seen)

  def test_the_first_decision_is_the_largest_label_logit(self, folder, mesh):
    [group] = make_groups((4,), seed=5)
    [(_, decoded)] = opened(folder, mesh, 'listwise_permutation')([group])
    [(_, at_once)] = opened(folder, mesh, 'listwise')([group])
    assert np.argmax(decoded) == np.argmax(at_once)


def test_free_decoding_is_repaired_and_counted(folder, mesh):
  made = opened(folder, mesh, 'listwise_text')
  for _, group, ranked in made.ranked([(None, GROUPS)]):
    n = len(group.docs)
    assert sorted(ranked.scores.tolist()) == list(range(1, n + 1))
    counts = ranked.counts
    faults = sum(counts.get(kind, 0) for kind in ('wrong_format', 'repetition', 'missing'))
    # A random model writes nothing of use.
    assert faults == counts.get('answers', 0) == counts['prompts']


def test_the_query_likelihood_is_that_of_the_pointwise_ranker(folder, mesh):
  made = opened(folder, mesh, 'query_likelihood')
  text = TextPrompt(made.prompt.tokenizer, 128, 8, '{title} : {summary} : {query}', 'query')
  variables = made._answering._variables
  likelihood = pointwise.PointwiseRanker(
    made.network, variables, text, mesh, 4, 128, 'query_likelihood'
  )
  theirs = [scores for _, scores in likelihood(GROUPS)]
  for (_, ours), expected in zip(made(GROUPS), theirs, strict=True):
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize('name', ['rankllama_v1', 'rankllama_tevatron', 'rankllama_paper'])
def test_a_linear_head_scores_as_in_transformers(folder, mesh, name, tmp_path):
  torch = pytest.importorskip('torch')
  from transformers import AutoModelForSequenceClassification

  theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0)
  torch.manual_seed(0)
  theirs.score.weight.data.normal_(0, 1)
  theirs.eval().save_pretrained(tmp_path)
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / file).write_text((folder / file).read_text())
  made = opened(tmp_path, mesh, name)
  [(_, ours)] = made([GROUPS[3]])
  for doc, score in zip(GROUPS[3].docs, ours, strict=True):
    ids = made.prompt.encode_many([(GROUPS[3].query, [doc])])[0].ids.tolist()
    with torch.no_grad():
      expected = theirs(torch.tensor([ids])).logits[0, 0].item()
    assert score == pytest.approx(expected, rel=1e-3, abs=1e-3)


class TestWhatDoesNotFit:
  def test_an_encoder(self):
    with pytest.raises(UserError, match='is a bert model, which answers no prompts'):
      ranker.open_for(plan_of('yes_no'), 'tiny-encoder')

  def test_a_window_larger_than_the_context(self, tmp_path):
    folder = llm_models.write(tmp_path / 'short', max_position_embeddings=128)
    with pytest.raises(UserError) as caught:
      ranker.open_for(plan_of('listwise', window=20), folder)
    message = str(caught.value)
    assert 'reads at most 128 tokens' in message and '20 documents of 12 tokens' in message
    assert message.endswith('lower window or doc_tokens')

  def test_a_tokenizer_without_the_labels(self):
    with pytest.raises(UserError, match="'yes_no': the label ' Yes' is not one token"):
      ranker.open_for(plan_of('yes_no'), 'tiny-decoder')

  def test_a_head_that_the_model_lacks(self, folder):
    with pytest.raises(UserError, match='has no trained head'):
      ranker.open_for(plan_of('rankllama_v1'), folder)

  def test_parameters_that_give_no_numbers(self, folder, mesh):
    plan = plan_of('yes_no')
    model, prompt = ranker.open_for(plan, folder, precision='float32')
    broken = jax.tree.map(lambda x: x * np.nan, model.pretrained(0, mesh))
    made = ranker.LLMRanker(plan, model.network, broken, prompt, mesh, 2)
    with pytest.raises(UserError, match='not finite'):
      list(made(GROUPS))

  @pytest.mark.parametrize(
    'options, message',
    [
      ({'stride': 0}, 'stride: is 0; must be 1 or more'),
      ({'stride': 5}, 'stride: is 5; must be at most the window, 4'),
      ({'window': 1}, 'window: is 1; must be 2 or more'),
      ({'children': 1}, 'children: is 1; must be 2 or more'),
    ],
  )
  def test_options(self, options, message):
    with pytest.raises(UserError, match=message):
      plan_of('listwise', **options)

  def test_a_contract_of_another_kind(self):
    with pytest.raises(UserError, match=r"'prp': method 'yes_no' needs one with one document"):
      methods.contract_of(methods.find('yes_no'), 'prp')
    with pytest.raises(UserError, match=r"'yes_no': method 'first' needs one with several"):
      methods.contract_of(methods.find('first'), 'yes_no')
    with pytest.raises(UserError, match="'setwise': has no separator"):
      methods.contract_of(methods.find('listwise_permutation'), 'setwise')


def test_a_reranker_whose_score_is_a_difference_of_logits_is_opened(folder, tmp_path):
  """sentence-transformers writes LogitScore beside the language model that this ranker reads."""
  saved = shutil.copytree(folder, tmp_path / 'm')
  (saved / 'config_sentence_transformers.json').write_text('{"model_type": "CrossEncoder"}')
  rows = [{'path': '', 'type': 'x.Transformer'}, {'path': '1_LogitScore', 'type': 'x.LogitScore'}]
  (saved / 'modules.json').write_text(json.dumps(rows))
  with pytest.raises(UserError, match='`disranker llm-rank` reads logits'):
    rerankers.check(saved)
  model, _ = ranker.open_for(plan_of('yes_no'), saved)
  assert model.network.head == 'lm'


def test_the_labels_of_a_sequence_classifier_are_a_difference_of_rows(folder, mesh, tmp_path):
  """A linear head whose row is W[Yes] - W[No] gives the log-odds."""
  odds = opened(folder, mesh, 'yes_no')
  [(_, expected)] = odds([GROUPS[3]])
  yes, no = odds.prompt.label_ids
  net = network.from_hf(folder, head='rank')
  lm = hf.load(folder, network.from_hf(folder, head='lm'), jax.random.key(0))
  kernel = lm['params']['lm_head']['kernel']
  params = {k: v for k, v in lm['params'].items() if k != 'lm_head'}
  params['score'] = {'kernel': (kernel[:, yes] - kernel[:, no])[:, None]}
  plan = odds.plan
  contract = dataclasses.replace(plan.contract, labels=(), formula='head')
  plan = dataclasses.replace(plan, contract=contract)
  prompt = plan.prompt(odds.prompt.tokenizer)
  [(_, found)] = ranker.LLMRanker(plan, net, {'params': params}, prompt, mesh, 4)([GROUPS[3]])
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max() + 1e-5)


def test_with_kernels_of_8_bits_the_scores_are_close_but_not_the_same(folder, mesh):
  full, small = (
    np.concatenate([scores for _, scores in opened(folder, mesh, 'yes_no', quantize=q)(GROUPS)])
    for q in ('', 'int8')
  )
  # Matrices six times as large as usual make the differences larger too.
  assert np.abs(small - full).max() > 1e-5 and np.corrcoef(small, full)[0, 1] > 0.8
