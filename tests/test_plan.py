"""The plan: what is read from a compiled program, counted from shapes, and said about a slice."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from disranker_jax import config
from disranker_jax.commands.plan import chips, hlo, report, stages
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import families, flops
from disranker_jax.models.network import Network

ROOT = Path(__file__).parents[1]
DEVICES = 8


# Slices


@pytest.mark.parametrize(
  ('name', 'gbits'), [('v4', 2400), ('v5e', 1600), ('v5p', 4800), ('v6e', 3200)]
)
def test_a_closed_torus_has_the_published_bandwidth(name, gbits):
  chip = chips.CHIPS[name]
  grid = (16, 16) if chip.axes == 2 else (8, 8, 8)
  assert chips.Slice(chip, grid).ici_rate * 8 == pytest.approx(gbits * 1e9)


def test_a_corner_of_an_open_grid_has_one_link_an_axis():
  link = chips.CHIPS['v5e'].link_rate
  rates = {
    grid: chips.Slice(chips.CHIPS['v5e'], grid).ici_rate for grid in ((4, 4), (8, 16), (1, 1))
  }
  assert rates == {(4, 4): 2 * link, (8, 16): 3 * link, (1, 1): 0}


def test_a_slice_is_found_by_its_name():
  found = chips.find('v5p:2x2x2')
  assert (found.chip.name, found.grid, found.size, found.name) == ('v5p', (2, 2, 2), 8, 'v5p:2x2x2')


@pytest.mark.parametrize('name', ['', 'v5e', 'v9:4x4', 'v5e:4x4x4', 'v5p:4x4', 'v5e:0x4', 'v5e-16'])
def test_an_unknown_slice_is_an_error_that_names_the_others(name):
  with pytest.raises(UserError, match=r'v5e:1x1.*4x4.*v6e'):
    chips.find(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
    chips.devices(chips.find('v5e:4x4'))


# Reading a program

LOOP = """HloModule step

