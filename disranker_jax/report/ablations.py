"""Tables of `disranker ablate`: printed, as Markdown and JSON, as a picture."""

import json
from pathlib import Path

from disranker_jax.errors import UserError
from disranker_jax.report import comparison, plots, tables

MAIN = 'ndcg@5'  # whose intervals and differences are shown; the JSON has them of every metric


def block(result: dict) -> comparison.Block:
  """The main metric with its interval, the others' values, and the difference to one row."""
  metrics = list(result['rows'][0]['metrics'])
  name = comparison.title(MAIN)
  heads = ['', name, '95 % interval', *(comparison.title(m) for m in metrics if m != MAIN)]
  heads += [f'{name} by seed', 'difference', '95 % interval', 'p (Holm)']
  rows = []
  for row in result['rows']:
    cell = row['metrics'][MAIN]
    line = [row['name'], number(cell['value']), span(cell)]
    line += [
      tables.number(row['metrics'][m]['value'], 2 if m == 'pnr' else 3)
      for m in metrics
      if m != MAIN
    ]
    seeds = cell['by_seed'].values()
    line.append(' '.join(number(v) for v in seeds) if len(seeds) > 1 else '')
    if away := cell.get('difference'):
      line += [f'{away["value"]:+.3f}', span(away, '+'), comparison.chance(away['p_holm'])]
    else:
      line += ['reference', '', '']
    rows.append(line)
  return comparison.Block('', heads, rows)


def number(value: float) -> str:
  return f'{value:.3f}'


def span(cell: dict, sign: str = '') -> str:
  return f'{cell["low"]:{sign}.3f} to {cell["high"]:{sign}.3f}'


def text(result: dict) -> str:
  """What is printed."""
  return '\n'.join([result['title'], '', comparison.aligned(block(result)), '', note(result)])


def note(result: dict) -> str:
  drawn = comparison.drawn(result['queries'], result.get('clusters', result['queries']))
  return (
    f'{result["queries"]} test queries; seeds are averaged within a query. Intervals: bootstrap '
    f'over {drawn}. p: paired randomisation against {result["against"]!r}, corrected (Holm) over '
    'the rows.'
  )


def markdown(result: dict, picture: str) -> str:
  """The same with what it was made from."""
  made = block(result)
  heads, *rows = [[comparison.escaped(c) for c in line] for line in (made.heads, *made.rows)]
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
    tables.markdown(heads, rows), '', note(result), '', f'![{comparison.title(MAIN)}]({picture})',
    '', f'Made on {result["date"]} on {result["device"]}, jax {result["versions"]["jax"]}, by', '',
    f'    {command}', '', 'Rows are a model of a run, and what the run changes:', '', *changes, '',
  ])  # fmt: skip


def save(folder: Path, label: str, result: dict) -> None:
  """LABEL.json, .md and .svg."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{label}.json').write_text(json.dumps(result, indent=1, default=list) + '\n')
    (folder / f'{label}.md').write_text(markdown(result, f'{label}.svg'), encoding='utf-8')
    cells = {row['name']: row['metrics'][MAIN] for row in result['rows']}
    plots.intervals(cells, result['against'], comparison.title(MAIN), folder / f'{label}.svg')
  except OSError as e:
    raise UserError(f'--out={folder}: cannot be written ({e.strerror})') from None
