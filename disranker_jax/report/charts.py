"""The page's charts as inline SVG, as wide as a phone, in the page's font and colours.

Every function returns an <svg> element. Its colours are CSS variables of page.html, which has
values for light screens, dark screens and print.
"""

import hashlib
import io
import math
import re

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from disranker_jax.data.spaced import spaced
from disranker_jax.report.rankings import GRADES, grade

# matplotlib knows no CSS variables: it draws in the colour on the left, which `inline` replaces.
COLOURS = {
  '#010101': 'ink', '#020202': 'soft', '#030303': 'line', '#040404': 'accent', '#050505': 'gain',
  '#060606': 'loss', '#070707': 'paper', **{f'#0{i}0a0a': f'g{i}' for i in range(GRADES)},
}  # fmt: skip
NAMES = {name: code for code, name in COLOURS.items()}
INK, SOFT, LINE, ACCENT, PAPER = (NAMES[n] for n in ('ink', 'soft', 'line', 'accent', 'paper'))
CLEAR = {'facecolor': PAPER, 'edgecolor': 'none', 'pad': 0.8}  # behind text on lines
WIDTH = 4.6  # inches; at 72 points per inch about the width of a phone
POINTS = 2000  # most marks or vertices of a chart, which bound the size of the page
FEWEST = 20  # documents of a label for a histogram; fewer are drawn one by one
STYLE = {
  'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 10.5,
  'axes.titlesize': 11.5, 'axes.titleweight': 'bold',
  'axes.titlelocation': 'left', 'axes.spines.top': False, 'axes.spines.right': False,
  'axes.edgecolor': SOFT, 'axes.labelcolor': SOFT, 'xtick.color': SOFT, 'ytick.color': SOFT,
  'text.color': INK, 'axes.titlecolor': INK, 'grid.color': LINE, 'axes.axisbelow': True,
}  # fmt: skip


def drawn(height: float, draw, alt: str, panels: int = 1, width: float = WIDTH) -> Markup:
  """A figure of `panels` rows as SVG; `draw` fills its axes, `alt` describes it."""
  with matplotlib.rc_context(STYLE):
    sharing = {'sharex': True, 'squeeze': False}
    figure, axes = plt.subplots(panels, 1, figsize=(width, height), **sharing)
    try:
      draw(*axes[:, 0])
      for _ in range(2):  # other sizes can have other ticks, with wider labels
        figure.tight_layout(pad=0.4, h_pad=0.0)
      out = io.StringIO()
      figure.savefig(out, format='svg', transparent=True)
    finally:
      plt.close(figure)
  return inline(out.getvalue(), alt)