%outer_body (p: (s32[], f32[3,8,128], f32[8,128])) -> (s32[], f32[3,8,128], f32[8,128]) {
  %p = (s32[], f32[3,8,128]{2,1,0}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %layers = f32[3,8,128]{2,1,0} get-tuple-element(%p), index=1
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=2
  %layer = f32[8,128]{1,0} fusion(%layers, %i), kind=kLoop, calls=%slice
  %all = bf16[32,128]{1,0} all-gather(%half), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %ring = (u32[], f32[16]{0}, f32[8,128]{1,0}) tuple(%zero, %few, %layer)
  %inner = (u32[], f32[16]{0}, f32[8,128]{1,0}) while(%ring), condition=%inner_cond, body=%inner_body
  ROOT %out = (s32[], f32[3,8,128]{2,1,0}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%next, %layers, %x)
  %zero = u32[] constant(2)
  %half = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %few = f32[16]{0} parameter(2)
}

%slice (a: f32[3,8,128], b: s32[]) -> f32[8,128] {
  %a = f32[3,8,128]{2,1,0} parameter(0)
  ROOT %s = f32[8,128]{1,0} bitcast(%a)
}

%outer_cond (q: (s32[], f32[3,8,128], f32[8,128])) -> pred[] {
  %q = (s32[], f32[3,8,128]{2,1,0}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

%inner_body (r: (u32[], f32[16], f32[8,128])) -> (u32[], f32[16], f32[8,128]) {
  %r = (u32[], f32[16]{0}, f32[8,128]{1,0}) parameter(0)
  %k = u32[] get-tuple-element(%r), index=0
  %two = u32[] constant(2)
  %more = u32[] add(%k, %two)
  %mine = f32[16]{0:T(128)S(1)} get-tuple-element(%r), index=1
  %send = (f32[16]{0}, f32[16]{0:S(1)}, u32[], u32[]) collective-permute-start(%mine), channel_id=2, source_target_pairs={{0,1},{1,0}}, frontend_attributes={kernel_metadata={
"a": "{1}"
}}
  %got = f32[16]{0:T(128)S(1)} collective-permute-done(%send)
  %part = f32[2]{0:T(128)S(1)} fusion(%mine), kind=kLoop, calls=%pieces
  %kept = f32[8,128]{1,0} get-tuple-element(%r), index=2
  ROOT %again = (u32[], f32[16]{0}, f32[8,128]{1,0}) tuple(%more, %got, %kept)
}

%pieces (u: f32[16]) -> f32[2] {
  %u = f32[16]{0} parameter(0)
  %v = bf16[8,128]{1,0} parameter(1)
  %again.1 = bf16[32,128]{1,0} all-gather(%v), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %w = f32[2]{0} slice(%u)
}

%inner_cond (t: (u32[], f32[16], f32[8,128])) -> pred[] {
  %t = (u32[], f32[16]{0}, f32[8,128]{1,0}) parameter(0)
  %l = u32[] get-tuple-element(%t), index=0
  %ten = u32[] constant(10)
  ROOT %under = pred[] compare(%l, %ten), direction=LT
}

ENTRY %main (w: f32[3,8,128], x: f32[8,128]) -> f32[8,128] {
  %w = f32[3,8,128]{2,1,0} parameter(0)
  %x0 = f32[8,128]{1,0} parameter(1)
  %start = s32[] constant(0)
  %go = s32[] copy(%start)
  %args = (s32[], f32[3,8,128]{2,1,0}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%go, %w, %x0)
  %loop = (s32[], f32[3,8,128]{2,1,0}, f32[8,128]{1,0:T(8,128)S(1)}) while(%args), condition=%outer_cond, body=%outer_body
  %y = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=2
  ROOT %sum = f32[8,128]{1,0} all-reduce(%y), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_in_loops_count_as_often_as_the_loops_run():
  moved = hlo.Program(LOOP).moved(8)
  # Three layers; in each a ring of (10 - 2) / 2 trips. The all-gather goes on inside the ring's
  # fusions, under the same channel, and still happens once a layer.
  assert moved.counts == {'all-gather': 3, 'collective-permute': 12, 'all-reduce': 1}
  array = 8 * 128
  assert moved.bytes == {
    'all-gather': 3 * 3 * array * 2,  # three others' parts, bf16
    'collective-permute': 12 * 16 * 4,
    'all-reduce': 2 * array * 4 * 7 // 8,
  }


def test_hbm_traffic_counts_slices_of_scanned_arrays_and_no_arrays_on_the_core():
  layer, gathered = 8 * 128 * 4, 32 * 128 * 2
  integers = 3 * 4 + 3 * 4 * 4  # the loops' counters: they lie in HBM where nothing is said
  scan = 3 * (layer + layer + gathered)  # a slice read, a layer and the gathered written
  assert hlo.Program(LOOP).moved(8).hbm == pytest.approx(scan + layer, abs=4 * integers)


@pytest.mark.parametrize(
  ('attributes', 'size'),
  [
    ('replica_groups={{0,4},{1,5},{2,6},{3,7}}, x', 2),
    ('replica_groups=[2,4]<=[8], x', 4),
    ('replica_groups=[1,8]<=[2,4]T(1,0)', 8),
    ("replica_groups=mesh['a'=16,'b'=2] {'a'}, x={}", 16),
    ("replica_groups=mesh['a'=16,'b'=2] {'a','b'}", 32),
    ("replica_groups=mesh['a'=16,'b'=2] {'a':(4)4}", 4),
    ('replica_groups={}, x', 64),
    ('', 64),
  ],
)
def test_the_size_of_a_group_in_every_notation(attributes, size):
  assert hlo.group_size(attributes, 64) == size


@pytest.mark.parametrize(
  ('kind', 'taken_in'),
  [
    ('all-gather', 700), ('all-gather-start', 700), ('reduce-scatter', 87), ('all-reduce', 175),
    ('all-to-all', 87), ('collective-permute-start', 100),
  ],
)  # fmt: skip
def test_bytes_of_ring_algorithms(kind, taken_in):
  each = hlo.Instruction('x', (), kind, '', '', False)
  assert hlo.payload(each, 100, 8) == taken_in


def test_the_compilers_own_trip_count_is_taken_first():
  loop = next(i for i in hlo.Program(LOOP).computations['main'] if i.opcode == 'while')
  noted = dataclasses.replace(loop, attributes=loop.attributes + ', {"known_trip_count":{"n":"7"}}')
  assert hlo.Program(LOOP).trips(noted, 'main') == 7


# The answer


def settings(**changes):
  c = config.defaults()
  c.update(
    {'teacher': {'model': 'tiny-decoder'}, 'student': {'model': 'tiny-encoder', 'layers': ()}}
  )
  for key, value in changes.items():
    section, _, name = key.partition('__')
    c[section][name] = value
  return c


ANSWER = """
import json, sys
import jax, jax.numpy as jnp
from disranker_jax import config
from disranker_jax.commands.plan import chips, hlo, report
from disranker_jax.devices import sharding
from jax.sharding import NamedSharding, PartitionSpec as P

c = config.defaults()
c.teacher.update(model='tiny-decoder', row_len=512, remat='full')
for stage in ('cpt', 'score', 'distill'):
  c[stage].batch_rows = 16
c.student.update(model='tiny-encoder', row_len=256, layers=())
mesh = sharding.make_mesh({'data': 1, 'fsdp': -1, 'model': 1})
where = chips.Slice(chips.CHIPS['v5e'], (2, 4))
answers = {s: report.plan(c, s, where, mesh, 1000, 128) for s in sys.argv[1:]}

def spread(layers, x):
  @jax.shard_map(mesh=mesh, in_specs=P('fsdp'), out_specs=P('fsdp'))
  def loop(x):
    return jax.lax.scan(lambda x, _: (x + jax.lax.psum(x, 'fsdp'), None), x, length=5)[0]
  return loop(x)
x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P('fsdp')))
moved = hlo.Program(jax.jit(spread).lower(0, x).compile().as_text()).moved(8)
print(json.dumps([answers, moved.counts, moved.bytes]))
"""


@pytest.fixture(scope='module')
def on_eight_devices():
  flags = {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES}', 'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }  # fmt: skip
  done = subprocess.run(
    [sys.executable, '-c', ANSWER, 'cpt', 'score', 'distill'],
    env=os.environ | flags, capture_output=True, text=True, cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_real_scanned_program_has_its_collectives_counted(on_eight_devices):
  _, counts, taken_in = on_eight_devices
  assert counts == {'all-reduce': 5}
  assert taken_in == {'all-reduce': 5 * 2 * (8 * 16 * 4) * 7 // 8}


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['cpt', 'score', 'distill'])
def test_a_plan_of_a_real_step_adds_up(on_eight_devices, stage):
  answer = on_eight_devices[0][stage]
  assert answer['fits'] and answer['mesh'] == {'data': 1, 'fsdp': 8, 'model': 1}
  assert sum(answer['memory'].values()) == answer['bytes_per_device'] < answer['hbm_bytes']
  # fsdp spreads matrices, so that weights travel, and 8 devices hold less than one does.
  assert sum(kind['bytes'] for kind in answer['collectives'].values()) > 0
  c = settings(teacher__row_len=512, student__row_len=256)
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  alone = stages.trace(c, stage, mesh).held['parameters']
  assert answer['memory']['parameters'] < alone
  seconds = answer['seconds']
  assert seconds['step'] == max(seconds[k] for k in ('compute', 'hbm', 'ici'))
  assert seconds[answer['bound']] == seconds['step']
  # 16 rows, each with as many pairs of 128 tokens as go into it.
  row_len = 256 if stage == 'distill' else 512
  pairs, epochs = 16 * row_len // 128, 2 if stage == 'distill' else 1
  assert answer['pairs_per_s'] * seconds['step'] == pytest.approx(pairs)
  assert answer['tokens_per_s'] * seconds['step'] == pytest.approx(16 * row_len)
  assert answer['steps'] == math.ceil(1000 * epochs / pairs)
  hours = answer['steps'] * seconds['step'] / 3600
  assert answer['chip_hours'] == pytest.approx(8 * hours)


@pytest.mark.slow
def test_one_block_on_many_devices_is_worth_a_hint(on_eight_devices):
  answers = on_eight_devices[0]
  assert '--config.cpt.data_shards=8' in answers['cpt']['hints'][0]
  assert answers['cpt']['hints'][0] in report.text(answers['cpt'])
  # Scoring chooses its blocks itself.
  assert answers['score']['hints'] == []


@pytest.mark.slow
def test_text_and_json_say_whether_it_fits(on_eight_devices):
  answer = on_eight_devices[0]['cpt']
  said = json.loads(report.as_json(answer))
  assert '\n' not in report.as_json(answer)
  for key in ('fits', 'bytes_per_device', 'hbm_bytes'):
    assert said[key] == answer[key]
  assert 'fits: ' in report.text(answer) and '1,000 rows (--rows)' in report.text(answer)


def traced(c, stage):
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
  return mesh, stages.trace(c, stage, mesh)


def test_what_does_not_fit_says_what_to_try(monkeypatch):
  def compile_():
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Used 17.5G of 15.75G hbm.')

  c = settings(sft__batch_rows=2, teacher__remat='none')
  mesh, step = traced(c, 'sft')
  step = dataclasses.replace(step, lower=lambda: SimpleNamespace(compile=compile_))
  monkeypatch.setattr(stages, 'trace', lambda *_: step)
  answer = report.plan(c, 'sft', chips.find('v5e:1x1'), mesh)
  assert not answer['fits'] and answer['bytes_per_device'] == 17.5 * 2**30
  assert sum(answer['memory'].values()) == answer['bytes_per_device']
  said = report.text(answer)
  assert 'does NOT fit' in said and '--config.sft.optimizer=adafactor' in said
  assert '--config.sft.batch_rows=1 --config.sft.gradient_accumulation_steps=2' in said
  assert '--config.teacher.remat=full' in said and '--config.teacher.lora_rank' in said
  assert not json.loads(report.as_json(answer))['fits']


def test_the_papers_rows_are_the_default_and_accumulation_is_part_of_a_step():
  c = settings(
    student_sft__batch_rows=2, student_sft__gradient_accumulation_steps=2, student__row_len=64
  )
  c.student.max_len = 64
  mesh, step = traced(c, 'student_sft')
  answer = report.plan(c, 'student_sft', chips.find('v5e:1x1'), mesh)
  assert answer['rows'] == 796_095 and answer['rows_from'] == 'the paper'
  micro_batch = flops.count(step.network, step.batch, step.trained)
  assert answer['flops']['model'] == 2 * micro_batch.model
  assert answer['steps'] == math.ceil(796_095 * 2 / (2 * 2))
  assert answer['collectives'] == {} and answer['seconds']['ici'] == 0


def test_being_out_of_memory_is_an_answer_and_other_errors_are_not():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 15.77G of 15.75G hbm.'
  assert report.exhausted(message) == int(15.77 * 2**30)
  assert report.exhausted(message + '\n\nTotal hbm usage >= 16.02G:') == int(16.02 * 2**30)
  assert report.exhausted('INTERNAL: Mosaic failed to compile') is None

  def compile_():
    raise jax.errors.JaxRuntimeError('INTERNAL: broken')

  step = stages.Step(None, None, lambda: SimpleNamespace(compile=compile_), {}, {}, None)
  with pytest.raises(jax.errors.JaxRuntimeError, match='broken'):
    report.compile_step(step, chips.find('v5e:4x4'))


def test_auto_is_meant_for_the_slice_and_not_for_this_machine():
  class Mesh:
    devices = SimpleNamespace(flat=[SimpleNamespace(platform='tpu')])

  side = settings().teacher
  resolved = stages._resolved(side, Mesh)
  assert (resolved.precision, resolved.attention) == ('bfloat16', 'splash')
  assert (side.precision, side.attention) == ('auto', 'auto')
  side.precision = 'float32'
  assert stages._resolved(side, Mesh).attention == 'xla'


@pytest.mark.parametrize('kernel', ['auto', 'cudnn'])
def test_a_gpu_is_planned_with_xlas_attention_because_cudnn_cannot_be_traced(kernel):
  side = settings().teacher
  side.attention = kernel
  resolved = stages._resolved(side, None, 'gpu')
  assert (resolved.precision, resolved.attention) == ('bfloat16', 'xla')


def test_a_model_is_known_by_its_published_sizes_without_weights(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  for name in ('mistralai/Mistral-7B-v0.1', '/bucket/models/Mistral-7B-v0.1'):
    folder = stages.config_folder(name, tmp_path)
    assert json.loads((folder / 'config.json').read_text())['hidden_size'] == 4096
  with pytest.raises(UserError, match=r'^its config\.json cannot be found .* one of mistralai'):
    stages.config_folder('no/such-model', tmp_path)
  with pytest.raises(UserError, match='/no/such/folder'):
    stages.config_folder('/no/such/folder', tmp_path)


@pytest.mark.parametrize(
  ('model', 'head', 'millions'),
  [
    ('mistralai/Mistral-7B-v0.1', 'lm', 7242),
    ('google-bert/bert-base-multilingual-cased', 'rank', 178),
    ('Qwen/Qwen3-4B', 'lm', 4022),
    ('answerdotai/ModernBERT-base', 'rank', 149.6),
  ],
)
def test_published_sizes_make_models_of_the_published_size(model, head, millions):
  network = Network(families.from_hf(stages.PUBLISHED[model]), head=head)
  assert network.count_params() / 1e6 == pytest.approx(millions, rel=0.002)
