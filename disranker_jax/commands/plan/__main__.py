"""Command line of the plan: what would this stage take on that slice?"""

from absl import app, flags
from ml_collections import config_flags

from disranker_jax.commands.common import guarded, parse_config_flags
from disranker_jax.commands.plan import STAGES, chips
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A Python file with get_config(); --config.sft.epochs=2 overrides one value.'
)
STAGE = flags.DEFINE_string('stage', '', f'One of {", ".join(STAGES)}.')
TOPOLOGY = flags.DEFINE_string('topology', '', 'Chips and their grid, e.g. v5e:4x4, v5p:2x2x2.')
ROWS = flags.DEFINE_integer('rows', 0, "Rows of the stage's data; 0: as many as the paper has.")
PAIR_TOKENS = flags.DEFINE_integer(
  'pair_tokens', 0, 'Tokens of a query with one document; 0: as many as the config allows.'
)
JSON = flags.DEFINE_bool('json', False, 'Print the answer as one last line of JSON too.')


def main(_) -> None:
  if STAGE.value not in STAGES:
    raise UserError(f'--stage={STAGE.value!r} is unknown; there are {", ".join(STAGES)}')
  where = chips.find(TOPOLOGY.value)
  chips.prepare()
  runtime.prepare()
  devices = chips.devices(where)
  from disranker_jax.commands.plan import report
  from disranker_jax.config import check, split_lists
  from disranker_jax.devices import sharding

  config = CONFIG.value
  split_lists(config)
  check(config)
  mesh = sharding.make_mesh(config.mesh, devices)
  answer = report.plan(config, STAGE.value, where, mesh, ROWS.value, PAIR_TOKENS.value)
  print(report.text(answer))
  if JSON.value:
    print(report.as_json(answer))


def cli() -> None:
  """Runs main with errors for people: one line, exit status 2."""
  with guarded():
    app.run(main, flags_parser=lambda argv: parse_config_flags(argv, CONFIG))


if __name__ == '__main__':
  cli()
