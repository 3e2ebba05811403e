"""`disranker bench NAME ...`: a bench is a module of this package with main(argv)."""

import importlib
import pkgutil
import sys
from pathlib import Path

from disranker_jax.commands.common import guarded
from disranker_jax.errors import UserError

HELPERS = ('baselines', 'load', 'texts')


def names() -> list[str]:
  modules = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
  return [m for m in modules if not m.startswith('_') and m not in HELPERS]


def main(argv: list[str]) -> None:
  if not argv or argv[0] not in names():
    raise UserError(f'name a bench: {", ".join(names())}; each has --help')
  importlib.import_module(f'benchmarks.{argv[0]}').main(argv[1:])


if __name__ == '__main__':
  with guarded():
    main(sys.argv[1:])
