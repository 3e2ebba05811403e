"""Tables and pictures of ablations, from the numbers alone."""

import json
import re
import runpy
from pathlib import Path

import pytest

from disranker_jax.report import ablations, plots

EXPERIMENTS = Path(__file__).parents[1] / 'experiments'


def row(name, value, away=None, p=0.5, seeds=(0,), pnr=2.0):
  """A row whose interval is .2 wide, and that of its difference .02."""
  main = {'value': value, 'low': value - 0.1, 'high': value + 0.1}
  main['by_seed'] = dict.fromkeys(map(str, seeds), value)
  if away is not None:
    main['difference'] = {'value': away, 'low': away - 0.01, 'high': away + 0.01, 'p_holm': p}
  rest = {'value': pnr, 'low': 1.0, 'high': 3.0, 'by_seed': {'0': pnr}}
  return {'name': name, 'model': 'student', 'metrics': {'ndcg@5': main, 'pnr': rest}}


def result(*rows):
  drawn = {'queries': 9, 'clusters': 9, 'cluster': ''}
  return {'title': 'T', 'against': 'base', 'rows': list(rows)} | drawn


BASE = row('base', 0.7)
WORSE, SAME = row('worse [one]', 0.65, -0.05, p=0.0004), row('same', 0.7, 0.0)


def test_a_difference_names_its_metric_and_follows_it():
  heads, cells = ablations.cells(result(BASE, WORSE))
  assert heads == [
    'row', 'nDCG@5 (95 % interval)', 'difference in nDCG@5 (95 % interval)', 'its p (Holm)', 'PNR',
  ]  # fmt: skip
  assert cells == [
    ['base', '0.700 (0.600 to 0.800)', 'reference', '', '2.00'],
    ['worse [one]', '0.650 (0.550 to 0.750)', '-0.050 (-0.060 to -0.040)', '<0.001', '2.00'],
  ]


def test_seeds_are_a_column_only_where_there_are_several():
  heads, cells = ablations.cells(result(BASE, row('two', 0.8, 0.1, seeds=(0, 1))))
  assert heads[-1] == 'nDCG@5 by seed'
  assert [line[-1] for line in cells] == ['', '0.800 0.800']


def test_a_narrow_terminal_keeps_the_main_metric_and_says_what_is_left_out(monkeypatch):
  monkeypatch.setattr(ablations.tables, 'columns', lambda: 95)
  text = ablations.text(result(BASE, WORSE))
  assert 'PNR' in text.splitlines()[2] and 'not shown' not in text
  monkeypatch.setattr(ablations.tables, 'columns', lambda: 80)
  text = ablations.text(result(BASE, WORSE))
  assert 'its p (Holm)' in text and 'not shown in 80 columns: PNR' in text


def test_the_picture_has_the_paired_differences_not_the_rows_own_intervals(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, 'finish', lambda figure, file, alt: drawn.append((figure, alt)))
  ablations.draw(result(BASE, WORSE, SAME), tmp_path / 'a.svg')
  [(figure, alt)] = drawn
  [axis] = figure.axes
  zero, *lines = [line.get_xdata() for line in axis.lines]
  assert set(zero) == {0}
  spans = [tuple(xs) for xs in lines if len(xs) == 2]
  assert spans == [pytest.approx((-0.06, -0.04)), pytest.approx((-0.01, 0.01))]
  names = [tick.get_text() for tick in axis.get_yticklabels()]
  assert names == ['base (0.700)', 'worse [one] (0.650)', 'same (0.700)']
  assert [text.get_text() for text in axis.texts] == ['reference', '\N{MINUS SIGN}0.050', '+0.000']
  assert 'nDCG@5 minus that of base' in axis.get_xlabel()
  assert alt == (
    'nDCG@5 and the difference to base: base (0.700) reference; '
    'worse [one] (0.650) -0.050 (-0.060 to -0.040); same (0.700) +0.000 (-0.010 to +0.010)'
  )
  # Filled: a difference after Holm's correction.
  fills = [line.get_markerfacecolor() for line in axis.lines if len(line.get_xdata()) == 1]
  assert fills == [plots.COLOURS[1], 'white']


def test_a_page_is_redrawn_from_its_numbers_and_keeps_its_text(tmp_path):
  redraw = runpy.run_path(str(EXPERIMENTS / 'redraw.py'))
  page = '# T\n\nText.\n\n| old |\n|---|\n| 1 |\n\nNote.\n\n![nDCG@5](a.svg)\n\n- base: by hand\n'
  new = redraw['redrawn'](page, result(BASE, WORSE), 'a.svg')
  assert 'worse \\[one\\] (0.650)' in new and '| old |' not in new
  assert re.sub(r'(?m)^(\||!).*\n', '', new) == '# T\n\nText.\n\n\nNote.\n\n\n- base: by hand\n'
  assert redraw['redrawn'](new, result(BASE, WORSE), 'a.svg') == new
  with pytest.raises(ValueError, match='0 lines with the picture'):
    redraw['redrawn'](page, result(BASE, WORSE), 'b.svg')


@pytest.mark.parametrize('file', sorted(EXPERIMENTS.glob('*.json')), ids=lambda file: file.stem)
def test_the_pages_of_experiments_have_the_numbers_of_their_json(file):
  found, page = json.loads(file.read_text()), file.with_suffix('.md').read_text('utf-8')
  if 'against' in found:
    redraw = runpy.run_path(str(EXPERIMENTS / 'redraw.py'))
    assert redraw['redrawn'](page, found, f'{file.stem}.svg') == page
