"""The page's charts as inline SVG, as wide as a phone, in the page's font and colours.

Every function returns an <svg> element. Its colours are CSS variables of page.css, which has
values for light screens, dark screens and print.
"""

import hashlib
import io
import math
import re
import textwrap

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from disranker_jax.data.spaced import spaced
from disranker_jax.progress import amount
from disranker_jax.report import tables
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
TITLE = 50  # characters of a title on one line
POINTS = 2000  # most marks or vertices of a chart, which bound the size of the page
FEWEST = 20  # documents of a label for a histogram; fewer are drawn one by one
VALUE = 0.16  # of the range of intervals: the room for a value on their right
LABEL = 0.082  # of the height of the chart of times: a line of text
CHARACTER = 5  # points of a letter of its labels
TIMES = 265  # points of its width, about
BESIDE = 7  # points between marks of equal time
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
    low, high = limits(means)
    axis.set(xlim=(low - 0.02 * (high - low), high + VALUE * (high - low)))
    for y, model in enumerate(order):
      mean, colour = means[model], ACCENT if model == highlight else INK
      axis.plot([mean['low'], mean['high']], [y, y], color=colour, linewidth=2.2)
      axis.plot(mean['value'], y, 'o', color=colour, markersize=6)
      style = {'textcoords': 'offset points', 'color': colour, 'bbox': CLEAR}
      at = {'xycoords': ('axes fraction', 'data')}
      axis.annotate(names[model], (0, y), (0, 6), va='bottom', **at, **style)
      axis.annotate(f'{mean["value"]:.3f}', (mean['high'], y), (7, 0), va='center', **style)
    if baseline in means:
      axis.axvline(means[baseline]['value'], color=SOFT, linestyle=':', linewidth=1, zorder=0)
    axis.set(xlabel=metric, ylim=(-0.4, len(order) - 0.25), yticks=[])
    axis.grid(axis='x', linewidth=0.6)
    axis.spines['left'].set_visible(False)

  listed = ', '.join(f'{names[m]} {means[m]["value"]:.3f}' for m in reversed(order))
  alt = f'{metric} of every model with its 95 % interval: {listed}'
  return drawn(0.6 + 0.46 * len(order), draw, alt)


def limits(means: dict[str, dict]) -> tuple[float, float]:
  """The lowest and the highest end of the intervals, not equal."""
  low, high = min(m['low'] for m in means.values()), max(m['high'] for m in means.values())
  return (low, high) if high > low else (low - 0.05, high + 0.05)


def histogram(title: str, by_label: dict[int, list[float]], top: int) -> Markup:
  """A model's scores, one panel per label, best on top, after the paper's figure 4.

  Each panel is as high as its highest bar; the outermost bars also hold what is beyond them.
  """
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
      style = {'color': colour, 'markersize': 3.4, 'markeredgewidth': 0.8}
      mark = 'o' if label >= 0 else 'x'
      # Most documents have label 0; as rings they do not hide the others.
      axis.plot(some[:, 0], some[:, 1], mark, fillstyle='full' if label else 'none', **style)
    axis.set(xlabel="teacher's score", ylabel="student's score")
    axis.set_title(title + (f': tau {tau:.2f}' if math.isfinite(tau) else ''))
    axis.grid(linewidth=0.6)

  alt = (
    f'Scores of {title} against those of the teacher, {amount(len(points), "pair")}; Kendall tau '
    f'{tau:.2f}'
  )
  return drawn(3.4, draw, alt)


def gains(metric: str, title: str, values: list[float], limit: float) -> Markup:
  """One bar per query, from the greatest gain to the greatest loss; `values` are in that order.

  `limit` is the greatest gain or loss of all charts side by side, so that heights mean the same.
  """
  won, lost = sum(v > 0 for v in values), sum(v < 0 for v in values)
  values_Q = np.array([values[i] for i in spaced(len(values), POINTS)])
  edges = np.linspace(0, 100, len(values_Q) + 1)

  def draw(axis):
    for part, name in ((np.maximum(values_Q, 0), 'gain'), (np.minimum(values_Q, 0), 'loss')):
      axis.stairs(part, edges, fill=True, color=NAMES[name])
    axis.axhline(0, color=SOFT, linewidth=0.8)
    end = max(0.05, limit * 1.05)
    axis.set(xlim=(0, 100), ylim=(-end, end), xlabel='share of queries, %')
    axis.set_ylabel(f'{metric}, difference')
    # Over the whole figure, because two rows have long names.
    head = {'x': 0.012, 'ha': 'left', 'fontsize': 10.5, 'fontweight': 'bold'}
    axis.figure.suptitle('\n'.join(textwrap.wrap(title, TITLE)), **head)
    style = {'xycoords': 'axes fraction', 'textcoords': 'offset points'}
    axis.annotate(f'{won:,} up', (1, 1), (0, -9), ha='right', color=NAMES['gain'], **style)
    axis.annotate(f'{lost:,} down', (0, 0), (7, 6), color=NAMES['loss'], **style)
    axis.grid(axis='y', linewidth=0.6)

  alt = (
    f'Differences of {metric} {title}, query by query from the greatest gain to the greatest loss: '
  )
  alt += f'{amount(won, "query", "queries")} up, {lost} down'
  return drawn(2.6, draw, alt)


