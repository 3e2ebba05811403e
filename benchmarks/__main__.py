"""Measures speed beside others' code on the same machine: `disranker bench NAME`.

A bench is a module of this folder with `main(argv)`; names of helpers start with `_`.
"""

import ast
import importlib
from pathlib import Path

from disranker_jax.errors import UserError

MODULES = {'profile': 'step_profile'}  # a module must not have the name of a standard one


def names() -> dict[str, str]:
  """{bench: its module}."""
  modules = (f.stem for f in sorted(Path(__file__).parent.glob('[!_]*.py')))
  commands = {module: name for name, module in MODULES.items()}
  return {commands.get(module, module): module for module in modules}


def usage() -> str:
  lines = ['usage: disranker bench NAME [ARGUMENT ...]', '', __doc__.partition(':')[0] + '.', '']
  for name, module in names().items():
    doc = ast.get_docstring(ast.parse((Path(__file__).parent / f'{module}.py').read_text()))
    lines.append(f'  {name:9}{doc.splitlines()[0]}')
  return '\n'.join([*lines, '', '`disranker bench NAME --help` shows the arguments of a bench.'])


def main(argv: list[str]) -> None:
  if not argv or argv[0] in ('-h', '--help'):
    print(usage())
    return
  if argv[0] not in names():
    raise UserError(f'{argv[0]!r}: no such bench; there are {", ".join(names())}')
  importlib.import_module(f'benchmarks.{names()[argv[0]]}').main(argv[1:])
