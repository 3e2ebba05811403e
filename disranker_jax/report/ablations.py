"""Tables of `disranker ablate`: printed, as Markdown and JSON, and as a picture."""

import json
from pathlib import Path

from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.report import plots, tables
from disranker_jax.report.results import COSTS
from disranker_jax.report.tables import chance, decimals, number, span

DIGITS = 3  # of metrics between 0 and 1


def cells(result: dict) -> tuple[list[str], list[list[str]]]:
  """Heads and rows: the main metric with its interval, the others' values, and the difference.

  The JSON has intervals and differences of all metrics. If a row ranks by prompts, every row has
  what a query costs.
  """
  main, *others = result['rows'][0]['metrics']
  name = metrics.title(main)
  heads = ['', name, '95 % interval', *map(metrics.title, others)]
  heads += [f'{name} by seed', 'difference', '95 % interval', 'p (Holm)']
  rows = []
  for row in result['rows']:
    cell = row['metrics'][main]
    line = [row['name'], number(cell['value'], DIGITS), span(cell, DIGITS)]
    line += [number(row['metrics'][m]['value'], decimals(m, DIGITS)) for m in others]
    seeds = cell['by_seed'].values()
    line.append(' '.join(number(v, DIGITS) for v in seeds) if len(seeds) > 1 else '')
    if away := cell.get('difference'):
      line += [number(away['value'], DIGITS, '+'), span(away, DIGITS, '+'), chance(away['p_holm'])]
    else:
      line += ['reference', '', '']
    rows.append(line)
  costs = costs_of(result)
  for key, (title, digits) in COSTS.items():
    if any(key in found for found in costs):
      heads.append(title)
      for line, found in zip(rows, costs, strict=True):
        line.append(number(found[key], digits) if key in found else '')
  return heads, rows


def title_of(result: dict) -> str:
  """The name of the main metric, the first one."""
  return metrics.title(next(iter(result['rows'][0]['metrics'])))


def costs_of(result: dict) -> list[dict]:
  """What a query costs, per row; nothing if no row ranks by prompts."""
  costs = [row.get('costs', {}) for row in result['rows']]
  by_prompts = any('tokens_per_query' in found for found in costs)
  return costs if by_prompts else [{} for _ in costs]


def text(result: dict) -> str:
  """The table as it is printed."""
  return '\n'.join([result['title'], '', tables.aligned(*cells(result)), '', note(result)])


def note(result: dict) -> str:
  drawn = tables.drawn(result['queries'], result['clusters'])
  if drawn != 'queries':
    by = result['cluster']
    drawn += f' (ids with the same match of `{by}`)' if by else ' (those that share judgements)'
  return (
    f'{result["queries"]} test queries; seeds are averaged within a query. Intervals: bootstrap '
    f'over {drawn}. p: paired randomisation against {result["against"]!r}, corrected (Holm) over '
    'the rows.' + (' Prompts, tokens and ms are per query.' if any(costs_of(result)) else '')
  )


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
    tables.markdown(heads, rows), '', note(result), '', f'![{title_of(result)}]({picture})',
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
    means = {row['name']: next(iter(row['metrics'].values())) for row in result['rows']}
    plots.intervals(means, result['against'], title_of(result), folder / f'{label}.svg')
  except OSError as e:
    raise UserError(f'--out={folder}: cannot be written ({e.strerror})') from None
