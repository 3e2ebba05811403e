"""Command line of the pipeline: `python -m disranker_jax.main --config configs/quickstart.py`."""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from disranker_jax.commands.common import guarded, parse_config_flags
from disranker_jax.devices import runtime

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A Python file with get_config(); --config.sft.epochs=2 overrides one value.'
)
WORKDIR = flags.DEFINE_string('workdir', '', "The run's folder; runs/<config name> if empty.")
STAGES = flags.DEFINE_list('stages', [], 'Only these stages of the config, e.g. sft,score.')
REUSE = flags.DEFINE_list('reuse', [], "Other runs' folders: stages they did alike are taken.")
RERUN = flags.DEFINE_list('rerun', [], 'Stages to do again, with all that follow from them.')


def main(_) -> None:
  runtime.prepare()
  logging.set_verbosity(logging.WARNING)
  # Only now that flags are right: jax takes a while to import, and devices to be found.
  from disranker_jax.devices import processes

  processes.start()
  from disranker_jax.config import split_lists
  from disranker_jax.errors import Stopped
  from disranker_jax.pipeline import runner

  config = CONFIG.value
  split_lists(config)
  workdir = Path(WORKDIR.value or Path('runs') / config.name)
  try:
    runner.run(config, workdir, STAGES.value, RERUN.value, REUSE.value)
  except (Stopped, KeyboardInterrupt) as e:
    print(f'{e or "stopped"}; the same command goes on from there', file=sys.stderr)
    # A preempted machine did as it was told; a person at the keyboard broke something off.
    sys.exit(0 if isinstance(e, Stopped) and not e.interrupted else 130)


def cli() -> None:
  """Runs main with errors for people: one line, exit status 2."""
  with guarded():
    app.run(main, flags_parser=lambda argv: parse_config_flags(argv, CONFIG))


if __name__ == '__main__':
  runtime.restart_with_huge_pages()
  cli()
