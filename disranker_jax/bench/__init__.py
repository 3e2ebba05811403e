"""Measurements beside others on the same machine: `python -m disranker_jax.bench NAME`."""
