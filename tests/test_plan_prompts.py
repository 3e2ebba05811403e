"""`disranker plan` for LLM rankers: lengths without a tokenizer, prompts per query, what fits."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import llm_models
import pytest

from disranker_jax import config as configs
from disranker_jax.commands.plan import command, local, machine, prompts, stages
from disranker_jax.data import named_contracts
from disranker_jax.data.contract_prompts import ContractPrompt, ExpectedPrompt
from disranker_jax.devices import sharding, speed
from disranker_jax.errors import UserError
from disranker_jax.models import load
from disranker_jax.rankers.llm.methods import METHODS

ROOT = Path(__file__).parents[1]


def config(**changes):
  c = runpy.run_path(str(ROOT / 'configs' / 'tiny.py'))['get_config']()
  c.stages = ('prepare', 'score', 'distill', 'evaluate')
  lengths = {f'{s}.prompts.{k}': n for s in ('score', 'evaluate')
             for k, n in (('query_tokens', 8), ('doc_tokens', 12))}  # fmt: skip
  c.update_from_flattened_dict(lengths | {k.replace('__', '.'): v for k, v in changes.items()})
  return c


def here(limit=None):
  return machine.Machine('m', 'cpu', 1, limit, measured=True)


@pytest.fixture(autouse=True)
def speed_of_the_products(monkeypatch):
  monkeypatch.setattr(speed, 'matmul_typical', lambda precision, mesh: 1e9)


def test_fields_and_labels_are_those_of_the_prompts_with_a_tokenizer(tmp_path):
  tokenizer = load.open_tokenizer(llm_models.write(tmp_path / 'model'))
  for name, docs in (('yes_no', 1), ('prp', 2), ('listwise', 5), ('qwen3_reranker', 1)):
    contract = named_contracts.NAMED[name]
    found = [
      [cls(contract, *more, docs, 7, d) for d in (10, 30)]
      for cls, more in ((ContractPrompt, (tokenizer,)), (ExpectedPrompt, ()))
    ]
    (short, long), (expected, longer) = found
    assert longer.max_len - expected.max_len == long.max_len - short.max_len == 20 * docs
    assert len(expected.label_ids) == len(short.label_ids)
    more = ExpectedPrompt(contract, docs, 8, 10).max_len - expected.max_len
    assert more == ContractPrompt(contract, tokenizer, docs, 8, 10).max_len - short.max_len


@pytest.mark.parametrize('method', METHODS)
def test_every_method_has_a_plan(method):
  if METHODS[method].contract.startswith('rankllama'):
    c, name = config(score__method=method, teacher__scorer='score_head'), 'score'
  else:
    c, name = config(evaluate__rankers=(method,), data__depth=6), f'evaluate:{method}'
  asked = prompts.find(c, name)
  n = asked.documents
  assert asked.per_query == METHODS[method].prompts(n, asked.todo.options)
  [answer] = local.plan(c, [name], here(), rows=600, tokens=0)
  assert answer['fits'] and answer['method'] == method and answer['pair_tokens'] > 20
  step = stages.trace(c, name, sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1},
                                                  jax.devices()[:1]))  # fmt: skip
  rows, row_len = step.batch['tokens_BT'].shape
  each = rows * (row_len // answer['pair_tokens'])
  assert answer['steps'] == math.ceil(600 / n * asked.per_query / each)
  said = local.text(here(), [answer])
  assert f'{method}: ' in said and f' of {n} documents, {asked.per_query:,.0f} prompts' in said


def test_all_pairs_take_as_many_times_as_there_are_pairs():
  c = config(evaluate__rankers=('prp_allpair',))
  answers = [
    local.plan(config(evaluate__rankers=('prp_allpair',), data__depth=n), ['evaluate:prp_allpair'],
               here(), rows=80_000, tokens=0)[0]
    for n in (4, 8)
  ]  # fmt: skip
  four, eight = answers
  assert (four['prompts_per_query'], eight['prompts_per_query']) == (12, 56)
  # As many documents: half the queries, of 56 instead of 12 prompts.
  assert eight['hours'] / four['hours'] == pytest.approx(56 / 12 / 2, rel=1e-3)
  assert prompts.find(c, 'evaluate:prp_allpair').documents == 20  # of a run without a depth


def test_rankers_are_planned_with_the_stages_and_by_name(capsys):
  c = config(score__method='listwise', evaluate__rankers=('yes_no', 'listwise_permutation'))
  assert local.planned(c) == [
    'score', 'distill', 'evaluate:yes_no', 'evaluate:listwise_permutation',
  ]  # fmt: skip
  with pytest.raises(UserError, match=r'choose of .*distill, evaluate:yes_no'):
    command.main([
      f'--config={ROOT / "configs" / "tiny.py"}', '--stage=evaluate',
      "--config.evaluate.rankers=('yes_no',)",
    ])  # fmt: skip


@pytest.mark.parametrize('system', ['dgr', 'query_rewriting'])
def test_a_system_without_llm_rankers_has_none_to_plan(system):
  assert prompts.names(configs.defaults(system)) == []


def test_what_does_not_fit_names_the_section():
  c = config(evaluate__rankers=('yes_no',))
  [answer] = local.plan(c, ['evaluate:yes_no'], here(limit=1000), 0, 0)
  assert not answer['fits']
  assert f'--config.evaluate.batch_rows={c.evaluate.batch_rows // 2}' in answer['try']


def test_prompts_longer_than_the_context_are_refused():
  c = config(evaluate__rankers=('listwise',), evaluate__prompts__doc_tokens=4000)
  with pytest.raises(UserError, match=r'about 80,\d+; lower config.evaluate.prompts.window'):
    local.plan(c, ['evaluate:listwise'], here(), 0, 0)


def test_a_slice_is_planned_as_processes_of_their_own(monkeypatch):
  made = []
  monkeypatch.setattr(sharding, 'make_mesh', lambda sizes, devices: made.append((sizes, devices)))
  devices = [SimpleNamespace(process_index=i // 4) for i in range(16)]
  for fsdp, split in ((16, 4), (1, 1), (2, 2)):
    shape = {'data': 16 // fsdp, 'fsdp': fsdp, 'model': 1}
    mesh = SimpleNamespace(devices=SimpleNamespace(flat=devices), shape=shape)
    stages.mesh_of(config(score__method='yes_no'), 'score', mesh)
    assert made.pop() == ({'data': -1, 'fsdp': split, 'model': 1}, devices)
    assert stages.mesh_of(config(), 'score', mesh) is mesh  # the teacher's own scorer
