"""Tables of `disranker ablate`: printed, as Markdown and JSON, and as a picture."""

import json
from collections.abc import Mapping
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.progress import amount
from disranker_jax.report import plots, tables
from disranker_jax.report.results import COSTS, cost
from disranker_jax.report.tables import chance, decimals, number, span

DIGITS = 3  # of metrics between 0 and 1
ALPHA = 0.05


def cells(result: dict) -> tuple[list[str], list[list[str]]]:
  """Heads and rows: the main metric and its difference with intervals, then the others' values.

  The JSON has intervals and differences of all metrics. If a row ranks by prompts, every row has
  what a query costs.
  """
  main, *others = result['rows'][0]['metrics']
  name = metrics.title(main)
  heads = [
    'row',
    f'{name} (95 % interval)',
    f'difference in {name} (95 % interval)',
    'its p (Holm)',
  ]
  heads += map(metrics.title, others)
  rows = []
  for row in result['rows']:
    cell = row['metrics'][main]
    line = [row['name'], spread(cell)]
    away = cell.get('difference')
    line += [spread(away, '+'), chance(away['p_holm'])] if away else ['reference', '']
    line += [number(row['metrics'][m]['value'], decimals(m, DIGITS)) for m in others]
    rows.append(line)
  seeds = [row['metrics'][main]['by_seed'].values() for row in result['rows']]
  if any(len(values) > 1 for values in seeds):
    heads.append(f'{name} by seed')
    for line, values in zip(rows, seeds, strict=True):
      line.append(' '.join(number(v, DIGITS) for v in values) if len(values) > 1 else '')
  costs = costs_of(result)
  for key, (title, _) in COSTS.items():
    if any(key in found for found in costs):
      heads.append(title)
      for line, found in zip(rows, costs, strict=True):
        line.append(cost(key, found))
  return heads, rows


def spread(cell: Mapping[str, float], sign: str = '') -> str:
  """'0.740 (0.708 to 0.772)'."""
  return f'{number(cell["value"], DIGITS, sign)} ({span(cell, DIGITS, sign)})'


def title_of(result: dict) -> str:
  """The name of the main metric, the first one."""
  return metrics.title(next(iter(result['rows'][0]['metrics'])))


def costs_of(result: dict) -> list[dict]:
  """What a query costs, per row; nothing if no row ranks by prompts."""
  costs = [row.get('costs', {}) for row in result['rows']]
  by_prompts = any('tokens_per_query' in found for found in costs)
  return costs if by_prompts else [{} for _ in costs]


def text(result: dict) -> str:
  """The table as it is printed; columns that do not fit the terminal are left out."""
  heads, rows = cells(result)
  width, fixed = tables.columns(), 4  # the main metric is always shown
  heads, rows, gone = tables.fitting(heads, rows, width, range(len(heads) - 1, fixed - 1, -1))
  table = tables.aligned(heads, rows, width=width)
  left_out = [f'not shown in {width:g} columns: {tables.joined(gone)}'] if gone else []
  said = [tables.wrapped(line) for line in [*left_out, '', note(result)]]
  return '\n'.join([tables.wrapped(result['title']), '', table, *said])


def note(result: dict) -> str:
  drawn = tables.drawn(result['queries'], result['clusters'])
  if drawn != 'queries':
    by = result['cluster']
    drawn += f' (ids with the same match of `{by}`)' if by else ' (those that share judgements)'
  return (
    f'{amount(result["queries"], "test query", "test queries")}; seeds are averaged within a '
    f'query. Intervals: bootstrap over {drawn}. p: paired randomisation against '
    f'{result["against"]!r}, corrected (Holm) over '
    'the rows.' + (' Prompts, tokens and ms are per query.' if any(costs_of(result)) else '')
  )


def rows_of(result: dict) -> list[plots.Difference]:
  """The rows of the picture."""
  rows = []
  for row in result['rows']:
    cell = next(iter(row['metrics'].values()))
    away, name = cell.get('difference'), f'{row["name"]} ({number(cell["value"], DIGITS)})'
    text = number(away['value'], DIGITS, '+') if away else 'reference'
    rows.append(plots.Difference(name, away, text, bool(away) and away['p_holm'] < ALPHA))
  return rows


def alt(result: dict) -> str:
  """What the picture shows, in words: the rows with their values."""
  named = [
    f'{row.name} {row.text}' + (f' ({span(row.away, DIGITS, "+")})' if row.away else '')
    for row in rows_of(result)
  ]
  return f'{title_of(result)} and the difference to {result["against"]}: {"; ".join(named)}'


def draw(result: dict, file: Path) -> None:
  """The picture of a table."""
  label = f'{title_of(result)} minus that of {result["against"]}, paired 95 % interval'
  label += f'\nfilled: p (Holm) below {ALPHA}; in brackets: {title_of(result)} itself'
  plots.differences(rows_of(result), label, alt(result), file)


def picture_of(result: dict, picture: str) -> str:
  """The picture in Markdown."""
  return f'![{escaping.markdown(alt(result))}]({picture})'


def markdown(result: dict, picture: str) -> str:
  """The table as Markdown, with the command and settings behind it."""
  heads, rows = cells(result)
  command = f'disranker ablate {result["file"]} --config {result["config"]}'
  seeds = max((row['seeds'] for row in result['rows']), key=len)
  command += ''.join(f" '--config.{word}'" for word in result['set'])
  command += ''.join(f" --row '{name}'" for name in result['row'])
  command += f' --seeds {",".join(map(str, seeds))}'
  command += f' --folds {result["folds"]}' if result['folds'] != '0' else ''
  changes = [
    f'- {row["name"]}: {row["model"]}' + ''.join(f', `{k}={v}`' for k, v in row['changes'].items())
    for row in result['rows']
  ]
  return '\n'.join([
    f'# {result["title"]}', '', *([result['text'], ''] if result['text'] else []),
    tables.markdown(heads, rows), '', note(result), '', picture_of(result, picture),
    '', f'Made on {result["date"]} on {result["device"]}, jax {result["versions"]["jax"]}, by', '',
    f'    {command}', '', 'Each row is a model of a run with these changes to the config:', '',
    *changes, '',
  ])  # fmt: skip


def save(folder: Path, label: str, result: dict) -> None:
  """LABEL.json, .md and .svg."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{label}.json').write_text(json.dumps(result, indent=1, default=list) + '\n')
    (folder / f'{label}.md').write_text(markdown(result, f'{label}.svg'), encoding='utf-8')
    draw(result, folder / f'{label}.svg')
  except OSError as e:
    raise UserError(f'--out={folder}: cannot be written ({e.strerror})') from None
