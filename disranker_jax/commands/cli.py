"""The console command: `disranker SUBCOMMAND ...`, each a module with `main(argv)`."""

import importlib
import sys
from typing import NamedTuple

from disranker_jax.commands.common import guarded


class Command(NamedTuple):
  """A subcommand: the module whose `main(argv)` it calls, and one line of help."""

  module: str
  help: str


COMMANDS = {
  'run': Command('disranker_jax.main', 'run the pipeline of a config'),
  'prepare': Command('disranker_jax.commands.prepare', 'convert a source to ArrayRecord'),
  'describe': Command('disranker_jax.commands.describe', 'show what a source holds'),
  'rerank': Command('disranker_jax.commands.rerank', 'rank documents with an exported model'),
  'serve': Command('disranker_jax.serve.__main__', 'serve an exported model over HTTP'),
  'compare': Command('disranker_jax.commands.compare', 'compare TREC runs on judged queries'),
  'fuse': Command('disranker_jax.commands.fuse', 'fuse TREC runs into one ranking'),
  'ablate': Command('disranker_jax.commands.ablate', 'run and compare variants of a config'),
  'online': Command('disranker_jax.evaluation.online.__main__', 'analyse an online experiment'),
  'plan': Command('disranker_jax.commands.plan.__main__', 'estimate a stage on a TPU slice'),
  'bench': Command('benchmarks.__main__', 'measure speed (in a checkout of the repository)'),
  'weights': Command('disranker_jax.models.weights', 'fetch a model and print its folder'),
}


def usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f'  {name:{width}}  {command.help}' for name, command in COMMANDS.items()]
  return '\n'.join(['usage: disranker COMMAND [--help | ARGUMENTS]', '', 'commands:', *lines])


def main(argv: list[str] | None = None) -> None:
  """Runs the subcommand that the first argument names."""
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ('-h', '--help'):
    print(usage())
    return
  if argv[0] not in COMMANDS:
    print(f'error: {argv[0]!r} is not a command\n\n{usage()}', file=sys.stderr)
    sys.exit(2)
  with guarded():
    importlib.import_module(COMMANDS[argv[0]].module).main(argv[1:])
