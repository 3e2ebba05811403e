"""`disranker plan` for this machine and for GPUs, and the estimate before the first stage."""

import dataclasses
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from disranker_jax.commands.plan import chips, command, local, machine, stages
from disranker_jax.devices import memory, sharding, speed
from disranker_jax.errors import UserError
from disranker_jax.models import writing
from disranker_jax.pipeline import estimate, opening, reading, runner, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import generate, prepare

ROOT = Path(__file__).parents[1]
GIB = 2**30


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(autouse=True)
def speed_of_the_products(monkeypatch):
  """A machine that multiplies at 1 GFLOP/s."""
  monkeypatch.setattr(speed, 'matmul_typical', lambda precision, mesh: 1e9)


def tiny(**changes):
  c = runpy.run_path(str(ROOT / 'configs' / 'tiny.py'))['get_config']()
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c


def one_device():
  return sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])


def opened(c, *names) -> list[opening.Opened]:
  run = Run(c, Path('/nowhere'), one_device())
  return [one for name in names for one in opening.models_of(run, systems.find(run.config, name))]


# Memory


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'teacher__remat': 'full', 'teacher__row_len': 512, 'student__row_len': 512},
    {'sft__gradient_accumulation_steps': 2},
    {'teacher__lora_rank': 4, 'sft__trainable': 'lora', 'teacher__scorer': 'query_likelihood',
     'teacher__template': '{title} {summary} {query}'},
  ],
)  # fmt: skip
def test_memory_of_a_traced_step_is_near_the_compilers(changes):
  c = tiny(sft__batch_rows=64, score__batch_rows=64, **changes)
  for one in opened(c, 'sft', 'score'):
    needed = sum(one.step.held.values()) + estimate.live(one.step)
    compiled = memory.peak(one.step.lower().compile().memory_analysis())
    # Too much rather than too little: attention is most of these models, and the compiler fuses it.
    assert 0.8 * compiled < needed < 1.7 * compiled, one.stage.name


def test_values_are_counted_while_they_are_needed_and_no_longer():
  kib = jax.ShapeDtypeStruct((256,), 'float32')

  def chain(x):
    for _ in range(5):
      x = jax.lax.sin(x)
    return x

  assert memory.live(jax.make_jaxpr(chain)(kib).jaxpr) == 2 * 1024
  kept = jax.make_jaxpr(lambda x: [jax.lax.sin(x) for _ in range(4)])(kib)
  assert memory.live(kept.jaxpr) == 4 * 1024
  assert memory.live(jax.make_jaxpr(jax.jit(chain))(kib).jaxpr) == 2 * 1024

  def loop(x):
    return jax.lax.scan(lambda x, _: (chain(x), x), x, length=8)

  # Eight stacked values, beside the two of the body, of which one is what the loop carries.
  assert memory.live(jax.make_jaxpr(loop)(kib).jaxpr) == (8 + 2) * 1024


# The estimate before the first stage


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A workdir with prepared data."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  runner.run(tiny(), workdir, stages=['prepare'])
  return workdir


def costs(c, workdir, *names) -> dict[str, estimate.Cost]:
  run = Run(c, workdir, one_device())
  found = [one for name in names for one in opening.models_of(run, systems.find(run.config, name))]
  return {cost.stage: cost for cost in estimate.Estimate(run, found).costs(estimate.expected(run))}


def test_work_follows_from_the_prepared_records(prepared):
  found = costs(tiny(cpt__max_steps=0, cpt__epochs=2.0), prepared, 'cpt', 'score', 'evaluate')
  run = Run(tiny(), prepared, None)
  pairs = sum(min(len(g.docs), 4) for kind in ('candidates', 'judgements')
              for g in all_of(prepare.records(run, kind)))  # fmt: skip
  assert found['score'].work == f'{pairs:,} pairs'
  tests = sum(len([d for d in g.docs if d.in_pool]) for g in all_of(prepare.records(run, 'test')))
  assert found['evaluate'].work == f'{tests:,} pairs, 4 models'
  # 64 clicks of at most 48 tokens, twice, in batches of 8 rows of 64.
  steps = int(re.fullmatch(r'(\d+) steps', found['cpt'].work)[1])
  assert 2 * 64 / 32 <= steps <= 2 * 64 / 8


