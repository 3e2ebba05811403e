"""The console command: `disranker COMMAND ...`; each command is a module with `main(argv)`."""

import difflib
import faulthandler
import importlib
import sys
from typing import NamedTuple

from disranker_jax import __version__
from disranker_jax.commands.common import guarded
from disranker_jax.devices import runtime
from disranker_jax.errors import UserError


class Command(NamedTuple):
  """A command: the module whose `main(argv)` it calls, and one line of help."""

  module: str
  help: str


COMMANDS = {
  'run': Command('disranker_jax.main', 'run the pipeline of a config'),
  'prepare': Command('disranker_jax.commands.prepare', 'convert a source to ArrayRecord'),
  'describe': Command('disranker_jax.commands.describe', 'show what a source holds'),
  'rerank': Command('disranker_jax.commands.rerank', 'rank documents with an exported model'),
  'llm-rank': Command('disranker_jax.commands.llm_rank', 'rank documents with an LLM by prompts'),
  'search': Command('disranker_jax.commands.search', 'search with a generative retriever'),
  'rewrite': Command('disranker_jax.commands.rewrite', 'rewrite a query for a search engine'),
  'serve': Command('disranker_jax.serve.__main__', 'serve an exported model over HTTP'),
  'compare': Command('disranker_jax.commands.compare', 'compare TREC runs on judged queries'),
  'average': Command('disranker_jax.commands.average', 'average the result tables of several runs'),
  'fuse': Command('disranker_jax.commands.fuse', 'fuse TREC runs into one ranking'),
  'ablate': Command('disranker_jax.commands.ablate', 'run and compare variants of a config'),
  'online': Command('disranker_jax.commands.online', 'analyse an online experiment'),
  'plan': Command('disranker_jax.commands.plan.command', 'estimate memory and time of stages'),
  'bench': Command(
    'disranker_jax.commands.bench', 'measure speed (in a checkout of the repository)'
  ),
  'weights': Command('disranker_jax.commands.weights', 'fetch models and print their folders'),
}


def usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f'  {name:{width}}  {command.help}' for name, command in COMMANDS.items()]
  return '\n'.join([
    'usage: disranker COMMAND [ARGUMENT ...]', '', 'commands:', *lines, '',
    '`disranker COMMAND --help` shows its arguments, `disranker --version` the version.',
  ])  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  """Runs the command that the first argument names; `argv` is None when a shell starts it."""
  words = sys.argv[1:] if argv is None else argv
  if argv is None:
    faulthandler.enable()
  with guarded():
    if not words or words[0] in ('-h', '--help'):
      print(usage())
    elif words[0] == '--version':
      print(__version__)
    elif command := COMMANDS.get(words[0]):
      if argv is None and words[0] == 'run':
        runtime.restart_with_huge_pages()
      importlib.import_module(command.module).main(words[1:])
    else:
      near = difflib.get_close_matches(words[0], COMMANDS, 1)
      hint = f'; did you mean {near[0]}?' if near else ''
      raise UserError(f'{words[0]!r}: no such command{hint}; see disranker --help')
