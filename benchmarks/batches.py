"""How full batches are, and how fast documents are tokenised and packed for scoring.

`padding` prepares the config's data and packs them as each of its stages does: the share of places
that hold a token, in one pass over the data or the first 200 batches. `speed` takes documents
through the prompt and into batches as scoring does, with no device behind: what one process can
supply. No weights are read beyond what a tokenizer comes with.
"""

import argparse
import functools
import itertools
import runpy
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from disranker_jax import config as configs
from disranker_jax.data import batches, pool
from disranker_jax.data.tokenising import Encoder
from disranker_jax.devices import runtime, sharding
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.rankers import pointwise
from disranker_jax.stages import cpt, distill, evaluate, prepare, roles, score, sft

BATCHES = 200


def opened(file: str, changes: list[str], folder: str):
  """A run whose data are prepared."""
  config = runpy.run_path(file)['get_config']()
  for change in changes:
    key, value = change.removeprefix('--config.').split('=', 1)
    *section, name = key.split('.')
    at = functools.reduce(getattr, section, config)
    at[name] = type(at[name])(value)
  configs.check(config)
  run = Run(config, Path(folder), sharding.make_mesh(config.mesh))
  prepare.run(run)
  return run


def filled(blocks) -> tuple[float, int]:
  """The share of places with a token, and how many blocks there were."""
  shares = [(block['segments_BT'] > 0).mean() for block in blocks]
  return float(np.mean(shares)), len(shares)


def training(run, stage: str, side, draw=None, predict=None):
  """One block's batches of a training stage, over one pass."""
  task = {'cpt': cpt.task, 'sft': sft.task, 'distill': distill.task}.get(
    stage, functools.partial(sft.task, stage='student_sft')
  )(run.config, None)
  kinds = {'cpt': ['clicks'], 'distill': score.reads(run.config)}.get(stage, ['judgements'])
  source = list(itertools.chain(*(prepare.records(run, kind) for kind in kinds)))
  if stage == 'distill':
    source = [score.chosen(group, run.config.score) for group in source]
  one = batches.encode_click if stage == 'cpt' else batches.encode_group
  encode = functools.partial(one, side.prompt(predict=predict))
  c = run.config[stage]
  data = batches.training(source, encode, task.shape, seed=0, draw=draw, blocks=c.data_shards)
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
      yield batches.EncodedGroup.alone(doc), key


def scored(prompt, shape, parts):
  """Blocks of documents that are scored, part by part."""
  with Encoder(prompt) as encoder:
    for part in parts:
      keyed = (((i, group), group) for i, group in enumerate(part))
      for _, block in pool.pack(documents(encoder(keyed)), shape):
        yield block


def padding(args) -> None:
  with tempfile.TemporaryDirectory() as folder:
    run = opened(args.config, args.changes, folder)
    c = run.config
    teacher, student = roles.open_teacher(c), roles.open_side(c.student)
    rows = {}
    for stage in [s for s in c.stages if s in systems.training()]:
      side = teacher if systems.model_settings(c, stage) == c.teacher else student
      size = c[stage].get('group_size', 0)
      draw = functools.partial(sft.draw, size) if size else None
      rows[stage] = training(run, stage, side, draw, c.cpt.predict if stage == 'cpt' else None)
    parts = []
    for kind in score.reads(c) if 'score' in c.stages else ():
      groups = prepare.records(run, kind)
      shards = score.open_shards(run, kind, len(groups))
      parts += [
        [score.chosen(groups[i], c.score) for i in shards.span(s)] for s in range(len(shards))
      ]
    shape = pointwise.score_shape(c.teacher.scorer, c.score.batch_rows, c.teacher.row_len)
    rows['score'] = scored(teacher.prompt(), shape, parts)
    tests = [evaluate.pooled(group) for group in prepare.records(run, 'test')]
    for name, side, kind in (('teacher', teacher, c.teacher.scorer), ('student', student, 'eos')):
      shape = pointwise.score_shape(kind, c.evaluate.batch_rows, side.settings.row_len)
      rows[f'evaluate {name}'] = scored(side.prompt(), shape, [tests])
    for name, blocks in rows.items():
      share, count = filled(blocks)
      print(f'{Path(args.config).stem:20} {name:18} {share:6.3f} {count:6}', flush=True)


def speed(args) -> None:
  with tempfile.TemporaryDirectory() as folder:
    run = opened(args.config, args.changes, folder)
    c = run.config
    groups = list(prepare.records(run, 'candidates'))
    shape = pointwise.score_shape(c.teacher.scorer, c.score.batch_rows, c.teacher.row_len)
    for name, side in (('teacher', roles.open_teacher(c)), ('student', roles.open_side(c.student))):
      for workers in args.workers:
        rates = []
        with Encoder(side.prompt(), workers) as encoder:
          for turn in range(args.turns + 1):
            begin, pairs = time.perf_counter(), 0
            keyed = (((i, group), group) for i, group in enumerate(groups))
            for keys, _ in pool.pack(documents(encoder(keyed)), shape):
              pairs += len(keys)
            if turn:  # the first one starts the processes
              rates.append(pairs / (time.perf_counter() - begin))
        print(f'{name:8} {workers} workers: {np.median(rates):9,.0f} pairs/s', flush=True)


def main(argv) -> None:
  formats = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    prog='disranker bench batches', description=__doc__, formatter_class=formats
  )
  parser.add_argument('what', choices=('padding', 'speed'))
  parser.add_argument('config', help='a config file; --config.KEY=VALUE changes it')
  parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2], help='(0 1 2)')
  parser.add_argument('--turns', type=int, default=5, help='of which the median counts (5)')
  args, args.changes = parser.parse_known_args(argv)
  if unknown := [c for c in args.changes if not c.startswith('--config.')]:
    raise UserError(f'unknown: {" ".join(unknown)}; write --config.KEY=VALUE')
  runtime.prepare()
  jax.config.update('jax_platforms', 'cpu')
  {'padding': padding, 'speed': speed}[args.what](args)
