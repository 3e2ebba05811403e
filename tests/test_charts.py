"""The charts of a report: what is drawn where, their words, and the colours of the page."""

import html
import re
from pathlib import Path

import numpy as np
import pytest

from disranker_jax.report import charts
from disranker_jax.report import page as pages

STYLE = (Path(charts.__file__).parent / 'page.css').read_text()


def palettes() -> list[dict[str, str]]:
  """{name: #rrggbb} of light screens, of dark screens and of print, as the page sets them."""
  blocks = re.findall(r':root \{(.*?)\}', STYLE, re.S)
  found = [dict(re.findall(r'--(\w+): (#[0-9a-f]{3,6})', block)) for block in blocks]
  assert len(found) == 3
  return [{k: v if len(v) == 7 else '#' + ''.join(2 * c for c in v[1:]) for k, v in p.items()}
          for p in found]  # fmt: skip


def luminance(colour: str) -> float:
  """WCAG 2.1."""
  parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
  linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
  high, low = sorted((luminance(one), luminance(other)), reverse=True)
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize('palette', palettes(), ids=['light', 'dark', 'print'])
def test_colours_of_labels_can_be_seen_on_paper_and_on_the_track_and_their_text_be_read(palette):
  for grade in range(5):
    colour = palette[f'g{grade}']
    assert contrast(colour, palette['paper']) >= 3  # WCAG 1.4.11, graphics
    assert contrast(colour, palette['wash']) >= 2.9  # the track of the bars of labels
    assert contrast(colour, palette[f'on{grade}']) >= 4.5  # WCAG 1.4.3, text
  distances = [contrast(palette[f'g{grade}'], palette['paper']) for grade in range(1, 5)]
  assert distances == sorted(distances)


@pytest.fixture
def drawn(monkeypatch):
  """The axes of each chart that is drawn, as matplotlib has them."""
  found = []

  def keep(height, draw, alt, panels=1, width=charts.WIDTH):
    with charts.matplotlib.rc_context(charts.STYLE):
      figure, axes = charts.plt.subplots(panels, 1, figsize=(width, height), squeeze=False)
      draw(*axes[:, 0])
      figure.tight_layout(pad=0.4)
      figure.canvas.draw()
    found.append(axes[:, 0])
    return alt

  monkeypatch.setattr(charts, 'drawn', keep)
  yield found
  charts.plt.close('all')


def test_one_and_the_same_score_many_labels_and_few_documents_are_drawn():
  for by_label in ({0: [0.5] * 30}, {y: [float(y)] for y in range(12)}, {0: [1.0], 3: [2.0]}):
    assert charts.histogram('m', by_label, 3).startswith('<svg')


def test_labels_of_points_are_pushed_apart_and_keep_their_order():
  placed = charts.apart({'a': 0.5, 'b': 0.51, 'c': 0.1, 'd': 0.52}, 0.1)
  assert sorted(placed, key=placed.get) == ['c', 'a', 'b', 'd']
  assert min(np.diff(sorted(placed.values()))) >= 0.1 - 1e-12
  assert placed['c'] == 0.1 and placed['a'] == 0.5


def test_labels_stay_below_the_top_and_only_those_that_overlap_are_moved():
  placed = charts.apart({'a': 0.9, 'b': 0.92}, 0.1, top=0.95)
  assert placed == pytest.approx({'a': 0.85, 'b': 0.95})
  spans = {'a': (0.0, 0.3), 'b': (0.6, 1.0), 'c': (0.2, 0.5)}
  placed = charts.apart({'a': 0.5, 'b': 0.5, 'c': 0.5}, 0.1, spans=spans)
  assert placed['b'] == 0.5 and abs(placed['a'] - placed['c']) >= 0.1 - 1e-12


NAMES = {
  'bm25': 'BM25', 'zero_shot': 'zero-shot LLM', 'student_sft': 'student, labels only',
  'teacher': 'teacher', 'student': 'distilled student', 'fused': 'distilled student + BM25',
  'fused_ranks': 'distilled student + BM25, by ranks',
}  # fmt: skip
VALUES = {
  'bm25': 0.650, 'zero_shot': 0.758, 'student_sft': 0.441, 'teacher': 0.887, 'student': 0.568,
  'fused': 0.748, 'fused_ranks': 0.735,
}  # fmt: skip
MEANS = {m: {'value': v, 'low': v - 0.12, 'high': v + 0.1} for m, v in VALUES.items()}
COST = {
  'zero_shot': 620.0, 'student_sft': 63.0, 'teacher': 384.0, 'student': 11.6, 'fused': 11.6,
  'fused_ranks': 11.6,
}  # fmt: skip


