"""What `bench train` and `bench score` share: sides in turn, their figures, the ratios."""

import argparse
import importlib.util
import json
import shlex
from pathlib import Path

from benchmarks import _figures, _work, _worker
from disranker_jax.commands.common import Parser, load_config, positive, words
from disranker_jax.errors import UserError
from disranker_jax.report import tables

TORCH = ('torch_fp32', 'torch_bf16')
CROSS_ENCODER = ('cross_encoder_fp32', 'cross_encoder_bf16')


def parser(name: str, doc: str, stages: tuple[str, ...], steps: int) -> Parser:
  """The arguments of a bench with peers; a turn has `steps` full batches."""
  out = _work.parser(name, doc, stages)
  add = out.add_argument_group('sides').add_argument
  add('--steps', type=positive, default=steps, help='full batches per turn')
  add_peers(add, TORCH + CROSS_ENCODER * (name == 'score'))
  if name == 'train':
    add('--no-checkpoint', action='store_true', help=(
      'do not write the two checkpoints that show how long training waits for one'))  # fmt: skip
  add('--variant', action='append', default=[], metavar='WORDS', help=(
    'one more side: ours with other settings, --variant="--config.KEY=VALUE ..." or, for the '
    'environment, --variant="KEY=VALUE ..." with KEY in capitals; may be repeated'))  # fmt: skip
  add('--parts', default='16,64', metavar='N,N', help=(
    'how many sequences torch pads together; the fastest is kept'))  # fmt: skip
  add('--compile-torch', action='store_true', help='torch.compile with dynamic shapes')
  add('--apart', action='store_true', help=(
    'start a process per turn and side, for a device that cannot hold all sides'))  # fmt: skip
  return out


def add_peers(add, names: tuple[str, ...]) -> None:
  """Adds the flag that selects the sides beside ours."""
  add('--peers', type=words, metavar='A,B', help=(
    f'what ours is compared with: some of {", ".join(names)}, or none; all if it is not given'
  ))  # fmt: skip


def parse(parser: Parser, argv: list[str]) -> argparse.Namespace:
  """The arguments. Raises: UserError for a wrong variant, before any side starts."""
  args = _work.parse(parser, argv)
  for name in args.variant:
    where = f'--variant {name!r}'
    try:
      words = shlex.split(name) or ['']
    except ValueError as e:
      raise UserError(f'{where}: {e}') from e
    changes, env = _worker.variant(name)
    if wrong := [w for w in words if w not in changes and w.partition('=')[0] not in env]:
      raise UserError(
        f'{where}: {wrong[0]!r}: write --config.KEY=VALUE, or KEY=VALUE with KEY in capitals'
      )
    if args.variant.count(name) > 1:
      raise UserError(f'{where}: is given twice')
    if wrong := [c for c in changes if c.startswith('--config.data.')]:
      raise UserError(f'{where}: {wrong[0]}: all sides share the data')
    load_config(args.config_file, [*args.overrides, *changes])
  return args


