"""Distils a large language model's ranking into a small BERT cross-encoder on JAX (DisRanker).

`disranker_jax.load(folder)` opens an exported model: see `disranker_jax.rankers.loaded`.
"""

from typing import TYPE_CHECKING

from disranker_jax.errors import UserError

if TYPE_CHECKING:
  from disranker_jax.rankers.loaded import LoadedRanker, load

__version__ = '0.1.0'
__all__ = ['LoadedRanker', 'UserError', '__version__', 'load']


def __getattr__(name: str):
  """Imports the API on first use: `import disranker_jax` must not wait for jax."""
  if name in ('LoadedRanker', 'load'):
    from disranker_jax.rankers import loaded

    return getattr(loaded, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
