"""What `bench train` and `bench score` do alike: sides in turn, their figures, the ratios."""

import argparse
import importlib.util
import json
import shlex
from pathlib import Path

from benchmarks import _figures, _work, _worker
from disranker_jax.errors import UserError
from disranker_jax.report import tables

TORCH = ('torch_fp32', 'torch_bf16')
CROSS_ENCODER = ('cross_encoder_fp32', 'cross_encoder_bf16')


def parser(name: str, doc: str, stages: tuple[str, ...], steps: int) -> argparse.ArgumentParser:
  """The options of a bench with peers; a turn has so many `steps`."""
  out = _work.parser(name, doc, stages)
  add = out.add_argument
  add('--steps', type=_work.positive, default=steps, help='full batches of a turn (%(default)s)')
  add('--no-torch', action='store_true', help='ours alone, and its variants')
  add(
    '--variant', action='append', default=[], metavar='"KEY=VALUE ..."',
    help='ours once more with these values of the config, or of the environment where KEY is in '
    'capitals; may be repeated',
  )  # fmt: skip
  add('--parts', default='16,64', help='sequences that torch pads together; the fastest is kept')
  add('--compile-torch', action='store_true', help="torch.compile's network, of any lengths")
  add('--apart', action='store_true', help='a side starts anew for each turn and ends: one device')
  return out


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
  """The options; UserError for variants that cannot be, before any side starts."""
  args = _work.parse(parser, argv)
  for name in args.variant:
    try:
      words = shlex.split(name) or ['']
    except ValueError as e:
      raise UserError(f'--variant {name!r}: {e}') from e
    if wrong := [word for word in words if '=' not in word]:
      raise UserError(f'--variant {name!r}: {wrong[0]!r} is not KEY=VALUE')
    if args.variant.count(name) > 1:
      raise UserError(f'--variant {name!r}: is there twice')
    changes, _ = _worker.variant(name)
    if wrong := [c for c in changes if c.startswith('--config.data.')]:
      raise UserError(f'--variant {name!r}: {wrong[0]}: the sides share their data')
    _work.parse(parser, [*argv, *changes])
  return args


def peers(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
  """The sides beside ours."""
  if args.no_torch:
    return []
  if not importlib.util.find_spec('torch'):
    raise UserError('torch is not installed, and is what is compared with: --no-torch does without')
  there = importlib.util.find_spec('sentence_transformers') is not None
  return [n for n in names if there or n not in CROSS_ENCODER]


def run(bench: str, args: argparse.Namespace, argv: list[str], names: tuple[str, ...]) -> None:
  """Measures, prints the table, and with --json the answer as one last line."""
  sides = ['ours', *args.variant, *peers(args, names)]
  with _work.prepared(args) as work:
    turns, facts = _worker.in_turn(bench, sides, argv, work.folder, args.rounds, args.apart)
  found = {'bench': bench} | described(args) | _figures.answer(turns, facts)
  print(text(found))
  for name in sides:
    if 'failed' in facts[name]:
      print(f'{name} failed: {facts[name]["failed"]}')
  if args.json:
    print(json.dumps(_figures.short(found)))


def described(args: argparse.Namespace) -> dict[str, str]:
  """Whose work on which texts."""
  texts = f'random, {args.tokens} tokens a pair' if args.tokens else 'of the config'
  return {'config': args.config.name, 'stage': args.stage, 'texts': texts}


def open_side(args: argparse.Namespace, ours: str, name: str, folder: Path):
  """A side by its name, in its own process; `ours` is the class of ours, and of torch's."""
  work = _work.open_work(args, folder)
  if name == 'ours':
    from benchmarks import _ours

    return getattr(_ours, ours)(work, args.steps)
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
  'ms_per_pair': ('ms a pair', '{:.3g}'),
  'step_s': ('s a step', '{:.3g}'),
  'cpu_s': ('CPU s a step', '{:.3g}'),
  'mfu': ('MFU', '{:.1%}'),
  'waiting': ('waiting', '{:.1%}'),
  'compile_s': ('compile s', '{:.1f}'),
  'checkpoint_stall_s': ('save stalls s', '{:.2f}'),
}


def text(found: dict) -> str:
  """A line about what was measured, and a table with a row a side."""
  shown = {k: v for k, v in COLUMNS.items() if any(k in side for side in found['sides'].values())}
  heads = ['side', *(head for head, _ in shown.values()), 'memory GB', 'ours is faster']
  heads.append('in CPU time')
  rows = []
  for name, side in found['sides'].items():
    row = [name, *(form.format(side[k]) if k in side else '' for k, (_, form) in shown.items())]
    row.append(f'{side["memory_bytes"] / 1e9:.2f}' if 'memory_bytes' in side else '')
    for key in ('first_is_faster', 'first_is_cheaper'):
      spread = side.get(key)
      row.append('{median:.2f} ({low:.2f} to {high:.2f})'.format(**spread) if spread else '')
    rows.append(row)
  what = f'{found["bench"]} {found["stage"]} of {found["config"]}, texts {found["texts"]}'
  where = f'{found["device"]}, {found["precision"]}, peak {found["peak_flops"] / 1e9:,.0f} GFLOP/s'
  return f'{what}; {where}; medians of {found["rounds"]} turns\n' + tables.markdown(heads, rows)