def all_of(records):
  return [records[i] for i in range(len(records))]


def test_time_is_that_of_the_work(prepared):
  """Twice the epochs take twice the time; steps that are done take none."""
  base = estimate.START_S['training']
  once, twice = (
    costs(tiny(sft__max_steps=0, sft__epochs=e), prepared, 'sft')['sft'].seconds - base
    for e in (4.0, 8.0)
  )
  assert once > 0 and twice == pytest.approx(2 * once, rel=0.1)
  saved = prepared / 'sft' / 'checkpoints' / '4'
  saved.mkdir(parents=True)
  rest = costs(tiny(), prepared, 'sft')['sft']
  (saved / 'rest').mkdir()
  saved.rename(saved.with_name('4.orbax-checkpoint-tmp'))  # one that is being saved
  whole = costs(tiny(), prepared, 'sft')['sft']
  short = re.fullmatch(r'6 steps( \(max_steps; one epoch is (\d+)\))', whole.work)
  one = costs(tiny(sft__max_steps=0, sft__epochs=1.0), prepared, 'sft')['sft'].work
  assert one == f'{short[2]} steps' and rest.work == f'6 steps{short[1]}, from step 4 on'
  assert rest.seconds - base == pytest.approx((whole.seconds - base) / 3)


def writes(folder, **changes):
  """configs/tiny.py with a stage that writes queries from 40 pages, 4 of them at a time."""
  pages = [{'doc_id': f'p{i}', 'title': f'file {i}', 'summary': 'Opens it.'} for i in range(40)]
  file = folder / 'pages.jsonl'
  file.write_text(''.join(json.dumps(page) + '\n' for page in pages))
  own = {'data__documents': f'jsonl:{file}', 'generate__shots': 0, 'generate__batch_rows': 4}
  own |= {'generate__max_len': 64, 'generate__max_new': 8, 'generate__samples': 2}
  c = tiny(**own | changes)
  c.stages = ('prepare', 'generate', 'score', 'distill')
  return c


def test_time_of_writing_is_that_of_products_and_of_reading_for_each_token(tmp_path, monkeypatch):
  rates = {'bytes': 1e9}
  monkeypatch.setattr(speed, 'reading', lambda mesh: rates['bytes'])
  start, peak = estimate.START_S['writing'], 1e9 * estimate.EFFICIENCY['writing']

  def seconds(**changes):
    c = writes(tmp_path, **changes)
    found = costs(c, tmp_path / 'run', 'generate')['generate']
    return found.seconds - start, found.work

  [one] = opened(writes(tmp_path), 'generate')
  [(texts, batches)], _ = one.use.writes(Run(writes(tmp_path), tmp_path / 'run', None), one.model)
  assert (texts.prompts, texts.samples, texts.max_new, batches) == (4, 2, 8, 10)
  assert texts.longest < 64  # as long as the prompts are, not as they may be
  each = writing.count(one.step.network, texts).hardware / peak
  held = writing.held(one.step.network, one.model.network.shapes(), texts)
  read = 8 * (held['operands'] + held['caches']) / 1e9
  found, work = seconds()
  assert work == '80 queries' and found == pytest.approx(10 * (each + read), rel=1e-3)
  # A shorter text saves its tokens alone.
  shorter = writing.count(one.step.network, dataclasses.replace(texts, max_new=4)).hardware / peak
  assert seconds(generate__max_new=4)[0] == pytest.approx(10 * (shorter + read / 2), rel=1e-3)
  rates['bytes'] = 1e6
  assert seconds()[0] == pytest.approx(10 * (each + 1000 * read), rel=1e-3)


def test_texts_that_are_there_take_no_time(tmp_path, monkeypatch):
  monkeypatch.setattr(speed, 'reading', lambda mesh: 1e9)
  c, start = writes(tmp_path), estimate.START_S['writing']
  whole = costs(c, tmp_path / 'run', 'generate')['generate']
  monkeypatch.setattr(generate.Shards, 'kept', lambda self: 20)
  rest = costs(c, tmp_path / 'run', 'generate')['generate']
  assert rest.work == '80 queries, 40 are there'
  assert rest.seconds - start == pytest.approx((whole.seconds - start) / 2)


