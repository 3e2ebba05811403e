"""Pictures in files: differences with intervals, for the tables of ablations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from disranker_jax.report import tables

matplotlib.rcParams['svg.hashsalt'] = 'disranker'  # the same picture is the same file
INK = '#333333'
COLOURS = ('#8c8c8c', '#4c72b0', '#55a868', '#dd8452', '#c44e52')


class Difference(NamedTuple):
  """A row of a picture: its name with its own value, and its difference to the reference.

  away  {value, low, high}; None: it is the reference
  text  the difference as text
  """

  name: str
  away: Mapping[str, float] | None
  text: str
  is_sure: bool = False


def differences(rows: Sequence[Difference], label: str, alt: str, file: Path) -> None:
  """Draws the differences of rows to a reference with their intervals, and a line at 0."""
  figure, axis = plt.subplots(figsize=(8, 1 + 0.32 * len(rows)))
  axis.axvline(0, color=INK, linewidth=0.8)
  for i, row in enumerate(rows):
    colour = COLOURS[1] if row.is_sure else COLOURS[0]
    if row.away:
      value, low, high = (float(row.away[key]) for key in ('value', 'low', 'high'))
      axis.plot([low, high], [i, i], color=colour, linewidth=2)
      axis.plot(value, i, 'o', color=colour, markerfacecolor=colour if row.is_sure else 'white')
    # To the right of the axis, as a column.
    text = tables.with_minus(row.text)
    axis.text(1.02, i, text, va='center', transform=axis.get_yaxis_transform(), color=INK)
  axis.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], xlabel=label)
  axis.set_ylim(len(rows) - 0.5, -0.5)
  finish(figure, file, alt)


def finish(figure, file: Path, alt: str = '') -> None:
  """Saves a figure and closes it; `alt` is its description, for those who do not see it."""
  for axis in figure.axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.tight_layout()
  about = {'Title': alt, 'Date': None} if alt and file.suffix == '.svg' else None
  figure.savefig(file, dpi=120, metadata=about)
  plt.close(figure)
