"""`python -m disranker_jax.llm_rank` is the same command as `disranker llm-rank`."""

from disranker_jax.commands.common import guarded
from disranker_jax.commands.llm_rank import main

if __name__ == '__main__':
  with guarded():
    main()
