"""Reads structs of numbers in Thrift's compact protocol, which Parquet's footer and pages use.

A struct is a dict from the number of a field to its value: a number, True or False, a struct, or a
list of structs. Other values, such as texts, are None. Source: thrift-compact-protocol.md of
Apache Thrift.
"""

from typing import Any

DEEPEST = 8  # structs and lists in each other; Parquet has 5
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
INTEGERS = (4, 5, 6)


def struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
  """(fields by number, position after them) of the struct at a position.

  Raises: IndexError at the end of the data, ValueError if it is damaged.
  """
  fields: dict[int, Any] = {}
  field = 0
  if depth > DEEPEST:
    raise ValueError('a header is nested too deeply')
  while kind := data[at]:
    at += 1
    if kind >> 4:
      field += kind >> 4
    else:
      field, at = _number(data, at)
    fields[field], at = _value(data, at, kind & 15, depth)
  return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
  if kind in (TRUE, FALSE):
    return kind == TRUE, at
  if kind == BYTE:
    return data[at], at + 1
  if kind in INTEGERS:
    return _number(data, at)
  if kind == DOUBLE:
    return None, at + 8
  if kind == BINARY:
    length, at = _varint(data, at)
    return None, at + length
  if kind in (LIST, SET):
    return _list(data, at, depth + 1)
  if kind == STRUCT:
    return struct(data, at, depth + 1)
  raise ValueError(f'a header has a field of type {kind}')


def _list(data: bytes, at: int, depth: int) -> tuple[list | None, int]:
  if depth > DEEPEST:
    raise ValueError('a header is nested too deeply')
  count, kind = data[at] >> 4, data[at] & 15
  at += 1
  if count == 15:
    count, at = _varint(data, at)
  values = []
  for _ in range(count):
    # In a list, each of true and false is a byte.
    value, at = _value(data, at, BYTE if kind in (TRUE, FALSE) else kind, depth)
    if kind == STRUCT:
      values.append(value)
    elif at > len(data):
      raise IndexError('the data ends in a list')
  return (values if kind == STRUCT else None), at


def _number(data: bytes, at: int) -> tuple[int, int]:
  value, at = _varint(data, at)
  return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while shift < 64:
    byte = data[at]
    at += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, at
    shift += 7
  raise ValueError('a header has a number of more than 64 bits')