def inline(svg: str, alt: str) -> Markup:
  """A stand-alone SVG as an element of a page: unique ids, the page's colours and font, a label."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
  prefix = f'c{hashlib.sha256(svg.encode()).hexdigest()[:8]}-'
  svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
  svg = re.sub(r'url\(#([^)]+)\)', rf'url(#{prefix}\1)', svg)
  svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
  svg = re.sub(r'font-family: [^;\"]+;? ?|(font: [0-9a-z. ]+px) [^;\"]+', r'\1', svg)
  svg = re.sub(r'font: ((?:bold )?)([0-9.]+)px', font, svg)
  for code, name in COLOURS.items():
    svg = svg.replace(code, f'var(--{name})')
  _, _, rest = svg.partition('>')
  box = re.search(r'viewBox="([^"]+)"', svg).group(1)
  return Markup(f'<svg viewBox="{box}" role="img" aria-label="{escape(alt)}">{rest}')


def font(match: re.Match) -> str:
  bold, size = match.groups()
  return f'font-size: {size}px' + ('; font-weight: bold' if bold else '')


def grade_colour(label: int, top: int) -> str:
  return NAMES[f'g{grade(label, top)}']


def dots(
  metric: str, names: dict[str, str], means: dict[str, dict], highlight: str, baseline: str
) -> Markup:
  """A metric with its interval, the best model on top; `means` is {model: {value, low, high}}."""
  order = sorted(means, key=lambda m: means[m]['value'])

  def draw(axis):
    for y, model in enumerate(order):
      mean, colour = means[model], ACCENT if model == highlight else INK
      axis.plot([mean['low'], mean['high']], [y, y], color=colour, linewidth=2.2)
      axis.plot(mean['value'], y, 'o', color=colour, markersize=6)
      shown = f'{mean["value"]:.3f}'
      at = (mean['value'], y)
      style = {'textcoords': 'offset points', 'ha': 'center', 'color': colour, 'bbox': CLEAR}
      axis.annotate(shown, at, (0, 7), **style)
    if baseline in means:
      axis.axvline(means[baseline]['value'], color=SOFT, linestyle=':', linewidth=1, zorder=0)
    axis.set_yticks(range(len(order)), [names[m] for m in order])
    axis.tick_params(axis='y', labelcolor=INK, length=0)
    axis.set(xlabel=metric, ylim=(-0.5, len(order) - 0.25))
    axis.grid(axis='x', linewidth=0.6)
    axis.spines['left'].set_visible(False)

  listed = ', '.join(f'{names[m]} {means[m]["value"]:.3f}' for m in reversed(order))
  alt = f'{metric} of every model with its 95 % interval: {listed}'
  return drawn(0.75 + 0.42 * len(order), draw, alt)


def histogram(title: str, by_label: dict[int, list[float]], top: int) -> Markup:
  """A model's scores, one panel of equal area per label, best on top (paper's figure 4)."""
  labels = sorted(by_label, reverse=True)
  every = np.concatenate([np.asarray(by_label[label]) for label in labels])
  low, high = np.percentile(every, [0.5, 99.5])
  room = (high - low) * 0.02 or 0.5
  bins = np.linspace(low - room, high + room, 41)

  def draw(*axes):
    for axis, label in zip(axes, labels, strict=True):
      values = np.clip(by_label[label], bins[0], bins[-1])
      colour = grade_colour(label, top)
      if len(values) < FEWEST:  # one line per document
        axis.vlines(values, 0, 0.5, color=colour, linewidth=1.5)
        axis.set_ylim(0, 1)
      else:
        shares, _ = np.histogram(values, bins, density=True)
        axis.stairs(shares, bins, fill=True, color=colour)
      middle = float(np.median(values))
      axis.axvline(middle, color=INK, linewidth=1.2)
      name = f'label {label}\n({len(values):,})'
      axis.set_ylabel(name, rotation=0, ha='right', va='center', color=INK)
      axis.set(yticks=[], xlim=(bins[0], bins[-1]))
      axis.spines['left'].set_visible(False)
      axis.tick_params(axis='x', length=3 if axis is axes[-1] else 0)
    axes[0].set_title(title)
    axes[-1].xaxis.set_major_locator(MaxNLocator(4))
    axes[-1].set_xlabel('score')

  medians = ', '.join(f'{np.median(by_label[label]):.2f} for label {label}' for label in labels)
  alt = f'Histograms of the scores of {title} by label; medians: {medians}'
  return drawn(0.8 + 0.44 * len(labels), draw, alt, len(labels))


def scatter(title: str, points: np.ndarray, tau: float, top: int) -> Markup:
  """The scores of a model against its teacher's; `points` [N, 3] are (teacher, model, label)."""
  picks = np.sort(np.random.default_rng(0).permutation(len(points))[:POINTS])
  shown = points[picks]

  def draw(axis):
    for label in np.unique(shown[:, 2]):
      some = shown[shown[:, 2] == label]
      colour = grade_colour(int(label), top) if label >= 0 else SOFT
      axis.plot(some[:, 0], some[:, 1], 'o', color=colour, alpha=0.75, ms=3, mew=0)
    axis.set(xlabel="teacher's score", ylabel="student's score")
    axis.set_title(title + (f': tau {tau:.2f}' if math.isfinite(tau) else ''))
    axis.grid(linewidth=0.6)

  alt = (
    f'Scores of {title} against those of the teacher, {len(points)} pairs; Kendall tau {tau:.2f}'
  )
  return drawn(3.4, draw, alt)


