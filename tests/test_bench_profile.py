"""`bench profile`: whose time an operation's is, on a program made for it and on a tiny stage."""

import json
from pathlib import Path

import bench_data
import jax
import jax.numpy as jnp
import pytest

from benchmarks import __main__ as command
from benchmarks import step_profile
from benchmarks.step_profile import Operation

TINY = Path(__file__).parents[1] / 'configs' / 'tiny.py'


def test_instructions_know_the_scope_that_they_were_traced_in():
  def loss(w, x):
    with jax.named_scope('up'):
      h = jnp.tanh(x @ w)
    with jax.named_scope('down'):
      return jnp.sum(h @ w.T)

  x = jnp.ones((64, 64))
  compiled = jax.jit(jax.grad(loss)).lower(x, x).compile()
  parts = {
    step_profile.part(scope) for _, scope in step_profile.scopes(compiled.as_text()).values()
  }
  assert {('feed-forward', 'forward'), ('feed-forward', 'backward')} <= parts


def test_a_fusion_without_a_scope_has_that_of_what_it_computes():
  text = """HloModule m
%inner (p: f32[2]) -> f32[2] {
  %p = f32[2] parameter(0)
  ROOT %double.1 = f32[2] add(%p, %p), metadata={op_name="jit(f)/attend/add"}
}
ENTRY %main (x: f32[2]) -> (f32[2]) {
  %x = f32[2] parameter(0)
  %fused.2 = f32[2] fusion(%x), kind=kLoop, calls=%inner
  ROOT %out = (f32[2]) tuple(%fused.2)
}"""
  known = step_profile.scopes(text)
  assert known['fused.2'] == ('fusion', 'jit(f)/attend/add')
  assert known['out'] == ('tuple', '')


@pytest.mark.parametrize(
  ('scope', 'wanted'),
  [
    ('jit(step)/jvp(Encoder)/blocks/q/dot_general', ('q, k, v, o', 'forward')),
    ('jit(step)/transpose(jvp(Encoder))/blocks/up/dot_general', ('feed-forward', 'backward')),
    ('jit(s)/transpose(jvp(D))/blocks/rematted_computation/mlp_norm/mul', ('norms', 'again')),
    ('jit(step)/update/mul', ('update', 'update')),
    ('jit(step)/jvp(Encoder)/words/gather', ('embeddings', 'forward')),
    ('jit(step)/jvp(Encoder)/blocks/add', ('rest of the layers', 'forward')),
    ('jit(step)/jvp(logprobs)/while/body/reduce_sum', ('head', 'forward')),
    ('jit(step)/Decoder.logits/pd,vd->pv/dot_general', ('head', 'forward')),
    ('jit(step)/jvp()/reduce_sum', ('loss and the rest', 'forward')),
    ('', ('copies without a scope', 'forward')),
  ],
)
def test_parts_and_ways(scope, wanted):
  assert step_profile.part(scope) == wanted


def test_what_runs_at_the_same_time_shares_it_and_containers_do_not_count():
  known = {'a': ('dot', ''), 'b': ('dot', ''), 'loop': ('while', '')}
  ran = [
    Operation('loop', 0, 100),
    Operation('a', 0, 10),
    Operation('b', 5, 15),
    Operation('a', 5, 15),  # on another thread
    Operation('stranger', 0, 50),
    Operation('b', 20, 30),
  ]
  # 0 to 5: a alone; to 10: a, b, a; to 15: b, a; 20 to 30: b.
  total = step_profile.add_up(ran, known)
  assert total == pytest.approx({'a': 5 + 10 / 3 + 2.5, 'b': 5 / 3 + 2.5 + 10})
  assert sum(total.values()) == pytest.approx(25)  # the time in which anything ran


@pytest.mark.parametrize('stage', ['distill', 'evaluate'])
def test_a_stages_step(capsys, tmp_path, stage):
  bench_data.write(tmp_path)
  data = [f'--config.data.{k}={v}' for k, v in bench_data.addresses(tmp_path).items()]
  options = [
    f'--stage={stage}',
    '--steps=1',
    '--rounds=2',
    '--top=3',
    '--json',
    '--config.mesh.data=1',
  ]
  command.main(['profile', f'--config={TINY}', *options, *data, f'--trace={tmp_path / "trace"}'])
  out = capsys.readouterr().out
  found = json.loads(out.splitlines()[-1])
  assert found['steps'] >= 2
  spent = {name: sum(ways.values()) for name, ways in found['parts'].items()}
  # Between steps nothing of the program runs; the profiler's clock and ours are not the same.
  assert 0 < sum(spent.values()) < 1.1 * found['step_ms']
  assert spent['attention'] > 0 and spent['feed-forward'] > 0
  assert (spent.get('update', 0) > 0) == (stage == 'distill')
  assert any(ways['backward'] > 0 for ways in found['parts'].values()) == (stage == 'distill')
  assert len(found['top']) == 3 and found['top'][0]['ms'] >= found['top'][2]['ms'] > 0
  assert '| feed-forward |' in out and list((tmp_path / 'trace').rglob('*.xplane.pb'))
