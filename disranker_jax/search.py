"""`python -m disranker_jax.search` is the same command as `disranker search`."""

from disranker_jax.commands.common import guarded
from disranker_jax.commands.search import main

if __name__ == '__main__':
  with guarded():
    main()