def gains(metric: str, title: str, values: list[float]) -> Markup:
  """One bar per query, from the greatest gain to the greatest loss; `values` are in that order."""
  won, lost = sum(v > 0 for v in values), sum(v < 0 for v in values)
  values_Q = np.array([values[i] for i in spaced(len(values), POINTS)])
  edges = np.linspace(0, 100, len(values_Q) + 1)

  def draw(axis):
    for part, name in ((np.maximum(values_Q, 0), 'gain'), (np.minimum(values_Q, 0), 'loss')):
      axis.stairs(part, edges, fill=True, color=NAMES[name])
    axis.axhline(0, color=SOFT, linewidth=0.8)
    limit = max(0.05, float(np.abs(values_Q).max()) * 1.05)
    axis.set(xlim=(0, 100), ylim=(-limit, limit), ylabel=metric, xlabel='share of queries, %')
    axis.set_title(title)
    style = {'xycoords': 'axes fraction', 'textcoords': 'offset points'}
    axis.annotate(f'{won:,} up', (1, 1), (0, -9), ha='right', color=NAMES['gain'], **style)
    axis.annotate(f'{lost:,} down', (0, 0), (7, 6), color=NAMES['loss'], **style)
    axis.grid(axis='y', linewidth=0.6)

  alt = (
    f'Differences of {metric} {title}, query by query from the greatest gain to the greatest loss: '
  )
  alt += f'{won} queries up, {lost} down'
  return drawn(2.6, draw, alt)


def apart(places: dict[str, float], least: float) -> dict[str, float]:
  """The places, moved up where two of them are closer than `least`."""
  last, moved = -math.inf, {}
  for name, place in sorted(places.items(), key=lambda item: item[1]):
    moved[name] = last = max(place, last + least)
  return moved


def latency(
  metric: str,
  names: dict[str, str],
  cost: dict[str, float],
  means: dict[str, dict],
  highlight: str,
) -> Markup:
  """A metric over milliseconds per pair; rankings without a cost are horizontal lines."""
  free = {m: v for m, v in means.items() if m not in cost}
  middle = math.sqrt(min(cost.values()) * max(cost.values()))
  ends = [mean[end] for mean in means.values() for end in ('low', 'high')]
  height = max(max(ends) - min(ends), 1e-6)
  places = apart({m: means[m]['value'] / height for m in cost}, 0.085)

  def draw(axis):
    for model, mean in free.items():
      axis.axhline(mean['value'], color=SOFT, linestyle=':', linewidth=1)
      axis.annotate(
        names[model], (1, mean['value']), (0, 3), textcoords='offset points', color=SOFT,
        xycoords=('axes fraction', 'data'), ha='right',
      )  # fmt: skip
    for model, ms in cost.items():
      mean, colour = means[model], ACCENT if model == highlight else INK
      axis.plot([ms, ms], [mean['low'], mean['high']], color=colour, lw=1.2, alpha=0.6, zorder=3)
      axis.plot(ms, mean['value'], 'o', color=colour, markersize=7, zorder=4)
      dx, side = (-8, 'right') if ms > middle else (8, 'left')
      dy = (places[model] - mean['value'] / height) * 155  # points; the axis is about 155 high
      style = {'textcoords': 'offset points', 'va': 'center', 'ha': side, 'bbox': CLEAR}
      axis.annotate(names[model], (ms, mean['value']), (dx, dy), color=colour, zorder=2, **style)
    axis.set(xscale='log', xlim=(min(cost.values()) / 1.6, max(cost.values()) * 1.6))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f'{ms:g}'))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel='ms per pair (log scale)', ylabel=metric)
    axis.margins(y=0.12)
    axis.grid(linewidth=0.6)

  listed = ', '.join(
    f'{names[m]} {ms:.2g} ms and {means[m]["value"]:.3f}' for m, ms in cost.items()
  )
  return drawn(3.2, draw, f'{metric} against milliseconds per pair: {listed}')
