"""Pictures in files: values with intervals, for the tables of ablations."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

COLOURS = ('#8c8c8c', '#4c72b0', '#55a868', '#dd8452', '#c44e52')


def intervals(cells: dict[str, dict[str, float]], against: str, label: str, file: Path) -> None:
  """Draws {name: {value, low, high}}; a dotted line marks the value of `against`."""
  figure, axis = plt.subplots(figsize=(6, 0.8 + 0.32 * len(cells)))
  axis.axvline(cells[against]['value'], color=COLOURS[0], linewidth=0.8, linestyle=':')
  for i, cell in enumerate(cells.values()):
    axis.plot([cell['low'], cell['high']], [i, i], color=COLOURS[1], linewidth=2, alpha=0.5)
    axis.plot(cell['value'], i, 'o', color=COLOURS[1])
  axis.set(yticks=range(len(cells)), yticklabels=list(cells), xlabel=f'{label}, 95 % interval')
  axis.set_ylim(len(cells) - 0.5, -0.5)
  finish(figure, file)


def finish(figure, file: Path) -> None:
  """Saves a figure and closes it."""
  for axis in figure.axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.tight_layout()
  figure.savefig(file, dpi=120)
  plt.close(figure)