def peers(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
  """The sides beside ours, in the order of `names`.

  Raises: UserError for an unknown peer, or one whose package is not installed.
  """
  if args.peers == ['none']:
    return []
  if unknown := [n for n in args.peers or () if n not in names]:
    raise UserError(f'--peers: {unknown[0]!r} is not a peer here; there are {", ".join(names)}, '
                    'or none alone')  # fmt: skip
  if not importlib.util.find_spec('torch'):
    raise UserError('torch, the peer, is not installed; measure without it with --peers none')
  there = importlib.util.find_spec('sentence_transformers') is not None
  if not there and (asked := [n for n in args.peers or () if n in CROSS_ENCODER]):
    raise UserError(f'--peers: {asked[0]!r} needs sentence-transformers, which is not installed')
  return [n for n in names if n in (args.peers or names) and (there or n not in CROSS_ENCODER)]


def run(bench: str, args: argparse.Namespace, argv: list[str], names: tuple[str, ...]) -> None:
  """Measures, prints the table, and with --json the answer as one last line."""
  sides = ['ours', *args.variant, *peers(args, names)]
  with _work.prepared(args) as work:
    turns, facts = _worker.in_turn(bench, sides, argv, work.folder, args.rounds, args.apart)
  answer = {'bench': bench} | described(args) | _figures.answer(turns, facts)
  print(text(answer))
  for name in sides:
    if 'failed' in facts[name]:
      print(f'{name} failed: {facts[name]["failed"]}')
  if args.json:
    print(json.dumps(_figures.short(answer)))


def described(args: argparse.Namespace) -> dict[str, str]:
  """The config, the stage and its texts."""
  texts = f'random, {args.tokens} tokens per pair' if args.tokens else 'of the config'
  return {'config': args.config.name, 'stage': args.stage, 'texts': texts}


def open_side(args: argparse.Namespace, ours: str, name: str, folder: Path):
  """A side by its name, in its own process; `ours` names the class in _ours and in _torch."""
  work = _work.open_work(args, folder)
  if name == 'ours':
    from benchmarks import _ours

    options = {'checkpoint': False} if getattr(args, 'no_checkpoint', False) else {}
    return getattr(_ours, ours)(work, args.steps, **options)
  if name in CROSS_ENCODER:
    from benchmarks import _cross_encoder

    return _cross_encoder.Score(work, args.steps, name.endswith('bf16'))
  from benchmarks import _torch

  sizes = [int(n) for n in args.parts.split(',')]
  kind = getattr(_torch, ours)
  return kind(work, args.steps, name.endswith('bf16'), sizes, args.compile_torch)


COLUMNS = {
  'tokens_per_s': ('tokens/s', '{:,.0f}'),
  'padded_tokens_per_s': ('with padding', '{:,.0f}'),
  'padding': ('padding', '{:.1%}'),
  'pairs_per_s': ('pairs/s', '{:,.1f}'),
  'ms_per_pair': ('ms per pair', '{:.3g}'),
  'step_s': ('s per step', '{:.3g}'),
  'cpu_s': ('CPU s per step', '{:.3g}'),
  'mfu': ('MFU', '{:.1%}'),
  'waiting': ('waiting', '{:.1%}'),
  'compile_s': ('compile s', '{:.1f}'),
  'checkpoint_stall_s': ('save stalls s', '{:.2f}'),
  'pairs_per_kwh': ('pairs per kWh', '{:,.0f}'),
}


# GB: what the compiler says that the step holds; the device's peak up to the end of each phase.
MEMORY = {
  'compiled_bytes': 'step GB',
  'loading_peak_bytes': 'loading GB',
  'compiling_peak_bytes': 'compiling GB',
  'memory_bytes': 'memory GB',
}


def text(answer: dict) -> str:
  """A line about what was measured, and a table with a row per side."""
  shown = {k: v for k, v in COLUMNS.items() if any(k in side for side in answer['sides'].values())}
  memory = {k: head for k, head in MEMORY.items()
            if any(k in side for side in answer['sides'].values())}  # fmt: skip
  heads = ['side', *(head for head, _ in shown.values()), *memory.values(), 'ours is faster']
  heads.append('in CPU time')
  rows = []
  for name, side in answer['sides'].items():
    row = [name, *(form.format(side[k]) if k in side else '' for k, (_, form) in shown.items())]
    row += [f'{side[k] / 1e9:.2f}' if k in side else '' for k in memory]
    for key in ('first_is_faster', 'first_is_cheaper'):
      spread = side.get(key)
      row.append('{median:.2f} ({low:.2f} to {high:.2f})'.format(**spread) if spread else '')
    rows.append(row)
  what = f'{answer["bench"]} {answer["stage"]} of {answer["config"]}, texts {answer["texts"]}'
  where = (
    f'{answer["device"]}, {answer["precision"]}, peak {answer["peak_flops"] / 1e9:,.0f} GFLOP/s'
  )
  return f'{what}; {where}; medians of {answer["rounds"]} turns\n' + tables.markdown(heads, rows)
