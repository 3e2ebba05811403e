"""Metrics, significance, TREC runs, tables of results, A/B tests."""
