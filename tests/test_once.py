"""What is made once in a block, and when it is made again."""

import pytest

from disranker_jax.data import once


class Value:
  """Something that takes long to make."""


def made(name: str = 'a', key: int = 0) -> Value:
  return once.made(name, lambda: key, Value)


def test_in_a_block_each_name_has_the_value_of_its_latest_key():
  with once.shared():
    first, other = made(), made('b')
    assert made() is first is not other and made('b') is other
    second = made(key=1)
    assert second is not first and made(key=1) is second and made('b') is other
    assert made(key=0) is not first  # which another one has replaced


def test_outside_of_a_block_nothing_is_kept_and_no_key_is_needed():
  """A pipe, which can be read once, has none."""
  assert made() is not made()
  assert once.made('a', lambda: 1 / 0, lambda: 3) == 3
  with once.shared():
    first = made()
  with once.shared():
    assert made() is not first


def test_a_block_in_another_one_shares_its_values_and_frees_none():
  with once.shared():
    first = made()
    with once.shared():
      assert made() is first
    assert made() is first


def test_an_error_in_a_block_ends_it_and_one_while_making_keeps_nothing():
  with pytest.raises(ZeroDivisionError), once.shared():
    first = made()
    with pytest.raises(ZeroDivisionError):
      once.made('a', lambda: 1, lambda: 1 / 0)
    assert made() is not first
    raise ZeroDivisionError
  assert made() is not made()
