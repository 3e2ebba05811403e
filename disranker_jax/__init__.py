"""Distil a large language model's ranking into a small BERT cross-encoder, on JAX (DisRanker)."""

__version__ = '0.1.0'
