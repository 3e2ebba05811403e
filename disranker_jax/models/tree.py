"""Parameters by path: `{'params/blocks/q/kernel': array}`, as rules, masks and files name them."""

from flax import traverse_util


def flatten(tree: dict) -> dict:
  """The leaves of nested dicts by '/'-joined path."""
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: dict) -> dict:
  """The nested dicts that models take."""
  return traverse_util.unflatten_dict(flat, sep='/')
