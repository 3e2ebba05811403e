"""Estimates what a stage takes on a TPU slice: memory, traffic, time, chip-hours: `disranker plan`.

The stage's real step is compiled for the slice by the TPU's own compiler; no TPU is needed.
"""

from disranker_jax.commands.common import Parser, load_config, prepare_absl
from disranker_jax.commands.plan import chips
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError


def parser() -> Parser:
  out = Parser(
    'plan', __doc__,
    '--config configs/disranker_mistral_7b.py --stage cpt --topology v5e:4x4',
  )  # fmt: skip
  out.add_config()
  add = out.add_argument_group('plan').add_argument
  add('--stage', required=True, help='a stage that trains or scores, such as cpt')
  add('--topology', required=True, help='chips and their grid, e.g. v5e:4x4 or v5p:2x2x2')
  add('--rows', type=int, default=0, help="rows of the stage's data; 0: as many as the paper has")
  add('--pair-tokens', type=int, default=0, help=(
    'tokens of a query with one document; 0: as many as the config allows'))  # fmt: skip
  add('--json', action='store_true', help='also print the answer as one last line of JSON')
  return out


def main(argv: list[str] | None = None) -> None:
  args = parser().parse_args(argv)
  if args.rows < 0 or args.pair_tokens < 0:
    raise UserError('--rows and --pair-tokens: must be 0 or more')
  where = chips.find(args.topology)
  chips.prepare()
  runtime.prepare()
  prepare_absl()
  config = load_config(args.config, args.overrides)
  from disranker_jax.pipeline import systems

  planned = [s.name for s in systems.stages(config) if s.task or s.scores_records]
  if args.stage not in planned:
    raise UserError(f'--stage {args.stage}: choose of {", ".join(planned)}')
  devices = chips.devices(where)
  from disranker_jax.commands.plan import report
  from disranker_jax.devices import sharding

  mesh = sharding.make_mesh(config.mesh, devices)
  answer = report.plan(config, args.stage, where, mesh, args.rows, args.pair_tokens)
  print(report.text(answer))
  if args.json:
    print(report.as_json(answer))
