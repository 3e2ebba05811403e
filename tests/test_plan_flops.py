"""FLOPs of a step: against an independent count of traced dots, and against the compiler."""

import dataclasses
import math

import index_texts
import jax
import numpy as np
import pytest

from disranker_jax.commands.plan import stages
from disranker_jax.data.batches import Shape
from disranker_jax.devices import sharding
from disranker_jax.generative import decoding
from disranker_jax.generative.beams import Searcher
from disranker_jax.generative.decoding import View
from disranker_jax.models import families, flops, generate, network, tree, writing
from disranker_jax.models.families.bert import BertConfig
from disranker_jax.models.families.decoder import DecoderConfig
from disranker_jax.models.families.modernbert import ModernBertConfig
from disranker_jax.models.kinds import Kind
from disranker_jax.models.network import Network
from disranker_jax.models.rope import Rope
from disranker_jax.training import optimizer

DECODER = DecoderConfig(vocab=512, width=128, ffn=256, layers=3, heads=4, kv_heads=2, head_dim=32)
ENCODER = BertConfig(vocab=512, width=128, ffn=256, layers=3, heads=4)
GEMMA = dataclasses.replace(
  DECODER, model_type='gemma3_text', post_norms=True, qk_norm=True, tied=True, kv_heads=1,
  kinds=(Kind(100, Rope(10.0)), Kind(), Kind(100, Rope(10.0))),
)  # fmt: skip
NARROW = dataclasses.replace(ENCODER, model_type='electra', embed_width=64)
MODERN = ModernBertConfig(
  vocab=512, width=128, ffn=192, layers=4, heads=4,
  kinds=(Kind(), Kind(65), Kind(65), Kind()), pooling='mean',
)  # fmt: skip
WAYS = (
  (DECODER, 'rank', 'none', 0, None),
  (DECODER, 'lm', 'none', 0, None),
  (dataclasses.replace(DECODER, tied=True), 'lm', 'none', 0, '.*'),
  (dataclasses.replace(DECODER, kinds=(Kind(100),) * 3), 'rank', 'full', 0, '.*'),
  (DECODER, 'lm', 'full', 0, '.*'),
  (DECODER, 'lm', 'dots', 0, '.*'),
  (DECODER, 'rank', 'full', 4, 'lora/.*|score'),
  (DECODER, 'rank', 'none', 0, 'score'),
  (dataclasses.replace(DECODER, tied=True), 'lm', 'none', 4, 'lora/.*'),
  (ENCODER, 'rank', 'none', 0, None),
  (ENCODER, 'rank', 'full', 0, '.*'),
  (ENCODER, 'rank', 'dots', 0, '.*'),
  # A norm after a layer's last product needs its value again.
  (GEMMA, 'rank', 'full', 0, '.*'),
  (GEMMA, 'lm', 'dots', 4, 'lora/.*'),
  (NARROW, 'rank', 'none', 0, None),
  (NARROW, 'rank', 'full', 0, '.*'),
  (MODERN, 'rank', 'none', 0, None),
  (MODERN, 'rank', 'full', 0, '.*'),
  (MODERN, 'rank', 'dots', 4, 'lora/.*|classifier'),
)


