"""A process that trains a small model by `train.fit`: `python trainer.py SPEC`, a JSON object.

The model has parameters that every axis of a mesh splits; its data are packed by the real code. A
bomb in the spec makes the process send itself a signal, or fail, at one exact point, so that a test
stops it there on a machine of any speed. Every batch that is taken leaves a line in `record`. With
`on_policy` the labels of every batch depend on the parameters of its step.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from disranker_jax.commands.common import guarded
from disranker_jax.data import batches, streams
from disranker_jax.data.bundles import Bundle
from disranker_jax.data.encoded import Encoded
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import Stopped, UserError
from disranker_jax.training import train
from disranker_jax.training.feed import OfflineFeed
from disranker_jax.training.settings import defaults as training_settings
from disranker_jax.training.validation import Forward, Validation

VOCAB, WIDTH, QUERIES = 64, 16, 40
DEFAULTS = {
  'steps': 8, 'save_every': 2, 'blocks': 4, 'mesh': {'data': -1, 'fsdp': 1, 'model': 1},
  'watchdog_s': 0.0, 'heartbeat_s': 60, 'leave_s': 60,
  'wide': 1, 'settings': {}, 'bombs': [], 'record': '', 'on_policy': False, 'validation': {},
}  # fmt: skip


class Source:
  """Queries by number; `reads` counts how often each one is read."""

  def __init__(self):
    self.reads = dict.fromkeys(range(QUERIES), 0)

  def __len__(self):
    return QUERIES

  def __getitem__(self, i):
    self.reads[i] += 1
    return i


def encode(i: int) -> batches.EncodedGroup:
  rng = np.random.default_rng(i)
  docs = []
  for _ in range(2):
    size = int(rng.integers(4, 14))
    ids = rng.integers(1, VOCAB, size).astype(np.int32)
    docs.append(Encoded(ids, np.zeros_like(ids), int(rng.integers(size)), (0, 0)))
  labels = np.array([d.ids[d.anchor] / VOCAB for d in docs], np.float32)
  return batches.EncodedGroup(docs, labels, labels, f'query {i}')


def loss(variables, batch):
  """Squared error of scores against labels that the scored token decides."""
  p = variables['params']
  tokens_AR = batch['tokens_BT'].reshape(len(batch['index_AX']), -1)
  scored_AX = jnp.take_along_axis(tokens_AR, batch['index_AX'], axis=1)
  hidden_AXD = p['embed'][scored_AX]
  for kernel in p['blocks']['q']['kernel']:
    hidden_AXD = jnp.tanh(hidden_AXD @ kernel)
  scores_GN = (hidden_AXD @ p['head']).reshape(batch['mask_GN'].shape)
  error_GN = jnp.where(batch['mask_GN'], jnp.square(scores_GN - batch['labels_GN']), 0.0)
  count = jnp.sum(batch['mask_GN'])
  return jnp.sum(error_GN), count, {'mean_score': jnp.mean(scores_GN), 'examples': count}


class OnPolicyFeed(OfflineFeed):
  """The same documents, but labels move with a statistic of the current parameters."""

  def next(self, variables):
    drawn, names = super().next()
    return [_shifted(batch, variables['params']['blocks']['q']['kernel']) for batch in drawn], names


def _shifted(batch, kernel):
  labels_GN = batch['labels_GN']
  shift = jax.jit(lambda x, w: x + jnp.mean(jnp.abs(w)), out_shardings=labels_GN.sharding)
  return batch | {'labels_GN': shift(labels_GN, kernel)}


def variables(wide: int) -> dict:
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 4  # noqa: E731
  return {
    'params': {
      'embed': draw(VOCAB * wide, WIDTH),
      'blocks': {'q': {'kernel': draw(2, WIDTH, WIDTH)}},
      'head': draw(WIDTH),
    }
  }


def job(spec: dict, source, mesh) -> tuple[train.Job, OfflineFeed]:
  settings = training_settings(
    learning_rate=1e-2, save_every=spec['save_every'], **spec['settings']
  )
  shape = batches.Shape(rows=8, row_len=32, docs=2)
  data = streams.training(source, encode, shape, seed=0, blocks=spec['blocks'])
  folder, watchdog_s = Path(spec['folder']), spec['watchdog_s']
  todo = train.Job('test', folder, loss, settings, spec['steps'], 'pairs', watchdog_s)
  feed = OnPolicyFeed if spec['on_policy'] else OfflineFeed
  return todo, feed(data, mesh, settings.gradient_accumulation_steps)


class HeldOut:
  """The loss on some queries that are not in the data, as a value of which more is better.

  So every step that learns is one without gain.
  """

  names, queries, labelled, made_of = ('ndcg@5',), 6, 0, ''

  def __init__(self, mesh):
    pairs = (encode(QUERIES + i) for i in range(self.queries))
    documents = [
      (Bundle.alone(doc, pair.name), [n]) for pair in pairs for n, doc in enumerate(pair.docs)
    ]
    shape = batches.Shape(rows=4, row_len=32, docs=1)
    self._forward = Forward(self._loss, documents, shape, mesh)
    self.batches = self._forward.batches

  @staticmethod
  def _loss(variables, batch):
    # Batches of documents have no labels; those of `encode` are the scored tokens.
    tokens_AR = batch['tokens_BT'].reshape(len(batch['index_AX']), -1)
    scored_AX = jnp.take_along_axis(tokens_AR, batch['index_AX'], axis=1)
    labels_GN = scored_AX.reshape(batch['mask_GN'].shape) / VOCAB
    return loss(variables, batch | {'labels_GN': labels_GN})[:2]

  def __call__(self, variables):
    sums = np.sum([found for _, found in self._forward(variables)], axis=0)
    return {'ndcg@5': sums[0] / sums[1]}


def validation(spec: dict, todo: train.Job, mesh) -> Validation | None:
  """The validation that a spec asks for."""
  todo.settings.validation.update(spec['validation'])
  used = bool(spec['validation'])
  return Validation('test', HeldOut(mesh), todo.settings, todo.steps) if used else None


def record(file: Path) -> None:
  """From here on every block that is taken is written down: which, where, of what, its digest."""
  take = streams.Stream.next

  def taken(stream):
    begin = stream.position
    block, names = take(stream)
    content = b''.join(block[k].tobytes() for k in sorted(block))
    line = [stream._block, begin, names, hashlib.sha256(content).hexdigest()]
    with file.open('a') as f:
      f.write(json.dumps(line) + '\n')
    return block, names

  streams.Stream.next = taken


def taken(folder: Path) -> dict[tuple[int, int], list]:
  """What `record` wrote in any process: {(block, position): [names, digest]}."""
  found = {}
  for file in sorted(folder.glob('?.jsonl')):
    for block, position, *what in map(json.loads, file.read_text().splitlines()):
      assert found.setdefault((block, position), what) == what, 'another batch at the same place'
  return found


def losses(folder: Path) -> list[float]:
  lines = list(map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines()))
  assert [line['step'] for line in lines] == list(range(1, len(lines) + 1))
  return [line['loss'] for line in lines]


def saved(folder: Path, step: int) -> dict[str, np.ndarray]:
  """Everything that a checkpoint holds: parameters, moments, statistics, the place in the data."""
  found = {}
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  for part in ('params', 'train'):
    where = folder / 'checkpoints' / str(step)
    shapes = ocp.metadata(where, checkpointable_name=part).metadata
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    values = ocp.load(where, wanted, checkpointable_name=part)
    for path, leaf in jax.tree.leaves_with_path(values):
      found[part + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def explode(what: str) -> None:
  if what == 'error':
    raise UserError('a bad record')
  if what == 'crash':
    raise RuntimeError('a bug')
  if what == 'stuck':  # alive, its heart beats, and it will not come
    while True:
      time.sleep(1)
  os.kill(os.getpid(), getattr(signal, what))


def arm(at: str, what: str, count: int = 1) -> None:
  """`what` happens at the `count`-th 'step' that is taken, or as 'compile' or 'save' begins."""
  calls = []
  owner, name = {
    'step': (OfflineFeed, 'next'),
    'compile': (train.Program, 'lower'),
    'save': (train.Checkpoints, 'save'),
  }[at]
  before = getattr(owner, name)

  def armed(*args):
    calls.append(at)
    if len(calls) == count and at == 'compile':
      lowered = before(*args)
      threading.Timer(0.05, explode, [what]).start()  # while the compiler works
      return lowered
    if len(calls) == count:
      explode(what)
    return before(*args)

  setattr(owner, name, armed)


def main(spec: dict) -> None:
  spec = DEFAULTS | spec
  processes.HEARTBEAT_S, processes.LEAVE_S = spec['heartbeat_s'], spec['leave_s']
  processes.start()
  index = jax.process_index()
  if spec['record']:
    record(Path(spec['record']) / f'{index}.jsonl')
  for bomb in spec['bombs']:
    if bomb.pop('process', 0) == index:
      arm(**bomb)
  source = Source()
  mesh = sharding.make_mesh(spec['mesh'])
  with guarded():
    try:
      todo, feed = job(spec, source, mesh)
      checked = validation(spec, todo, mesh)
      train.fit(todo, feed, variables(spec['wide']), mesh, checked)
    except Stopped as e:
      print(e, file=sys.stderr)
  if spec['record']:
    (Path(spec['record']) / f'{index}.reads.json').write_text(json.dumps(source.reads))


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
