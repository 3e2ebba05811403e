"""Benchmarks beside other systems on the same machine: `disranker bench NAME`."""
