"""Measures the speed of this code beside others': `disranker bench NAME`.

The benches are in the repository's folder benchmarks/, which is not part of the installed package.
"""

import importlib
import sys
from pathlib import Path

from disranker_jax.errors import UserError


def main(argv: list[str]) -> None:
  if not Path('benchmarks/_work.py').is_file():
    raise UserError(
      'bench: there is no benchmarks/ here; clone the repository and run the command from its root'
    )
  if (root := str(Path.cwd())) not in sys.path:
    sys.path.insert(0, root)
  importlib.import_module('benchmarks.__main__').main(argv)
