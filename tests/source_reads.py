"""Counts how often collections are read, and tells which of them are still in memory."""

import weakref

from disranker_jax.data import sources


class Documents(list):
  """A list that can be referred to weakly."""


def counted(monkeypatch) -> list[weakref.ref]:
  """A list that grows with every read of a collection: weak references to what was read."""
  real, read = sources.documents, []

  def documents(address) -> Documents:
    found = Documents(real(address))
    read.append(weakref.ref(found))
    return found

  monkeypatch.setattr(sources, 'documents', documents)
  return read
