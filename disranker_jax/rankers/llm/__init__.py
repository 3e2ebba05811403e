"""LLM rankers: prompts over documents, algorithms that ask them, and the devices that answer.

An algorithm is a generator per query in plain Python (`asking.Steps`). `scheduler` runs those of
many queries on shared batches.
"""
