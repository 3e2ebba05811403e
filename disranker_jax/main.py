"""Runs the pipeline of a config: `disranker run --config configs/quickstart.py`.

`python -m disranker_jax.main` is the same command. A run that was stopped continues with the same
command line; stages that are done are not repeated.
"""

import faulthandler
import sys
from pathlib import Path

from disranker_jax.commands.common import Parser, guarded, load_config, prepare_absl, words
from disranker_jax.devices import runtime


def parser() -> Parser:
  out = Parser(
    'run', __doc__,
    '--config configs/quickstart.py --config.distill.beta=0.8 --workdir runs/beta',
  )  # fmt: skip
  out.add_config()
  out.add_argument('--explain', nargs='?', const='', metavar='SECTION', help=(
    'print the config, or one section of it such as distill, and exit'))  # fmt: skip
  add = out.add_argument_group('run').add_argument
  add('--workdir', default='', metavar='DIR', help='the folder of the run; runs/NAME if not given')
  add(
    '--stages',
    type=words,
    action='extend',
    default=[],
    metavar='A,B',
    help='only these stages of the config',
  )
  add('--rerun', type=words, action='extend', default=[], metavar='A,B', help=(
    'stages to repeat, together with all stages that read their results; of the other --seeds, '
    'those that are stale; the same command after a stop continues them'))  # fmt: skip
  add('--seeds', type=seeds, action='extend', default=[], metavar='A,B', help=(
    'train the student, or the model of another system, with these seeds too, and report how much '
    'the result varies'))  # fmt: skip
  add('--reuse', type=words, action='extend', default=[], metavar='DIR,DIR', help=(
    'other workdirs: stages that ran there with the same settings are copied'))  # fmt: skip
  add('--no-estimate', action='store_true', help=(
    'do not estimate the time and memory of the stages, which takes seconds'))  # fmt: skip
  return out


def seeds(text: str) -> list[int]:
  """The numbers of `0,1,2`, as an argparse type."""
  return [int(number) for number in words(text)]


def main(argv: list[str] | None = None) -> None:
  args = parser().parse_args(argv)
  runtime.prepare()
  prepare_absl()
  config = load_config(args.config, args.overrides)
  if args.explain is not None:
    from disranker_jax.config import explain

    print(explain(config, args.explain))
    return
  # Imported late: a wrong flag must not wait for jax, nor for the search for devices.
  from disranker_jax.devices import processes

  processes.start()
  from disranker_jax.errors import Stopped
  from disranker_jax.pipeline import runner
  from disranker_jax.pipeline import seeds as other_seeds

  workdir = Path(args.workdir or Path('runs') / config.name)
  try:
    estimate = not args.no_estimate
    ends = not args.seeds
    if args.seeds:
      other_seeds.check(config, workdir, args.seeds, args.rerun)
    runner.run(config, workdir, args.stages, args.rerun, args.reuse, estimate, ends=ends)
    if args.seeds:
      other_seeds.run(config, workdir, args.seeds, args.rerun)
  except (Stopped, KeyboardInterrupt) as e:
    print(str(e) or 'stopped; the same command continues from there', file=sys.stderr)
    # SIGTERM asks for a clean stop, which is success; Ctrl-C is not.
    sys.exit(0 if isinstance(e, Stopped) and not e.interrupted else 130)


def cli() -> None:
  """`main` as a process: one-line errors, a stack trace if a signal such as SIGSEGV ends it."""
  faulthandler.enable()
  with guarded():
    main()


if __name__ == '__main__':
  runtime.restart_with_huge_pages()
  cli()
