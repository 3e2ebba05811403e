"""Estimates what stages take: `disranker plan`.

Without --topology it is about this machine: memory, and time from a short measurement. With
gpu:COUNTxGIB it is about the memory of GPUs, which need not be there. With a TPU slice, the stage's
real step is compiled for it by the TPU's own compiler: memory, traffic, time and chip-hours; no TPU
is needed. A stage that writes texts (generate) is computed from its FLOPs and bytes, not compiled;
its rows are texts.
"""

import json

from disranker_jax.commands.common import Parser, load_config, prepare_absl
from disranker_jax.commands.plan import chips, machine
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems


def parser() -> Parser:
  out = Parser(
    'plan', __doc__,
    '--config configs/quickstart.py --topology gpu:1x24',
  )  # fmt: skip
  out.add_config()
  add = out.add_argument_group('plan').add_argument
  add('--stage', default='', help=(
    'a stage that trains, scores or writes, such as cpt, or evaluate:METHOD for one of '
    'config.evaluate.rankers; by default all, not on a TPU'))  # fmt: skip
  add('--topology', default='', help=(
    'TPU chips and their grid, e.g. v5e:4x4 or v5p:2x2x2; GPUs and the memory of each in GiB, e.g. '
    'gpu:1x24; by default this machine'))  # fmt: skip
  add('--rows', type=int, default=0, help=(
    "rows of the stage's data; 0: as many as the paper has, if it has the stage"))  # fmt: skip
  add('--pair-tokens', type=int, default=0, help=(
    'tokens of a query with one document, or of a prompt; 0: the most of the config'))  # fmt: skip
  add('--json', action='store_true', help='also print the answer as one last line of JSON')
  return out


def main(argv: list[str] | None = None) -> None:
  args = parser().parse_args(argv)
  if args.rows < 0 or args.pair_tokens < 0:
    raise UserError('--rows and --pair-tokens: must be 0 or more')
  gpus = machine.gpus(args.topology)
  if gpus:
    machine.prepare(gpus)
  elif args.topology:
    where = chips.find(args.topology)
    if not args.stage:
      raise UserError('--stage: is missing; on a TPU slice one stage is planned at a time')
    chips.prepare()
  runtime.prepare()
  prepare_absl()
  config = load_config(args.config, args.overrides)
  from disranker_jax.commands.plan import workload

  planned = workload.names(config)
  if args.stage and args.stage not in planned:
    raise UserError(f'--stage {args.stage}: choose of {", ".join(planned)}')
  if args.topology and not gpus and writes(config, args.stage):
    gpus = machine.chips_of(where)
    machine.prepare(gpus)  # no backend has started yet
  if gpus or not args.topology:
    on_machine(args, config, gpus)
  else:
    on_slice(args, config, where)


def writes(config, name: str) -> bool:
  """Whether the stage writes texts. Its step is computed, so the TPU's compiler is not needed."""
  return any(s.texts for s in systems.of(config).stages if s.name == name)


def on_machine(args, config, gpus: machine.Machine | None) -> None:
  """Prints the plan for GPUs, for this machine, or for a stage that writes on a TPU slice."""
  from disranker_jax.commands.plan import local

  where = gpus or local.here()
  names = [args.stage] if args.stage else local.planned(config)
  answers = local.plan(config, names, where, args.rows, args.pair_tokens)
  print(local.text(where, answers))
  if args.json:
    print(json.dumps(answers))


def on_slice(args, config, where: chips.Slice) -> None:
  """Prints the plan for a TPU slice."""
  devices = chips.devices(where)
  from disranker_jax.commands.plan import report
  from disranker_jax.devices import sharding

  mesh = sharding.make_mesh(config.mesh, devices)
  answer = report.plan(config, args.stage, where, mesh, args.rows, args.pair_tokens)
  print(report.text(answer))
  if args.json:
    print(report.as_json(answer))
