"""The report's pictures: how training went, and how teacher and students spread their scores."""

import json
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

COLOURS = ('#8c8c8c', '#4c72b0', '#55a868', '#dd8452', '#c44e52')
SMOOTH = 0.9
FEWEST = 20  # documents of a label that make a histogram


def smoothed(values: list[float]) -> np.ndarray:
  """An exponential mean that does not start from zero."""
  out, mean, weight = [], 0.0, 0.0
  for value in values:
    mean, weight = SMOOTH * mean + (1 - SMOOTH) * value, SMOOTH * weight + 1 - SMOOTH
    out.append(mean / weight)
  return np.array(out)


def training_curves(logs: dict[str, Path], file: Path) -> None:
  """The loss of every training stage by step, raw and smoothed."""
  figure, axes = plt.subplots(1, len(logs), figsize=(3.6 * len(logs), 3), squeeze=False)
  for axis, (stage, log) in zip(axes[0], logs.items(), strict=True):
    lines = log.read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith('}')]  # a kill leaves half a line
    steps, losses = [r['step'] for r in rows], [r['loss'] for r in rows]
    axis.plot(steps, losses, color=COLOURS[0], alpha=0.4, linewidth=0.8)
    axis.plot(steps, smoothed(losses), color=COLOURS[1])
    axis.set(title=stage, xlabel='step', ylim=(0, None))
  axes[0][0].set_ylabel('loss')
  finish(figure, file)


def score_histograms(scores: dict[str, dict[int, list[float]]], file: Path) -> None:
  """Scores by label for each model (the paper's figure 4); {model: {label: scores}}."""
  figure, axes = plt.subplots(1, len(scores), figsize=(4 * len(scores), 3), squeeze=False)
  for axis, (model, by_label) in zip(axes[0], scores.items(), strict=True):
    every = np.concatenate([np.array(s) for s in by_label.values()])
    bins = np.linspace(*np.percentile(every, [0.5, 99.5]), 25)
    for (label, values), colour in zip(sorted(by_label.items()), COLOURS * 2, strict=False):
      # Labels differ in number by far; each is drawn with the same area.
      name = f'label {label} ({len(values)})'
      if len(values) < FEWEST:
        axis.plot([], [], ' ', label=f'{name}: too few')
      else:
        style = {'histtype': 'step', 'color': colour, 'linewidth': 1.5, 'label': name}
        axis.hist(values, bins, density=True, **style)
    axis.set(title=model, xlabel='score', yticks=[])
    axis.set_ylim(0, axis.get_ylim()[1] * 1.4)  # room for the legend
    axis.legend(fontsize=7, loc='upper left')
  axes[0][0].set_ylabel('density')
  finish(figure, file)


def quality(results: dict[str, float], file: Path) -> None:
  """nDCG@5 of every model as bars."""
  figure, axis = plt.subplots(figsize=(6, 0.5 + 0.4 * len(results)))
  names, values = list(results)[::-1], list(results.values())[::-1]
  bars = axis.barh(names, values, color=COLOURS[1])
  axis.bar_label(bars, fmt='%.3f', padding=3)
  axis.set(xlabel='nDCG@5', xlim=(0, max([*values, 0.01]) * 1.15))
  finish(figure, file)


def intervals(cells: dict[str, dict[str, float]], against: str, label: str, file: Path) -> None:
  """A value with its interval for each name, one of them as a line through all."""
  figure, axis = plt.subplots(figsize=(6, 0.8 + 0.32 * len(cells)))
  axis.axvline(cells[against]['value'], color=COLOURS[0], linewidth=0.8, linestyle=':')
  for i, cell in enumerate(cells.values()):
    axis.plot([cell['low'], cell['high']], [i, i], color=COLOURS[1], linewidth=2, alpha=0.5)
    axis.plot(cell['value'], i, 'o', color=COLOURS[1])
  axis.set(yticks=range(len(cells)), yticklabels=list(cells), xlabel=f'{label}, 95 % interval')
  axis.set_ylim(len(cells) - 0.5, -0.5)
  finish(figure, file)


def finish(figure, file: Path) -> None:
  for axis in figure.axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.tight_layout()
  figure.savefig(file, dpi=120)
  plt.close(figure)
