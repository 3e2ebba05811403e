"""Benches give all sides the same work: what torch gets is what our batches hold."""

import itertools
import json
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import bench_data
import jax
import numpy as np
import pytest

from benchmarks import _compare, _ours, _power, _random_data, _work
from disranker_jax.data import batches, python_docs
from disranker_jax.data.encoded import Encoded
from disranker_jax.devices import sharding, speed
from disranker_jax.errors import UserError
from disranker_jax.models import hf, tiny
from disranker_jax.models.network import from_hf

TINY = Path(__file__).parents[1] / 'configs' / 'tiny.py'
ENDS_IN_QUERY = '{title} : {summary} : {query}'


def encoded(rng, docs, predicted) -> batches.EncodedGroup:
  found = []
  for _ in range(docs):
    n = int(rng.integers(4, 12))
    ids, types = rng.integers(1, 99, (2, n)).astype(np.int32)
    found.append(Encoded(ids, types, int(rng.integers(n)), (1, n) if predicted else (0, 0)))
  labels, teacher = rng.integers(0, 4, docs).astype(np.float32), rng.standard_normal(docs)
  return batches.EncodedGroup(found, labels, teacher.astype(np.float32), 'name')


@pytest.mark.parametrize('predicted', [False, True])
def test_what_was_packed_comes_out_again(predicted):
  rng = np.random.default_rng(0)
  shape = batches.Shape(4, 64, 3, 64 if predicted else 0)
  blocks, groups = [], []
  for _ in range(2):
    packer = batches.Packer(shape)
    while packer.add(group := encoded(rng, int(rng.integers(1, 4)), predicted)):
      groups.append(group)
    blocks.append(packer.batch())
  assert len(groups) > 4
  found = _work.sequences(batches.join(blocks), number=3)
  docs = [(i, n, d) for i, g in enumerate(groups) for n, d in enumerate(g.docs)]
  assert len(found) == len(docs)
  numbers = [s.group for s in found]
  assert numbers == sorted(numbers) and min(numbers) == 3 * blocks[0]['mask_GN'].shape[0] * 2
  in_order = list(dict.fromkeys(numbers))
  for s, (i, n, doc) in zip(found, docs, strict=True):
    np.testing.assert_array_equal(s.ids, doc.ids)
    np.testing.assert_array_equal(s.types, doc.types)
    assert s.anchor == doc.anchor and in_order.index(s.group) == i
    assert (s.label, s.teacher) == (groups[i].labels[n], groups[i].teacher[n])
    if predicted:
      np.testing.assert_array_equal(s.at, np.arange(*doc.predict) - 1)
      np.testing.assert_array_equal(s.targets, doc.ids[1:])
    assert s.at.ndim == 1 and len(s.at) == len(s.targets)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Tiny models with all their heads in the files, so that all readers start alike."""
  base = tmp_path_factory.mktemp('models')
  for name, head in (('tiny-decoder', 'lm'), ('tiny-encoder', 'rank')):
    tiny.make(name, base / 'plain' / name)
    network = from_hf(base / 'plain' / name, head=head)
    variables = jax.tree.map(
      lambda x: x * (4 if x.ndim > 1 else 1), jax.jit(network.init)(jax.random.key(1))
    )
    variables = jax.tree.map(np.asarray, variables)
    hf.save(base / name, network, variables, tokenizer_folder=base / 'plain' / name)
  return base


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A folder with what all stages of the tiny config read, quicker to make than python_docs."""
  folder = tmp_path_factory.mktemp('work')
  bench_data.write(folder)
  for stage in ('cpt', 'distill', 'evaluate'):
    work_on(folder, stage).prepare()
  return folder


def work_on(folder, stage, tokens=0, models=None, **changes) -> _work.Work:
  config = runpy.run_path(str(TINY))['get_config']()
  config.data.update(bench_data.addresses(folder))
  if models:
    config.teacher.model, config.student.model = (
      str(models / name) for name in ('tiny-decoder', 'tiny-encoder')
    )
  config.update_from_flattened_dict(changes)
  return _work.Work(config, stage, folder, tokens)


def peer():
  """Torch's side, on one thread: threads that wait for each other are slow on a busy machine."""
  pytest.importorskip('torch').set_num_threads(1)
  from benchmarks import _torch

  return _torch


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
  """Programs are not optimised in tests, so that large products would take long."""
  monkeypatch.setattr(speed, 'PEAK_SIZE', {'cpu': 128})
  monkeypatch.setattr(speed, 'PEAK_S', 0.01)


LORA = {'cpt.gradient_accumulation_steps': 2, 'teacher.lora_rank': 4, 'cpt.trainable': 'lora/.*'}


