"""`python -m disranker_jax.commands` is `disranker`, for environments without the script."""

from disranker_jax.commands.cli import main

main()