def boxes(axis) -> dict[str, object]:
  """{text: where it stands, in pixels}."""
  renderer = axis.figure.canvas.get_renderer()
  return {text.get_text(): charts.plt.Text.get_window_extent(text, renderer) for text in axis.texts}


@pytest.mark.parametrize('share', [1.0, 0.02])  # of the distances: nearly equal rows, too
def test_no_name_in_the_chart_of_times_covers_another_or_leaves_the_axis(drawn, share):
  means = {
    m: {end: 0.7 + share * (mean[end] - 0.7) if end == 'value' else mean[end] for end in mean}
    for m, mean in MEANS.items()
  }
  charts.latency('nDCG@5', NAMES, COST, means, 'student')
  [[axis]] = drawn
  found = boxes(axis)
  assert set(found) == set(NAMES.values())
  for name, box in found.items():
    assert box.y1 <= axis.bbox.y1 + 1 and box.y0 >= axis.bbox.y0 - 1
    assert not [other for other in found if other != name and box.overlaps(found[other])]


def test_marks_of_equal_time_stand_side_by_side():
  shifts = charts.beside(COST)
  assert len({shifts[m][0] for m in ('student', 'fused', 'fused_ranks')}) == 3
  assert sum(shift for shift, _ in shifts.values()) == 0
  assert shifts['teacher'] == (0, 0)


def test_names_of_rows_stand_above_their_lines_so_that_data_have_the_width(drawn):
  charts.dots('nDCG@5', NAMES, MEANS, 'student', 'bm25')
  [[axis]] = drawn
  found = boxes(axis)
  assert axis.bbox.width > 0.9 * axis.figure.bbox.width
  for model, name in NAMES.items():
    value = found[f'{VALUES[model]:.3f}']
    assert found[name].y0 > (value.y0 + value.y1) / 2  # the line is at the middle of its value
    assert not found[name].overlaps(value) and value.x1 <= axis.bbox.x1


def test_gains_are_differences_on_a_shared_scale(drawn):
  for values in ([0.2, -0.1], [0.9, -0.8]):
    said = charts.gains('nDCG@5', 'a against b', values, 0.9)
    assert said.endswith('1 query up, 1 down')
  (one,), (other,) = drawn
  assert one.get_ylim() == other.get_ylim() and one.get_ylabel() == 'nDCG@5, difference'


@pytest.mark.parametrize('name', ['model as given (tiny-decoder)', 'our model of May, ' * 5])
def test_long_titles_of_gains_stay_inside(drawn, name):
  charts.gains('nDCG@10', f'rewriter against {name}', [0.03, -0.02], 0.03)
  [[axis]] = drawn
  figure = axis.figure
  title = figure._suptitle.get_window_extent(figure.canvas.get_renderer())
  assert title.x0 >= 0 and title.x1 <= figure.bbox.x1 and title.y0 >= axis.bbox.y1


def test_points_are_opaque_label_0_is_rings_and_unjudged_pairs_are_crosses(drawn):
  points = np.array([[0, 0, 0], [1, 1, 2], [2, 2, -1]], float)
  charts.scatter('m', points, 0.5, 2)
  [[axis]] = drawn
  marks = {line.get_xdata()[0]: line for line in axis.lines}
  assert all(line.get_alpha() is None for line in axis.lines)
  assert marks[0].get_fillstyle() == 'none' and marks[1].get_fillstyle() == 'full'
  assert marks[2].get_marker() == 'x'
  legend = [{'label': label, 'grade': 0} for label in (-1, 0, 2)]
  assert pages.marks(legend) == ' (0: rings; not judged: crosses)'
  assert pages.marks(legend[2:]) == ''


def test_many_points_do_not_make_a_large_page():
  points = np.random.default_rng(0).random((50_000, 3))
  assert len(charts.scatter('m', points, 0.5, 1)) < 500_000
  assert len(charts.gains('nDCG@5', 'm', np.linspace(1, -1, 50_000).tolist(), 1.0)) < 500_000


def test_words_of_a_chart_of_times_name_every_row_that_has_one(drawn):
  said = html.unescape(charts.latency('nDCG@5', NAMES, COST, MEANS, 'student'))
  assert all(NAMES[model] in said for model in COST) and ', BM25' not in said
