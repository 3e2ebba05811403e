"""`python -m disranker_jax` is the command `disranker`, where the script is not installed."""

from disranker_jax.commands.cli import main

if __name__ == '__main__':
  main()