def dot_flops(jaxpr, times=1) -> int:
  """2 m k n of every dot product that is traced, times the lengths of the scans around it."""
  total = 0
  for e in jaxpr.eqns:
    if e.primitive.name == 'dot_general':
      (contracted, _), _ = e.params['dimension_numbers']
      inner = math.prod(e.invars[0].aval.shape[i] for i in contracted)
      total += times * 2 * math.prod(e.outvars[0].aval.shape) * inner
    if e.primitive.name == 'cond':  # of its branches one is run: those of attention cost the same
      total += times * max(dot_flops(branch.jaxpr) for branch in e.params['branches'])
      continue
    again = times * (e.params['length'] if e.primitive.name == 'scan' else 1)
    each = [0]
    for value in jax.tree.leaves(list(e.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr')):
      inside = getattr(value, 'jaxpr', value)
      each.append(dot_flops(inside, again) if hasattr(inside, 'eqns') else 0)
    total += max(each) if e.primitive.name == 'cond' else sum(each)  # of branches one is taken
  return total


def step_of(network, batch, trained):
  """(a loss with gradients, or scores alone; its arguments as shapes)."""

  def loss(trained, frozen, batch):
    variables = tree.unflatten(trained | frozen)
    hidden = network.hidden(variables, batch)
    if network.head == 'lm':
      predicted = batch['index_AP'], batch['targets_AP'], batch['owner_AP'] >= 0
      return network.logprobs(variables, hidden, *predicted).sum()
    return network.score_at(variables, hidden, batch).sum()

  shapes = jax.eval_shape(network.init, jax.random.key(0))
  split = optimizer.split(shapes, trained) if trained else ({}, tree.flatten(shapes))
  return (jax.value_and_grad(loss) if trained else loss), (*split, batch)


def way(model, head, remat, lora_rank, trained, scan):
  network = Network(model, head=head, remat=remat, lora_rank=lora_rank, scan=scan)
  batch = Shape(2, 256, 1, 256 if head == 'lm' else 0).zeros(2)
  return flops.count(network, batch, trained), *step_of(network, batch, trained)


@pytest.mark.parametrize('case', WAYS)
def test_flops_are_those_of_the_dots_that_are_traced(case):
  from jax.interpreters import partial_eval

  count, step, args = way(*case, scan=True)
  traced = jax.make_jaxpr(step)(*args).jaxpr
  needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
  assert count.hardware == dot_flops(needed)


@pytest.mark.parametrize('case', [WAYS[0], WAYS[4], WAYS[8]])
def test_flops_are_near_the_compilers_count_of_an_unrolled_model(case, monkeypatch):
  monkeypatch.setattr(network, 'LOGPROB_CHUNK', 512)  # a loop over chunks is not unrolled
  count, step, args = way(*case, scan=False)
  analysis = jax.jit(step).lower(*args).compile().cost_analysis()
  # The compiler also counts softmax, norms and other work on elements.
  assert count.hardware == pytest.approx(analysis['flops'], rel=0.05)


def test_room_for_predictions_that_is_empty_counts_for_nothing(monkeypatch):
  monkeypatch.setattr(network, 'LOGPROB_CHUNK', 32)  # 64 where there are two blocks
  model, batch = Network(DECODER, head='lm'), Shape(2, 256, 1, 128).zeros(2)
  batch['owner_AP'][1, :65] = 0  # two of its four chunks, so the other block computes two, too
  wide, narrow = (flops.count(model, b) for b in (batch, flops.filled(batch)))
  none = flops.count(model, flops.filled(Shape(2, 256, 1, 128).zeros(2)))
  assert wide.model - narrow.model == 2 * 2 * 128 * DECODER.vocab * DECODER.width
  assert narrow.model - none.model == 2 * 2 * 128 * DECODER.vocab * DECODER.width
  plain = Shape(2, 256, 1).zeros()
  assert flops.filled(plain) is plain


def test_model_flops_of_the_7b_are_6_n_and_halved_attention():
  with_table = stages.PUBLISHED['mistralai/Mistral-7B-v0.1']
  model = families.from_hf(with_table)
  network = Network(model, head='lm', remat='full', attention='splash')
  batch = Shape(1, 1024, 1, 1024).zeros()
  layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 4096 * 14336 * 3
  matrices = 32 * layer + 4096 * 32000
  attention = 32 * 12 * 4096 * 1024 * 1025 // 2
  count = flops.count(network, batch, '.*')
  assert count.model == pytest.approx(1024 * 6 * matrices + attention)
  assert flops.count(dataclasses.replace(network, remat='none'), batch, '.*').model == count.model


@pytest.mark.parametrize(
  ('model', 'pairs'),
  [
    (DECODER, 0),  # causality's blocks are skipped
    (dataclasses.replace(DECODER, kinds=(Kind(100),) * 3), 3),  # a window is part of the mask
    (dataclasses.replace(DECODER, kinds=(Kind(500),) * 3), 0),  # wider than the row
    (ENCODER, 0),
  ],
)
def test_cudnn_computes_what_only_the_window_masks(model, pairs):
  network = Network(model, attention='cudnn')
  batch = Shape(2, 256, 1).zeros()
  seen = sum(min(i + 1, 100) for i in range(256))
  masked = 2 * 2.0 * 2 * 128 * pairs * (256 * 256 - seen)
  assert flops.count(network, batch).masked == masked
  # Forward and backward pass have 6 products, and the scores are computed again.
  assert flops.count(network, batch, '.*').masked == masked / 2 * 7


@pytest.mark.parametrize('shared', [0, 33])
@pytest.mark.parametrize('model', [DECODER, dataclasses.replace(DECODER, tied=True), GEMMA])
def test_flops_of_writing_are_those_of_the_dots_that_are_traced(model, shared):
  network = Network(model, head='lm', lora_rank=4 if model.tied else 0)
  texts = writing.Texts(prompts=4, samples=3, longest=40, max_new=1, shared=shared)
  variables = jax.eval_shape(network.init, jax.random.key(0))
  ids, key = [7] * shared, jax.random.key(0)

  def write(variables, tokens_BT):
    common = generate.share(network, variables, ids)
    ones, size = np.ones((4, texts.padded), np.int32), (network, texts.slots, texts.samples)
    if shared:
      of_rest = variables, common.operands[0], common.caches, tokens_BT, ones
      last_BD, caches = generate._prefill_rest(*size, *of_rest)
    else:
      last_BD, caches = generate.prefill(*size, variables, tokens_BT, ones)
    room = texts.slots - texts.padded
    segments_BS = np.ones((texts.rows, texts.slots), np.int32)
    return generate._continue(
      network, True, False, room, 0, variables, caches, last_BD, segments_BS, 0, 1,
      np.array([2]), key, np.arange(texts.rows), np.array([1.0, 0.9]), common.operands,
    )  # fmt: skip

  tokens_BT = jax.ShapeDtypeStruct((4, texts.padded), 'int32')
  counted = dot_flops(jax.make_jaxpr(write)(variables, tokens_BT).jaxpr)  # the loop's body once
  once = jax.make_jaxpr(lambda v: generate.share(network, v, ids))(variables).jaxpr
  assert writing.count(network, texts).hardware == counted - dot_flops(once)
  # Another token costs the same again.
  more = dataclasses.replace(texts, max_new=4)
  assert more.slots == texts.slots
  token = (writing.count(network, more).hardware - writing.count(network, texts).hardware) / 3
  assert 0 < token < writing.count(network, texts).hardware


def test_flops_of_a_beam_search_are_those_of_the_dots_that_are_traced():
  """It has the logits of prompts once, continues its beams, and does not read their last tokens."""
  model = Network(dataclasses.replace(DECODER, vocab=index_texts.VOCAB), head='lm')
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  variables = jax.eval_shape(model.init, jax.random.key(0))
  index = index_texts.index(index_texts.pages(20), 512)
  views = [View('body', None, 4, 3), View('title', index_texts.TITLE, 5, 3)]
  search = Searcher(model, variables, index, views, index_texts.END, mesh, 4, 20)
  tokens_BT = jax.ShapeDtypeStruct((4, 32), 'int32')
  for view in views:
    texts = writing.Beams(prompts=4, samples=3, longest=20, max_new=view.length)
    plan = search.plans[view.name]
    assert (texts.padded, texts.slots) == (plan.prompt, plan.slots)

    def write(variables, tokens_BT, plan=plan, view=view):
      ones = np.ones(tokens_BT.shape, np.int32)
      last_RD, caches = generate.prefill(model, plan.slots, 3, variables, tokens_BT, ones)
      segments_RS = np.ones((12, plan.slots), np.int32)
      start = search.starts[view.name]
      return decoding.search(
        model, plan, variables, search.index, start, caches, last_RD[::3], segments_RS
      )

    counted = dot_flops(jax.make_jaxpr(write)(variables, tokens_BT).jaxpr)
    assert writing.count(model, texts).hardware == counted
