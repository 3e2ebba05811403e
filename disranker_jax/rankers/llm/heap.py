"""Sorting by questions: a heap whose comparisons are prompts."""

from collections.abc import Callable, Generator


def best(n: int, top: int, arity: int, choose: Callable[[list[int]], Generator]) -> Generator:
  """The order of n documents: the best `top` by a heap, then the others in their own order.

  Args:
    arity: children of a node.
    choose: a generator that returns the place of the best of some documents, the parent first.
  """
  nodes = list(range(n))

  def sift(root: int, size: int) -> Generator:
    while children := list(range(arity * root + 1, min(arity * root + arity + 1, size))):
      places = [root, *children]
      winner = places[(yield from choose([nodes[place] for place in places]))]
      if winner == root:
        return
      nodes[root], nodes[winner] = nodes[winner], nodes[root]
      root = winner

  found: list[int] = []
  top = min(top, n)
  if top and n > 1:
    for root in range((n - 2) // arity, -1, -1):
      yield from sift(root, n)
  for size in range(n - 1, n - 1 - top, -1):
    found.append(nodes[0])
    nodes[0] = nodes[size]
    if len(found) < top:
      yield from sift(0, size)
  return [*found, *(doc for doc in range(n) if doc not in set(found))]