def test_a_plan_of_writing_needs_no_compiler_and_counts_texts(tmp_path):
  c = writes(tmp_path, generate__batch_rows=8)
  mesh = one_device()
  where = chips.find('v5e:1x1')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(local.sharding, 'make_mesh', lambda sizes: mesh)
    [answer] = local.plan(c, ['generate'], machine.chips_of(where), 1000, 32)
    [longer] = local.plan(c, ['generate'], machine.chips_of(where), 2000, 64)
    patch.setattr(speed, 'reading', lambda mesh: 1e9)
    [here] = local.plan(c, ['generate'], machine.Machine('m', 'cpu', 1, None, 0, True), 1000, 32)
  assert answer['fits'] and answer['steps'] == 63 == math.ceil(1000 / 16)
  step = answer['seconds']['step']
  assert answer['hours'] == pytest.approx(63 * step / 3600)
  assert answer['tokens_per_s'] == pytest.approx(16 * 8 / step)
  read = answer['memory']['operands'] + answer['memory']['caches']
  assert answer['seconds']['hbm'] == pytest.approx(8 * read / where.chip.hbm_rate)
  assert longer['seconds']['compute'] > answer['seconds']['compute'] and longer['steps'] == 125
  assert here['steps'] == 63 and here['hours'] > answer['hours']
  said = local.text(machine.chips_of(where), [answer])
  assert '63 steps, 1,000 rows (--rows)' in said and 'texts/s' in said
  assert local.planned(c) == ['generate', 'score', 'distill']


def test_the_estimate_is_said_before_the_first_stage_and_times_once_data_are_there(
  tmp_path, capsys
):
  begun = []

  class Stop(Exception):
    pass

  def execute(self, stage):
    begun.append((stage.name, capsys.readouterr().err))
    if stage.name != 'prepare':
      raise Stop
    return original(self, stage)

  original = runner.Pipeline.run_stage
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
    patch.setattr(runner.Pipeline, 'run_stage', execute)
    runner.run(tiny(), tmp_path / 'run', estimate=True)
  (first, memory_said), (second, times_said) = begun
  assert (first, second) == ('prepare', 'cpt')
  assert 'estimate' not in memory_said  # all stages fit
  rows = [line.split() for line in times_said.splitlines() if line.startswith('  ')]
  names = [row[0] for row in rows]
  assert names == ['cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate', 'export', 'in']
  assert '1 GFLOP/s in float32' in times_said
  assert all(re.fullmatch(r'\d+m\d\ds', row[2 if row[0] == 'in' else 1]) for row in rows)


def test_no_estimate_measures_nothing_and_texts_that_are_cut_are_said(
  prepared, monkeypatch, capsys
):
  def measured(*_):
    raise AssertionError('measured')

  monkeypatch.setattr(speed, 'matmul_typical', measured)
  monkeypatch.setattr(memory, 'live', measured)
  monkeypatch.setattr(reading, 'CUT', -1.0)

  def begun(warn: bool) -> str:
    pipeline = runner.Pipeline(Run(tiny(), prepared, one_device()), ['cpt'], warn=warn)
    pipeline.look_at_records(opened(tiny(), 'cpt'), None)
    return capsys.readouterr().err

  said = begun(warn=True)
  assert 'teacher: ' in said and 'of the texts' in said and 'estimate' not in said
  assert not begun(warn=False)  # as for other seeds, which read the same


