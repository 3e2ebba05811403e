"""`python -m disranker_jax.rewrite` is the same command as `disranker rewrite`."""

from disranker_jax.commands.common import guarded
from disranker_jax.commands.rewrite import main

if __name__ == '__main__':
  with guarded():
    main()
