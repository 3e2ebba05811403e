"""No command takes an accelerator before it computes on it: the sides of a bench need all of it.

The processes of these tests may use no device: a backend that is started there raises an error.
"""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import bench_data
import llm_models
import pytest

import benchmarks
import disranker_jax

ROOT = Path(__file__).parents[1]
TINY = ROOT / 'configs' / 'tiny.py'
NO_DEVICE = 'no_such_device'


def without_device(program: str, *argv: str, seconds: float = 240) -> list[str]:
  """The lines that a program prints in a process without any device."""
  environment = os.environ | {
    'JAX_PLATFORMS': NO_DEVICE, 'PYTHONPATH': f'{ROOT}:{Path(__file__).parent}',
  }  # fmt: skip
  done = subprocess.run(
    [sys.executable, '-c', program, *argv], env=environment, capture_output=True, text=True,
    timeout=seconds, cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout.splitlines()


def test_a_backend_that_is_started_would_be_an_error():
  with pytest.raises(AssertionError, match=NO_DEVICE):
    without_device('import jax; jax.numpy.zeros(1)')


def test_importing_any_module_starts_no_backend():
  names = [
    module.name
    for package in (disranker_jax, benchmarks)
    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.')
    if not module.name.endswith('__main__')
  ]
  assert 'disranker_jax.models.network' in names and 'benchmarks._ours' in names
  program = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
  try:
    importlib.import_module(name)
  except ModuleNotFoundError as e:
    if e.name not in ('torch', 'sentence_transformers'):
      raise
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
  assert without_device(program, json.dumps(names)) == ['False']


def test_bm25_computes_without_jax():
  program = """
from disranker_jax.data.first_stage import BM25, library
from disranker_jax.data.records import Document
top = BM25([Document('0', 'red fox', 'runs'), Document('1', 'blue dog', 'sleeps')]).top(['dog'], 1)
print(top[0][0][0], library().selection.JAX_IS_AVAILABLE)
import jax.lax
print(jax.lax.top_k.__name__)
"""
  assert without_device(program) == ['1 False', 'top_k']


BENCHES = """
import contextlib, json, sys
from pathlib import Path
from benchmarks import __main__ as command, _baselines, _load, _student, _worker, serve, soak

ROW = {'seconds': 1.0, 'steps': 1, 'tokens': 2, 'places': 3, 'pairs': 1, 'idle_s': 0.1,
       'cpu_s': 1.0, 'peak_flops': 1e9}
FACTS = {'device': 'a card', 'precision': 'bfloat16', 'flops': 1e6, 'compile_s': 1.0, 'first_s': 1,
         'compiled_bytes': 1, 'memory_bytes': 1}
ANSWERS = {'start': FACTS, 'warm': {}, 'turn': ROW, 'end': {}}

class Worker:
  age = 1.0
  def __init__(self, bench, name, *_, **__): self.name = name
  def __enter__(self): return self
  def __exit__(self, *_): pass
  def ask(self, what): return ANSWERS[what]

class Apart:
  def __init__(self, *_): pass
  def __call__(self, query, texts): return 1.0, [0.5] * len(texts)
  def close(self): pass

_worker.Worker, _baselines.Apart = Worker, Apart
_student.write = lambda config, folder: Path(sys.argv[2])
serve.server = soak.server = lambda *_, **__: contextlib.nullcontext(('http://nobody', None))
_load.closed = lambda *_: [(200, 0.1)]
soak.run = lambda *_: print('done', 'soak') or sys.exit()
for argv in json.loads(sys.argv[1]):
  command.main(argv)
  print('done', argv[0])
"""


def test_the_parent_of_a_bench_leaves_the_device_to_its_sides(tmp_path, model):
  bench_data.write(tmp_path)
  data = [f'--config.data.{k}={v}' for k, v in bench_data.addresses(tmp_path).items()]
  stage = [f'--config={TINY}', *data, f'--workdir={tmp_path}', '--rounds=1']
  benches = [
    ['train', *stage, '--stage=distill', '--peers=none'],
    ['score', *stage, '--stage=evaluate', '--peers=none'],
    ['growth', *stage, '--stage=sft', '--axes=rows,start', '--times=1'],
    ['generate', '--model=tiny-decoder', '--rounds=1', '--peers=none'],
    ['latency', f'--config={TINY}', f'--random={tmp_path}', '--systems=ours jax', '--queries=1'],
    ['data', *stage, '--stage=sft', '--queries=8'],
    ['serve', f'--model={model}', '--systems=ours jax', '--clients=1', '--seconds=1'],
    ['soak', f'--model={model}', '--backend=jax'],  # the last one, because it exits
  ]
  out = without_device(BENCHES, json.dumps(benches), str(model))
  assert [line for line in out if line.startswith('done')] == [f'done {b[0]}' for b in benches]


def test_data_and_onnx_need_no_device(tmp_path, model):
  bench_data.write(tmp_path)
  source = f'jsonl:{tmp_path}/test.jsonl'
  prepare = ['prepare', f'--source={source}', '--kind=test', f'--out={tmp_path}/out']
  program = """
import json, sys
from disranker_jax.commands import cli
for argv in json.loads(sys.argv[1]):
  cli.main(argv)
"""
  without_device(program, json.dumps([prepare, ['describe', source]]))
  score = """
import sys, disranker_jax
print(len(disranker_jax.load(sys.argv[1], 'onnx').rank('a name', ['len : number', 'zip : a'])))
"""
  assert without_device(score, str(model)) == ['2']


def test_the_parent_of_an_ablation_leaves_the_device_to_its_runs(tmp_path):
  llm_models.without_weights(tmp_path / 'chat')
  program = """
import sys
from disranker_jax.commands import ablate, ablation, ablation_runs
args = ablate.parse_args(sys.argv[1:])
found = ablation.available(ablation.load(args.file, args.base), args)
rows = found.rows
# Each has a run that prepared nothing yet.
for run in ablation_runs.planned(args, found, (0,), (0,)):
  (run.workdir / 'data').mkdir(parents=True)
  (run.workdir / 'config.json').touch()
  (run.workdir / 'data' / 'manifest.json').write_text('{"config": {}, "inputs": {}}')
  assert 'is stale' in ablation_runs.changed(args, run)
print(','.join(row.model for row in rows if row.model in ablation.METHODS))
"""
  file = ROOT / 'configs' / 'ablations' / 'rankers.py'
  out = without_device(
    program, str(file), f'--config={TINY}', f'--config.teacher.model={tmp_path / "chat"}',
    f'--workdir={tmp_path / "runs"}',
  )  # fmt: skip
  assert out == ['yes_no,graded,prp_allpair,prp_allpair_soft,setwise,listwise,first']