def test_what_will_probably_not_fit_gets_a_warning_with_remedies(capsys, monkeypatch):
  found = opened(tiny(), 'cpt', 'score')
  reckoned = estimate.Estimate(Run(tiny(), Path('/nowhere'), one_device()), found)
  cpt, score = reckoned.bytes_of
  monkeypatch.setattr(memory, 'limit', lambda: (cpt + score) // 2)
  reckoned.say_memory()
  said = capsys.readouterr().err
  assert re.search(r'estimate: memory of a device, of .*: cpt [\d.]+ GiB, score ', said)
  assert 'warning: cpt will probably not fit' in said and 'lower config.cpt.batch_rows' in said
  assert 'warning: score' not in said


# disranker plan


def test_gpus_are_named_by_their_count_and_memory(monkeypatch):
  for name in machine.FRACTIONS:
    monkeypatch.delenv(name, raising=False)
  assert machine.gpus('gpu:1x24').limit == 18 * GIB  # the share that JAX takes
  monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '.5')
  two = machine.gpus('gpu:2x80')
  assert (two.size, two.limit, two.platform) == (2, 40 * GIB, 'gpu')
  assert machine.gpus('v5e:2x2') is None and machine.gpus('gpu:0x80') is None
  monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '90%')
  with pytest.raises(UserError, match='XLA_CLIENT_MEM_FRACTION=90%: is not a number'):
    machine.gpus('gpu:1x24')


def test_a_plan_for_a_gpu_is_in_its_precision_and_says_what_to_try():
  c = tiny(teacher__precision='auto')
  here, gpu = (
    machine.Machine('m', platform, 1, limit) for platform, limit in (('cpu', None), ('gpu', 100))
  )
  with pytest.MonkeyPatch.context() as patch:
    mesh = one_device()
    patch.setattr(local.sharding, 'make_mesh', lambda sizes: mesh)
    [on_cpu], [on_gpu] = (local.plan(c, ['sft'], m, 0, 0) for m in (here, gpu))
  assert on_cpu['fits'] and not on_gpu['fits'] and 'hours' not in on_gpu
  assert on_gpu['memory']['activations'] < on_cpu['memory']['activations']  # bfloat16
  assert on_gpu['memory']['parameters'] == on_cpu['memory']['parameters']
  said = local.text(gpu, [on_gpu])
  assert 'sft         does NOT fit: ' in said and '--config.sft.optimizer=adafactor' in said
  assert 'a smaller model' in said


def test_a_plan_for_this_machine_has_all_stages_with_time(capsys):
  command.main(['--config', str(ROOT / 'configs' / 'tiny.py'), '--rows=1000', '--json'])
  *lines, last = capsys.readouterr().out.splitlines()
  answers = json.loads(last)
  assert [a['stage'] for a in answers] == ['cpt', 'sft', 'score', 'student_sft', 'distill']
  assert all(a['fits'] and a['rows'] == 1000 and a['hours'] > 0 for a in answers)
  said = [line for line in lines if 'steps' in line]
  assert ['(max_steps)' in line for line in said] == [True, True, False, True, True]
  assert '1,000 rows (--rows)' in said[2]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'teacher__max_len': 600, 'teacher__row_len': 600},
     r"config\.teacher\.max_len=600: 'tiny-decoder' reads at most 512 tokens"),
    ({'teacher__layers': (7,)}, r'config\.teacher\.layers=\[7\]: '),
    ({'teacher__model': '/no/model'}, r"config\.teacher\.model='/no/model': its config\.json"),
    ({'cpt__batch_rows': 3, 'cpt__data_shards': 2}, r'config\.cpt\.batch_rows=3 must be'),
  ],
)  # fmt: skip
def test_an_error_names_the_key_with_its_section(changes, message):
  with pytest.raises(UserError, match=f'^{message}'):
    stages.trace(tiny(**changes), 'cpt', sharding.make_mesh(tiny().mesh))


def test_a_slice_needs_a_stage():
  with pytest.raises(UserError, match='--stage: is missing'):
    command.main(['--config', str(ROOT / 'configs' / 'tiny.py'), '--topology=v5e:4x4'])


def test_several_gpus_share_the_parameters():
  def plan(topology, *flags):
    arguments = ['plan', f'--config={ROOT}/configs/tiny.py', f'--topology={topology}', '--json']
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax', *arguments, '--stage=sft', *flags],
      capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])[0]

  spread = plan('gpu:4x1', '--config.mesh.data=1', '--config.mesh.fsdp=4')
  alone = plan('gpu:1x1')
  assert spread['devices'] == 4 and spread['memory']['moments'] < alone['memory']['moments'] / 2
