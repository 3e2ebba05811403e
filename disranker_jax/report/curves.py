"""Charts of a training: values by step, single and smoothed, with those of held-out queries."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from disranker_jax.data.spaced import spaced
from disranker_jax.report.charts import ACCENT, INK, NAMES, POINTS, SOFT, WIDTH, drawn
from disranker_jax.training import validation
from disranker_jax.training.panels import LOSS, Line, Panel

SPAN = 0.1  # least height of the panel of held-out rankings
SMOOTH = 0.9  # weight of the past in the mean of a value
FEW = 20  # steps below which each one has a mark
LARGE, SMALL = (WIDTH, 2.3), (3.4, 2.2)  # inches of a chart; three small ones are side by side
BELOW = 1.4  # inches of each further panel
PAD = 18  # points between title and panel of a small chart, which has its legend there
LINES = ((ACCENT, '-'), (NAMES['loss'], '--'), (NAMES['gain'], ':'))
HELD_OUT = ('o-', 's--', '^:')


@dataclasses.dataclass(frozen=True)
class Series:
  """A line with its values; a step whose value is not finite is left out."""

  line: Line
  steps_S: np.ndarray
  values_S: np.ndarray
  smooth_S: np.ndarray
  spread_S: np.ndarray | None  # smoothed

  @property
  def edges(self) -> list[float]:
    """What has to be in sight: the smooth line with its band, and all but a few single steps.

    A few outliers must not flatten the rest.
    """
    spread_S = 0 if self.spread_S is None else self.spread_S
    low, high = np.percentile(self.values_S, [1, 99])
    ends = (self.smooth_S - spread_S).min(), (self.smooth_S + spread_S).max()
    return [float(x) for x in (low, high, *ends)]


@dataclasses.dataclass(frozen=True)
class Filled:
  """A panel with its values: its lines, and {name: {step: value}} of held-out queries."""

  panel: Panel
  series: list[Series]
  held_out: dict[str, dict[int, float]]

  @property
  def words(self) -> list[str]:
    """What it shows, in words."""
    unit, said = f' {self.panel.unit}' if self.panel.unit else '', []
    for series in self.series:
      name = f'{series.line.title} ' if series.line.title else ''
      said.append(f'{name}{change(series.smooth_S)}{unit} (smoothed)')
    for name, values in self.held_out.items():
      said.append(f'held-out {validation.title(name)} {change(points(values)[1])}')
    return said


def loss(stage: str, steps: list[dict]) -> Markup:
  """The loss of a stage, and how it ranks held-out queries: nDCG and Kendall's tau."""
  return column(stage, steps, fill(LOSS, steps, {}))


def small(stage: str, steps: list[dict], filled: Filled) -> Markup:
  """A chart of one panel."""
  return column(stage, steps, [filled], is_small=True)


def caption(panels: Sequence[Filled]) -> str:
  """What the small charts of a stage show."""
  said = ['Values by step (faint) and their exponential means.']
  if any(each.held_out for each in panels):
    said.append('Points: held-out training queries.')
  return ' '.join([*said, *(each.panel.note for each in panels if each.panel.note)])


def fill(panels: Sequence[Panel], steps: list[dict], before: Mapping[str, float]) -> list[Filled]:
  """The panels that have values."""
  held_out = ({0: before} if before else {}) | validation.of_steps(steps)
  names = dict.fromkeys(name for values in held_out.values() for name in values)
  found = []
  for panel in panels:
    series = [made for line in panel.lines if (made := series_of(line, steps))]
    measured = {
      name: {step: values[name] for step, values in held_out.items() if is_drawn(values, name)}
      for kind in panel.held_out
      for name in names
      if name.partition('@')[0] == kind
    }
    measured = {name: values for name, values in measured.items() if values}
    if series or measured:
      found.append(Filled(panel, series, measured))
  return found


def is_drawn(values: Mapping[str, float], name: str) -> bool:
  """Whether there is a finite value: the PNR of a perfect order is infinite."""
  return math.isfinite(values.get(name, math.nan))


def series_of(line: Line, steps: list[dict]) -> Series | None:
  """The values of a line; None if no step has one."""
  rows = [row for row in steps if math.isfinite(row.get(line.name, math.nan))]
  if not rows:
    return None
  steps_S, values_S = (np.array([row[name] for row in rows]) for name in ('step', line.name))
  spread_S = None
  if line.spread and all(math.isfinite(row.get(line.spread, math.nan)) for row in rows):
    spread_S = smoothed([row[line.spread] for row in rows])
  return Series(line, steps_S, values_S, smoothed(values_S.tolist()), spread_S)


