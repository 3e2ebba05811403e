"""Parameters by path, `{'params/blocks/q/kernel': array}`, as rules and files name them."""

from flax import traverse_util


def flatten(tree: dict) -> dict:
  """The leaves of nested dicts, by path joined with '/'."""
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: dict) -> dict:
  """The reverse of `flatten`: the nested dicts that models take."""
  return traverse_util.unflatten_dict(flat, sep='/')
