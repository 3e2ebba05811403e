"""How full batches are, and how fast documents are tokenised and packed for scoring.

`padding` packs the config's data as each of its stages does, in one pass over the data or the first
200 batches, and prints the share of positions that hold a token. `speed` tokenises and packs
documents as scoring does, without a device: the most that one process can supply. No weights are
read.
"""

import functools
import itertools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from disranker_jax.commands.common import Parser, load_config, prepare_absl
from disranker_jax.data import batches, pool, streams
from disranker_jax.data.bundles import Bundle
from disranker_jax.data.tokenising import Encoder
from disranker_jax.devices import runtime, sharding
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.rankers import filling, pointwise
from disranker_jax.rankers.shards import units
from disranker_jax.stages import chosen, cpt, distill, evaluate, prepare, roles, score, sft

BATCHES = 200


def open_run(config, folder: str):
  """A run with its data prepared."""
  run = Run(config, Path(folder), sharding.make_mesh(config.mesh))
  prepare.execute(run)
  return run


def filled(blocks) -> tuple[float, int]:
  """(share of positions with a token, number of blocks)."""
  shares = [(block['segments_BT'] > 0).mean() for block in blocks]
  return float(np.mean(shares)), len(shares)


def training(run, stage: str, side, draw=None, predict=None):
  """Yields one block's batches of a training stage, over one pass."""
  task = {'cpt': cpt.task, 'sft': sft.task, 'distill': distill.task}.get(
    stage, functools.partial(sft.task, stage='student_sft')
  )(run.config, side.network)
  kinds = {'cpt': ['clicks'], 'distill': score.reads(run.config)}.get(stage, ['judgements'])
  source = list(itertools.chain(*(prepare.records(run, kind) for kind in kinds)))
  if stage == 'distill':
    source = [chosen.chosen(group, run.config.score) for group in source]
  one = batches.encode_click if stage == 'cpt' else batches.encode_group
  encode = functools.partial(one, side.prompt(predict=predict))
  c = run.config[stage]
  data = streams.training(source, encode, task.shape, seed=0, draw=draw, blocks=c.data_shards)
  stream, used = data.stream(0), 0
  for _ in range(BATCHES):
    block, names = stream.next()
    yield block
    used += len(names)
    if used * c.data_shards >= len(source):
      return


def documents(encoded):
  for (key, _), _, docs in encoded:
    for doc in docs:
      yield Bundle.alone(doc), [key]


def scored(prompt, shape, parts):
  """Yields blocks of documents as scoring packs them, part by part."""
  with Encoder(prompt) as encoder:
    for part in parts:
      keyed = (((i, group), group) for i, group in enumerate(part))
      for _, block in pool.pack(documents(encoder(keyed)), shape):
        yield block


def padding(args, config) -> None:
  with tempfile.TemporaryDirectory() as folder:
    run = open_run(config, folder)
    c = run.config
    teacher, student = roles.open_role(c, 'teacher'), roles.open_role(c, 'student')
    rows = {}
    for stage in [s for s in c.stages if s in systems.training_stages(c.system)]:
      side = teacher if systems.find(c, stage).role == 'teacher' else student
      size = c[stage].get('group_size', 0)
      draw = functools.partial(sft.draw, size) if size else None
      rows[stage] = training(run, stage, side, draw, c.cpt.predict if stage == 'cpt' else None)
    parts = []
    shape = pointwise.score_shape(c.teacher.scorer, c.score.batch_rows, c.teacher.row_len)
    for kind in score.reads(c) if 'score' in c.stages else ():
      chosen = score.open_chosen(run, kind)
      prompt = teacher.prompt()
      tokens = filling.measured(
        chosen, lambda g, p=prompt: sum(map(len, p.encode(g.query, g.docs)))
      ).tokens
      size = c.score.unit_queries or filling.unit_size(tokens, shape.rows * shape.row_len)
      parts += [[chosen[i] for i in u] for u in units([range(len(chosen))], size)]
    rows['score'] = scored(teacher.prompt(), shape, parts)
    tests = [evaluate.to_rerank(group) for group in prepare.records(run, 'test')]
    for name, side, kind in (
      ('teacher', teacher, c.teacher.scorer),
      ('student', student, 'score_head'),
    ):
      shape = pointwise.score_shape(kind, c.evaluate.batch_rows, side.settings.row_len)
      rows[f'evaluate {name}'] = scored(side.prompt(), shape, [tests])
    for name, blocks in rows.items():
      share, count = filled(blocks)
      print(f'{Path(args.config).stem:20} {name:18} {share:6.3f} {count:6}', flush=True)


def speed(args, config) -> None:
  with tempfile.TemporaryDirectory() as folder:
    run = open_run(config, folder)
    c = run.config
    groups = list(prepare.records(run, 'candidates'))
    shape = pointwise.score_shape(c.teacher.scorer, c.score.batch_rows, c.teacher.row_len)
    for name in ('teacher', 'student'):
      side = roles.open_role(c, name)
      for workers in args.workers:
        rates = []
        with Encoder(side.prompt(), workers) as encoder:
          for turn in range(args.turns + 1):
            begin, pairs = time.perf_counter(), 0
            keyed = (((i, group), group) for i, group in enumerate(groups))
            for keys, _ in pool.pack(documents(encoder(keyed)), shape):
              pairs += len(keys)
            if turn:  # the first turn starts the processes
              rates.append(pairs / (time.perf_counter() - begin))
        print(f'{name:8} {workers} workers: {np.median(rates):9,.0f} pairs/s', flush=True)


def main(argv) -> None:
  parser = Parser('bench batches', __doc__, 'padding --config configs/quickstart.py')
  parser.add_config()
  add = parser.add_argument_group('measure').add_argument
  add('what', choices=('padding', 'speed'), help='what to measure')
  add('--workers', type=int, nargs='+', default=[0, 1, 2], metavar='N', help=(
    'speed: processes that tokenise; 0 is a thread'))  # fmt: skip
  add('--turns', type=int, default=5, help='speed: turns, whose median is shown')
  args = parser.parse_args(argv)
  runtime.prepare()
  prepare_absl()
  jax.config.update('jax_platforms', 'cpu')
  config = load_config(args.config, args.overrides)
  {'padding': padding, 'speed': speed}[args.what](args, config)