def column(stage: str, steps: list[dict], panels: list[Filled], is_small: bool = False) -> Markup:
  """A chart of panels, one below the other; a small one has the title of its only panel."""
  most = POINTS // max([1, *(len(each.series) for each in panels)])
  (width, height), last = SMALL if is_small else LARGE, steps[-1]['step']
  first = panels[0].panel

  def draw(*axes):
    for axis, each in zip(axes, panels, strict=True):
      draw_panel(axis, each, most, 'one step' if not is_small else None)
      if each.held_out or len(each.series) > 1 or not is_small:
        legend(axis, is_small)
      if not is_small:
        axis.set_ylabel(each.panel.label)
    axes[0].set_title(first.title if is_small else stage, pad=PAD if is_small else None)
    axes[-1].set(xlabel='step')
    if is_small:  # the same steps side by side
      axes[-1].set_xlim(-0.03 * last, 1.03 * last)
    axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))

  words = '; '.join(word for each in panels for word in each.words)
  alt = f'{first.name} of {stage} over {last} steps: {words}'
  return drawn(height + BELOW * (len(panels) - 1), draw, alt, len(panels), width)


def draw_panel(axis, filled: Filled, most: int, single: str | None) -> None:
  """Draws a panel with at most so many vertices of a line; `single` names single steps."""
  for series, (colour, dashes) in zip(filled.series, itertools.cycle(LINES), strict=False):
    draw_series(axis, series, colour, dashes, most, single)
  for (name, values), mark in zip(filled.held_out.items(), itertools.cycle(HELD_OUT), strict=False):
    label = 'held out' if filled.series else validation.title(name)
    style = {'color': INK, 'linewidth': 1.4, 'markersize': 4, 'label': label}
    axis.plot(*points(values), mark, **style)
  axis.grid(axis='y', linewidth=0.6)
  if not filled.series:
    low, high = axis.get_ylim()
    if high - low < SPAN:  # a change within the noise must not fill the panel
      axis.set_ylim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
    return
  values = [v for of_name in filled.held_out.values() for v in of_name.values()]
  values += [edge for series in filled.series for edge in series.edges]
  low, high = min(0.0, *values), max(0.0, *values)
  room = 0.05 * (high - low) or 1e-6
  axis.set_ylim(low - room if low else 0.0, high + room)
  if low:
    axis.axhline(0, color=SOFT, linewidth=0.8, zorder=1)


def draw_series(
  axis, series: Series, colour: str, dashes: str, most: int, single: str | None
) -> None:
  """Single steps faint, their mean on top, with a band."""
  picks = spaced(len(series.steps_S), most)
  at, smooth_S = series.steps_S[picks], series.smooth_S[picks]
  marks = {'marker': '.', 'markersize': 4} if len(picks) < FEW else {}
  if series.spread_S is not None:
    spread_S = series.spread_S[picks]
    ends = smooth_S - spread_S, smooth_S + spread_S
    axis.fill_between(at, *ends, color=colour, alpha=0.15, linewidth=0)
  faint = {
    'color': SOFT if colour == ACCENT else colour,
    'alpha': 0.5 if colour == ACCENT else 0.3,
    'linewidth': 0.8,
    'label': single,
  }
  axis.plot(at, series.values_S[picks], **faint, **marks)
  # The limits hold it; at a limit it must not be half as wide.
  style = {'color': colour, 'linewidth': 1.8, 'label': series.line.label, 'clip_on': False}
  axis.plot(at, smooth_S, dashes, **style)


def legend(axis, is_small: bool) -> None:
  """The names of an axis's lines, above it where no line is: on the right, or under the title."""
  where, corner = ('lower left', (0, 1)) if is_small else ('lower right', (1, 1))
  style = {'frameon': False, 'fontsize': 9, 'labelcolor': INK, 'ncols': 3}
  axis.legend(
    loc=where, bbox_to_anchor=corner, borderaxespad=0, columnspacing=1, handlelength=1.6, **style
  )


def smoothed(values: list[float]) -> np.ndarray:
  """The exponential mean of the values so far, without the bias of a start at zero."""
  out, mean, weight = [], 0.0, 0.0
  for value in values:
    mean, weight = SMOOTH * mean + (1 - SMOOTH) * value, SMOOTH * weight + 1 - SMOOTH
    out.append(mean / weight)
  return np.array(out)


def points(values: dict[int, float]) -> tuple[list[int], list[float]]:
  """The steps and the values, in order."""
  steps = sorted(values)
  return steps, [values[step] for step in steps]


def change(values: Sequence[float]) -> str:
  return f'from {values[0]:.3g} to {values[-1]:.3g}'
