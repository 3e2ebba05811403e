"""Writes the tables and pictures of disranker ablate again, from their JSON files alone.

python experiments/redraw.py experiments/*.json

Each NAME.svg is drawn, and the table and the picture in NAME.md are replaced; other text of NAME.md
stays. JSON files of other commands are left out. Nothing is run, so no number changes.
"""

import argparse
import json
import re
from pathlib import Path

from disranker_jax.report import ablations, tables

TABLE = re.compile(r'^\|.*(?:\n\|.*)*', re.M)


def redrawn(page: str, result: dict, picture: str) -> str:
  """The page with the first table and the picture of the result as they are written now."""
  page, found = TABLE.subn(lambda _: tables.markdown(*ablations.cells(result)), page, count=1)
  line = re.compile(rf'^!\[.*\]\({re.escape(picture)}\)$', re.M)
  page, drawn = line.subn(lambda _: ablations.picture_of(result, picture), page)
  if (found, drawn) != (1, 1):
    raise ValueError(f'{picture}: its page has {found} tables and {drawn} lines with the picture')
  return page


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('files', nargs='+', type=Path, help='NAME.json, beside NAME.md')
  for file in parser.parse_args().files:
    result = json.loads(file.read_text())
    if 'against' not in result:
      print(f'{file}: is no table of disranker ablate; left out')
      continue
    page, picture = file.with_suffix('.md'), file.with_suffix('.svg')
    page.write_text(redrawn(page.read_text('utf-8'), result, picture.name), encoding='utf-8')
    ablations.draw(result, picture)


if __name__ == '__main__':
  main()