def apart(
  places: dict[str, float],
  least: float,
  top: float = math.inf,
  spans: dict[str, tuple[float, float]] | None = None,
) -> dict[str, float]:
  """The places, moved up where two are closer than `least`, and down where one is above `top`.

  spans  (left, right) of each: only those that overlap are moved apart; None: all do
  """

  def near(name, moved):
    left, right = spans[name] if spans else (0, 0)
    return [
      place
      for other, place in moved.items()
      if not spans or (spans[other][0] <= right and left <= spans[other][1])
    ]

  up: dict[str, float] = {}
  for name, place in sorted(places.items(), key=lambda item: item[1]):
    up[name] = max([place, *(other + least for other in near(name, up))])
  down: dict[str, float] = {}
  for name, place in sorted(up.items(), key=lambda item: -item[1]):
    down[name] = min([place, top, *(other - least for other in near(name, down))])
  return down


def beside(cost: dict[str, float]) -> dict[str, tuple[float, float]]:
  """{row: (points to the right of its time, points from there to the outermost mark)}.

  Marks of equal time would hide each other.
  """
  found = {}
  for model, ms in cost.items():
    same = [other for other in cost if cost[other] == ms]
    half = (len(same) - 1) / 2
    found[model] = (same.index(model) - half) * BESIDE, half * BESIDE
  return found


def time_limits(cost: dict[str, float]) -> tuple[float, float]:
  return min(cost.values()) / 1.6, max(cost.values()) * 1.6


def is_right_half(cost: dict[str, float], ms: float) -> bool:
  """Whether a time is in the right half of the chart, so that its label stands on its left."""
  return ms > math.sqrt(math.prod(time_limits(cost)))


def label_spans(names, cost, means) -> dict[str, tuple[float, float]]:
  """{row: (left, right)} of its label, about, as shares of the chart's width."""
  low, high = map(math.log, time_limits(cost))
  found = {}
  for model in means:
    width = (len(names[model]) * CHARACTER + 8) / TIMES
    if model not in cost:  # at the right edge
      found[model] = (1 - width, 1.0)
      continue
    at = (math.log(cost[model]) - low) / (high - low)
    found[model] = (at - width, at) if is_right_half(cost, cost[model]) else (at, at + width)
  return found


def latency(
  metric: str,
  names: dict[str, str],
  cost: dict[str, float],
  means: dict[str, dict],
  highlight: str,
) -> Markup:
  """A metric over milliseconds per pair; rankings without a cost are horizontal lines."""
  free = {m: v for m, v in means.items() if m not in cost}
  low, high = limits(means)
  room = 0.1 * (high - low)
  low, high, shifts = low - room, high + room, beside(cost)
  least = LABEL * (high - low)
  places = {m: mean['value'] for m, mean in means.items()}
  places = apart(places, least, high - least / 2, label_spans(names, cost, means))

  def draw(axis):
    axis.set(xscale='log', xlim=time_limits(cost))
    axis.set(ylim=(low, high))
    inches = axis.figure.dpi_scale_trans
    label = {
      'fontsize': 9.5,
      'va': 'center',
      'bbox': CLEAR,
      'zorder': 3.5,
      'annotation_clip': False,
    }
    for model, mean in free.items():
      axis.axhline(mean['value'], color=SOFT, linestyle=':', linewidth=1)
      at = (1, places[model])
      axis.annotate(
        names[model], at, xycoords=('axes fraction', 'data'), ha='right', color=SOFT,
        **label | {'zorder': 2.5},  # an interval may cross it
      )  # fmt: skip
    for model, ms in cost.items():
      mean, colour = means[model], ACCENT if model == highlight else INK
      shift, edge = shifts[model]
      moved = axis.transData + ScaledTranslation(shift / 72, 0, inches)
      style = {'color': colour, 'transform': moved}
      axis.plot([ms, ms], [mean['low'], mean['high']], lw=1.2, alpha=0.6, zorder=3, **style)
      axis.plot(ms, mean['value'], 'o', markersize=7, zorder=4, **style)
      is_left = is_right_half(cost, ms)
      dx = -edge - 8 if is_left else edge + 8
      text = axis.transData + ScaledTranslation(dx / 72, 0, inches)
      is_apart = edge or abs(places[model] - mean['value']) > least / 4
      arrow = {'arrowstyle': '-', 'color': colour, 'linewidth': 0.7, 'shrinkA': 0, 'shrinkB': 0}
      axis.annotate(
        names[model], (ms, mean['value']), (ms, places[model]), xycoords=moved, textcoords=text,
        ha='right' if is_left else 'left', color=colour, arrowprops=arrow if is_apart else None,
        **label,
      )  # fmt: skip
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f'{ms:g}'))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel='ms per pair (log scale)', ylabel=metric)
    axis.grid(linewidth=0.6)

  listed = ', '.join(
    f'{names[m]} {tables.rounded(ms, 2)} ms and {means[m]["value"]:.3f}' for m, ms in cost.items()
  )
  return drawn(3.4, draw, f'{metric} against milliseconds per pair: {listed}')
