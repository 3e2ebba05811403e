"""Measurements beside others on the same machine: `disranker bench NAME`."""