@pytest.fixture
def optimised(monkeypatch):
  """Programs are compiled as in a run."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield monkeypatch
  jax.config.update('jax_disable_most_optimizations', True)


STAGES = [
  ('cpt', {}),
  pytest.param('cpt', LORA, marks=pytest.mark.slow),
  ('sft', {'teacher.scorer': 'query_likelihood', 'teacher.template': ENDS_IN_QUERY}),
  pytest.param('student_sft', {'student_sft.data_shards': 2}, marks=pytest.mark.slow),
  (
    'distill',
    {'distill.loss': 'hybrid', 'distill.hard_label_weight': 0.5, 'student.remat': 'full'},
  ),
]


@pytest.mark.parametrize(('stage', 'changes'), STAGES)
def test_torch_has_our_loss_and_trains_what_we_train(stage, changes, models, prepared):
  torch_side = peer()
  work = work_on(prepared, stage, models=models, **changes)
  ours, theirs = _ours.Train(work, 2), torch_side.Train(work, 2, False, [32, 64], False)
  a, b = ours.start(), theirs.start()
  assert b['first_loss'] == pytest.approx(a['first_loss'], rel=2e-4)
  assert sum(p.numel() for p in theirs._trained) == sum(x.size for x in ours._trained.values())
  a, b = ours.turn(), theirs.turn()
  assert a['tokens'] == b['tokens'] and a['steps'] == b['steps'] == 2
  assert a['places'] >= a['tokens'] and b['places'] >= b['tokens']
  assert a['seconds'] > a['idle_s'] >= 0 and a['peak_flops'] > 0


@pytest.mark.parametrize('stage', ['score', 'evaluate'])
def test_torch_scores_what_we_score(stage, models, prepared):
  torch_side = peer()
  likelihood = {'teacher.scorer': 'query_likelihood', 'teacher.template': ENDS_IN_QUERY}
  work = work_on(prepared, stage, models=models, **likelihood)
  ours, theirs = _ours.Score(work, 2), torch_side.Score(work, 2, False, [5], False)
  ours.start(), theirs.start()
  groups = [work.groups()[i] for i in range(4)]
  found = theirs._encoded(groups)
  some, order = torch_side.parts(found, 5)
  scores = np.concatenate([x.numpy() for x in theirs._run(some)])[np.argsort(order)]
  expected = np.concatenate([s for _, s in ours._scorer(groups)])
  np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())
  a, b = ours.turn(), theirs.turn()
  assert a['tokens'] == b['tokens'] and a['pairs'] == b['pairs']


def test_flops_of_a_step_are_6_n_and_halved_attention(models, prepared):
  work = work_on(prepared, 'cpt', models=models, **{'cpt.gradient_accumulation_steps': 3})
  facts = _ours.Train(work, 1).start()
  rows, length, width, ffn, layers, kv = 8, 64, 32, 64, 2, 16
  matrices = layers * (2 * width * width + 2 * width * kv + 3 * width * ffn)
  predicted = rows * length  # cpt predicts documents: there is room for as many tokens as places
  attention = layers * 12 * width * rows * length * (length + 1) // 2
  head = 6 * predicted * width * tiny.VOCABULARY
  assert facts['flops'] == 3 * (6 * rows * length * matrices + attention + head)


class TestRandomTokens:
  @pytest.mark.parametrize('stage', ['cpt', 'sft', 'student_sft', 'score', 'evaluate'])
  def test_every_pair_has_as_many_as_asked(self, prepared, stage):
    work = work_on(prepared, stage, tokens=24)
    side = work.open_side()
    if stage in _work.SCORING:
      group = work.groups()[0]
      lengths = {len(d) for d in side.prompt().encode(group.query, group.docs)}
    else:
      found = next(_work.steps(work.job(side)[1]))
      lengths = {len(s.ids) for s in found}
      assert all(len(s.targets) for s in found) == (stage == 'cpt')
    assert lengths == {24}

  @pytest.mark.parametrize('stage', ['score', 'evaluate'])
  def test_they_are_scored(self, prepared, stage):
    side = _ours.Score(work_on(prepared, stage, tokens=24), 1)
    side.start()
    row = side.turn()
    assert row['pairs'] and row['tokens'] == 24 * row['pairs']

  def test_parameters_are_created_without_an_fp32_copy_of_the_model(
    self, prepared, tmp_path, optimised
  ):
    sizes = {'hidden_size': 128, 'intermediate_size': 512, 'num_hidden_layers': 12}
    config = tiny.CONFIGS['tiny-decoder'] | sizes
    (tmp_path / 'config.json').write_text(json.dumps(config))
    changes = {'teacher.model': str(tmp_path), 'teacher.param_dtype': 'bfloat16'}
    side = work_on(prepared, 'score', tokens=24, **changes).open_side()
    mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}, jax.devices()[:1])
    shapes = [x.size for x in jax.tree.leaves(side.network.shapes())]
    optimised.setattr(_work, 'PART', max(shapes))
    programs = [create.lower(jax.random.key(0)).compile() for create in side.creators(mesh)]
    analyses = [program.memory_analysis() for program in programs]
    assert sum(a.output_size_in_bytes for a in analyses) == pytest.approx(2 * sum(shapes), rel=0.01)
    # The fp32 values of one part, and the random bits of one layer of it.
    assert max(a.temp_size_in_bytes for a in analyses) < 6 * max(shapes) < 4 * sum(shapes) / 2

  def test_parameters_are_those_of_the_network(self, prepared):
    side = work_on(
      prepared, 'distill', tokens=24, **{'student.param_dtype': 'bfloat16'}
    ).open_side()
    made = side.pretrained(0, sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1}))
    own = jax.jit(side.network.init)(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype('bfloat16')), made, own)

  def test_no_weights_and_no_tokenizer_are_looked_for(self, prepared, monkeypatch):
    monkeypatch.setattr(
      'disranker_jax.models.weights.find', lambda name: pytest.fail('was looked for')
    )
    changes = {'teacher.model': 'mistralai/Mistral-7B-v0.1', 'teacher.precision': 'bfloat16'}
    side = work_on(prepared, 'score', tokens=32, **changes).open_side()
    assert side.network.config.width == 4096 and side.tokenizer is None

  @pytest.mark.parametrize('stage', ['cpt', 'distill', 'evaluate'])
  def test_no_texts_are_prepared(self, tmp_path, monkeypatch, stage):
    for name in ('groups', 'clicks'):
      monkeypatch.setattr(python_docs, name, lambda *_: pytest.fail('reads the documentation'))
    config = runpy.run_path(str(TINY))['get_config']()
    args = SimpleNamespace(config=config, tokens=24, stage=stage)
    work = _work.open_work(args, tmp_path)
    work.prepare()
    side = work.open_side()
    if stage == 'evaluate':
      assert len(work.groups()[0].docs) == _random_data.DOCUMENTS
    else:
      found = next(_work.steps(work.job(side)[1]))
      assert {len(s.ids) for s in found} == {24}
      assert stage == 'cpt' or len({s.label for s in found}) > 1

  def test_more_than_a_row_holds_is_refused(self, prepared):
    work = work_on(prepared, 'cpt', tokens=65)
    with pytest.raises(UserError, match=r'--tokens=65.*row_len=64'):
      work.open_side().prompt()


def test_rounds_of_scoring_nearly_fill_their_batches(prepared):
  work = work_on(prepared, 'score')
  groups, prompt = work.groups(), work.open_side().prompt()
  queries = groups.queries(prompt, 4 * 8 * 64)
  first, second = groups.take(queries), groups.take(queries)
  tokens = sum(len(d) for g in first for d in prompt.encode(g.query, g.docs))
  assert 0.8 < tokens / (4 * 8 * 64) < 1.1
  assert [g.query_id for g in second] == [groups[queries + i].query_id for i in range(queries)]


def test_distillations_scores_are_the_same_for_all(prepared):
  run = work_on(prepared, 'distill').run()
  a, b = _work.random_scores(run), _work.random_scores(run)
  assert len(a) == 64  # candidates and judgements
  for i in (0, 31, 32, 63):
    (group, scores), (same, again) = a[i], b[i]
    assert group.query == same.query and len(scores) == len(group.docs)
    np.testing.assert_array_equal(scores, again)
  assert a[31][0].docs[0].label == -1 <= 0 <= max(d.label for d in a[32][0].docs)


def test_steps_are_those_that_the_feed_gives(prepared):
  work = work_on(
    prepared,
    'student_sft',
    **{'student_sft.data_shards': 2, 'student_sft.gradient_accumulation_steps': 2},
  )
  _, feed = work.job(work.open_side())
  streams = [feed.data.stream(b) for b in (0, 1)]
  for found in itertools.islice(_work.steps(feed), 2):
    drawn = [[s.next()[0] for s in streams] for _ in range(2)]
    tokens = sum(int((b['segments_BT'] > 0).sum()) for pair in drawn for b in pair)
    assert sum(len(s.ids) for s in found) == tokens
    sizes = np.bincount([s.group for s in found])
    assert sizes.max() <= 4  # queries of different batches are never one


def test_a_part_is_padded_to_its_longest():
  torch_side = peer()
  empty = np.zeros(0, np.int64)
  lengths = [9, 3, 5, 7, 4]
  found = [
    _work.Sequence(np.arange(1, n + 1), np.zeros(n), n - 1, empty, empty, 0, 0.0, 0.0)
    for n in lengths
  ]
  some, order = torch_side.parts(found, 2)
  assert [tuple(p.ids.shape) for p in some] == [(2, 4), (2, 7), (1, 9)]
  assert [lengths[i] for i in order] == sorted(lengths)
  assert [p.mask is None for p in some] == [False, False, True]
  assert torch_side.counted(found, some) == {'tokens': 28, 'places': 8 + 14 + 9}


def test_parts_are_in_order_and_not_too_large():
  sizes = {'a': 3, 'b': 9, 'c': 2, 'd': 2, 'e': 1}
  assert list(_work.parts(sizes, 5)) == [['a'], ['b'], ['c', 'd', 'e']]
  assert list(_work.parts({}, 5)) == []


class TestWindow:
  def steps(self, monkeypatch, accelerator, each_s):
    now = [0.0]
    monkeypatch.setattr(_work.time, 'perf_counter', lambda: now[0])
    window, done = _work.Window(4, accelerator), 0
    while window(done):
      done, now[0] = done + 1, now[0] + each_s
    return done

  def test_a_cpu_does_its_steps(self, monkeypatch):
    assert self.steps(monkeypatch, False, 0.01) == self.steps(monkeypatch, False, 9.0) == 4

  def test_an_accelerator_works_for_two_seconds_at_least(self, monkeypatch):
    assert self.steps(monkeypatch, True, 0.125) == 16
    assert self.steps(monkeypatch, True, 9.0) == 4


@pytest.mark.parametrize('kind', ['Train', 'Score'])
def test_a_turn_goes_on_until_its_window_ends(kind, prepared, monkeypatch):
  side = getattr(_ours, kind)(work_on(prepared, 'sft' if kind == 'Train' else 'score'), 1)
  side.start()
  short = side.turn()
  monkeypatch.setattr(_ours, 'Window', lambda steps, accelerator: lambda done: done < 3)
  long = side.turn()
  if kind == 'Train':
    assert (short['steps'], long['steps']) == (1, 3)
  assert 2 * short['tokens'] < long['tokens']
  if kind == 'Score':
    assert 0 < long['busy_s'] <= long['seconds']


class TestPower:
  def test_watts_are_the_mean_of_each_gpu_added_up(self):
    lines = "print('0, 300.0\\n1, 100.0\\n0, 500.0\\n1, [N/A]\\n0, 4', end='', flush=True)"
    with _power.Meter([sys.executable, '-c', f'{lines}; import time; time.sleep(60)']) as meter:
      time.sleep(2)  # as long as the command needs to start
    assert meter.facts() == {'watts': 400.0 + 100.0}  # without the line that was cut

  def test_nothing_is_known_without_nvidia_smi(self, monkeypatch):
    monkeypatch.setenv('PATH', '')
    with _power.Meter() as meter:
      pass
    assert meter.facts() == {}


class Device:
  """One that counts its bytes, as accelerators do."""

  def __init__(self, *peaks):
    self.peaks = list(peaks)

  def memory_stats(self):
    return {'peak_bytes_in_use': self.peaks.pop(0)} if self.peaks else None


def test_the_peak_is_read_after_each_phase_where_the_device_counts(monkeypatch):
  device = Device(7, 9, 11)
  monkeypatch.setattr(_ours.jax, 'local_devices', lambda: [device])
  assert _ours.peak_after('loading') == {'loading_peak_bytes': 7}
  assert _ours.peak_after('compiling') == {'compiling_peak_bytes': 9}
  assert _ours.used()['device_bytes'] == 11
  assert _ours.peak_after('loading') == {}


def test_the_table_has_a_column_for_each_phase_that_is_known():
  side = {
    'tokens_per_s': 1.0,
    'compiled_bytes': 2e9,
    'loading_peak_bytes': 3e9,
    'memory_bytes': 4e9,
  }
  answer = {'bench': 'train', 'stage': 'sft', 'config': 'c', 'texts': 't', 'device': 'd'}
  answer |= {'rounds': 1, 'precision': 'bfloat16', 'peak_flops': 1e9, 'sides': {'ours': side}}
  head, _, row = _compare.text(answer).splitlines()[1:]
  assert 'step GB | loading GB | memory GB' in head and '2.00 | 3.00 | 4.00' in row
