"""Texts of strangers where they are shown: in a terminal, in Markdown, JSON and spreadsheets.

Ids, names of buckets and texts come from data. Here they lose what a reader would obey.
"""

import json as json_module
import re
from typing import Any

# What a terminal obeys: control characters, line separators, directions of writing; and halves of
# surrogate pairs, which cannot be written.
CONTROL = r'\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff'
IN_LINE = re.compile(f'[{CONTROL}]')
IN_TEXT = re.compile(f'(?![\n\t])[{CONTROL}]')
# `<` and `&` only where HTML begins, so that '<0.0001' stays readable.
MARKUP = re.compile(r'[\\`*\[\]|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)')
ENTITIES = {'<': '&lt;', '&': '&amp;'}
FORMULA = ('=', '+', '-', '@', '\t', '\r')


def terminal(text: Any) -> str:
  r"""A text to print: control characters except ends of lines are written as `\x1b`."""
  return IN_TEXT.sub(_code, str(text))


def line(text: Any) -> str:
  r"""A text to print within a line: as `terminal`, and ends of lines are `\n`."""
  return IN_LINE.sub(_code, str(text))


def markdown(text: Any) -> str:
  """A text for a cell, heading or paragraph of Markdown: neither markup nor HTML."""
  return MARKUP.sub(lambda m: ENTITIES.get(m[0], f'\\{m[0]}'), line(' '.join(str(text).split())))


def code(text: Any) -> str:
  """A text as `code` in Markdown, whatever backquotes it has."""
  text = line(' '.join(str(text).split()))
  fence = '`' * (1 + max(map(len, re.findall('`+', text)), default=0))
  return f'{fence} {text} {fence}' if '`' in text or not text else f'`{text}`'


def json(value: Any) -> str:
  """Indented JSON with readable letters; control characters are escaped as JSON has it."""
  text = json_module.dumps(value, indent=2, ensure_ascii=False)
  return IN_TEXT.sub(lambda m: f'\\u{ord(m[0]):04x}', text)


def cell(text: str) -> str:
  """A text for CSV that no spreadsheet reads as a formula: with a quote before one."""
  return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def of_cell(text: str) -> str:
  """The text of a `cell`."""
  return text[1:] if text.startswith("'") and text.lstrip("'").startswith(FORMULA) else text


def _code(match: re.Match) -> str:
  return match[0].encode('unicode_escape').decode()
