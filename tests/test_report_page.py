"""The HTML page of a run: what it claims, what it shows of rankings, and that it stands alone."""

import html.parser
import json
import re
import types

import numpy as np
import pytest

from disranker_jax import config as configs
from disranker_jax.data import holdout, store
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, rewrites, runs
from disranker_jax.pipeline import manifest
from disranker_jax.report import facts, intervals, page, rankings, tables, tiles
from disranker_jax.stages import evaluate, report
from disranker_jax.stages.result_rows import TABLE

EVIL = '<script>alert("&")</script>'
VOID = {'meta', 'link', 'br', 'img', 'hr', 'input'}


class Page(html.parser.HTMLParser):
  """Text, ids, links and attributes of a page; fails on tags that do not nest."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.ids, self.values, self.words = [], [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.values += [(name, value) for name, value in attributes]
    self.ids += [value for name, value in attributes if name == 'id']
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if tag not in VOID:
      self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if not self.open or self.open[-1] not in ('style', 'script'):
      self.words.append(data)

  @property
  def text(self) -> str:
    return re.sub(r'\s+', ' ', ' '.join(self.words))


def group(i: int, documents: int = 8) -> Group:
  """The document that answers comes last in the first stage's order."""
  docs = tuple(
    Document(
      f'd {i} {j}', f'title {j} {EVIL}', '', label=2 if j == documents - 1 else 0, rank=j + 1
    )
    for j in range(documents)
  )
  return Group(f'q {i}', f'query {i} {EVIL}', docs)


def ranked_by(model: str, i: int, g: Group) -> dict[str, float]:
  """BM25 has the answer last; the teacher first; the student first but for every fourth query."""
  rng = np.random.default_rng(i)
  noise = dict(zip([d.doc_id for d in g.docs], rng.random(len(g.docs)), strict=True))
  if model == 'bm25':
    return {d.doc_id: -float(d.rank) for d in g.docs}
  finds = model == 'teacher' or (model == 'student' and i % 4) or (model == 'student_sft' and i % 2)
  return {d.doc_id: noise[d.doc_id] + (2.0 if finds else -2.0) * d.label for d in g.docs}


def make_run(folder, models=('bm25', 'student_sft', 'teacher', 'student'), queries=40, name=EVIL):
  """A workdir as prepare and evaluate leave it."""
  groups = [group(i) for i in range(queries)]
  store.write('test', groups, folder / 'data' / 'test')
  manifest.Manifest(folder / 'data', 'prepare', {}, {}).finished({'test': {'rows': queries}})
  record = manifest.Manifest(folder / 'evaluate', 'evaluate', {}, {'prepare': EVIL})
  qrels = {g.query_id: {d.doc_id: d.label for d in g.docs} for g in groups}
  results = {}
  for model in models:
    ranking = {g.query_id: ranked_by(model, i, g) for i, g in enumerate(groups)}
    rows = metrics.per_query(ranking, qrels)
    cost = {} if model in ('bm25', 'random') else {'parameters': 1000, 'ms_per_pair': 10.0}
    if model == 'student':
      cost = {'parameters': 250, 'ms_per_pair': 2.5}
    found = metrics.summary(rows) | cost
    results[model] = tables.plain(found)
    runs.write_run(folder / 'evaluate' / f'{model}.run', ranking, model)
    evaluate.write_per_query(folder / 'evaluate' / f'{model}.csv', model, rows)
  evaluate.merge_per_query(folder / 'evaluate', list(models))
  (folder / 'evaluate' / 'results.json').write_text(json.dumps(results))
  record.finished(results)
  return opened(folder, name)


def opened(folder, name='run'):
  config = configs.defaults()
  config.name = name
  (folder / 'report').mkdir(exist_ok=True)
  place = lambda stage: folder / ('data' if stage == 'prepare' else stage)  # noqa: E731
  return types.SimpleNamespace(config=config, workdir=folder, folder=place)


def written(run) -> tuple[str, Page]:
  assert 'index.html' in report.execute(run)['files']
  text = (run.workdir / 'report' / 'index.html').read_text('utf-8')
  return text, Page(text)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of four models, and its page."""
  run = make_run(tmp_path_factory.mktemp('whole'))
  (run.workdir / 'sft').mkdir()
  log = ''.join(json.dumps({'step': i, 'loss': 1 / i}) + '\n' for i in range(1, 50))
  (run.workdir / 'sft' / 'metrics.jsonl').write_text(log + '{"step": 50, "lo')
  return run, *written(run)


class TestPage:
  def test_needs_nothing_from_outside_and_runs_nothing(self, whole):
    _, text, parsed = whole
    assert 'script' not in parsed.tags and 'iframe' not in parsed.tags
    addresses = [v for n, v in parsed.values if n in ('src', 'href', 'xlink:href', 'action')]
    assert all(a.startswith('#') or a == 'data:,' for a in addresses)
    assert not re.search(r'@import|url\((?!#)', text)
    assert not any(name.startswith('on') for name, _ in parsed.values)

  def test_ids_are_unique_and_every_reference_is_there(self, whole):
    _, text, parsed = whole
    assert len(parsed.ids) == len(set(parsed.ids))
    used = re.findall(r'href="#([^"]+)"', text) + re.findall(r'url\(#([^)]+)\)', text)
    assert used and set(used) <= set(parsed.ids)

  def test_names_texts_and_marks_of_the_data_are_escaped(self, whole):
    _, text, parsed = whole
    assert EVIL not in text
    shown = parsed.text
    assert f'{EVIL}: how it ranks' in shown
    assert f'query 1 {EVIL}' in shown and f'title 7 {EVIL}' in shown

  def test_every_chart_has_words_for_those_who_do_not_see_it(self, whole):
    _, text, _ = whole
    pictures = re.findall(r'<svg [^>]*>', text)
    # dots, latency; three histograms, two scatters, two gains, one curve
    assert len(pictures) == 10
    assert all('role="img"' in p and re.search(r'aria-label="[^"]{20,}"', p) for p in pictures)

  def test_charts_take_their_colours_from_the_page(self, whole):
    _, text, _ = whole
    pictures = ''.join(re.findall(r'<svg.*?</svg>', text, re.S))
    assert not re.search(r'#[0-9a-f]{6}\b', re.sub(r'[#"]c[0-9a-f]{8}-\w+', '', pictures))
    assert set(re.findall(r'var\((--\w+)\)', pictures)) <= set(re.findall(r'(--\w+):', text))

  def test_the_table_has_every_model_with_an_interval_around_its_value(self, whole):
    run, _, parsed = whole
    results = json.loads((run.workdir / 'evaluate' / 'results.json').read_text())
    for title, model in (('BM25', 'bm25'), ('distilled student', 'student')):
      found = re.search(rf'parameters ms per pair .*?{title} (.*)', parsed.text).group(1)
      numbers = [float(x) for x in re.findall(r'\d+\.\d+', found)[:6]]
      value, low, high = numbers[3:6]
      assert value == pytest.approx(results[model]['ndcg@5'], abs=6e-4)
      assert low <= value <= high

  def test_a_killed_runs_half_line_is_passed_over(self, whole):
    run, _, _ = whole
    assert facts.read_logs(run)['sft'][-1]['step'] == 49

  def test_the_same_run_gives_the_same_page(self, whole):
    run, text, _ = whole
    found = facts.gather(run)
    assert page.render(run, found) == page.render(run, found)
    assert page.render(run, found) == text

  def test_the_head_has_the_students_difference_to_bm25_and_to_labels_only(self, whole):
    run, _, parsed = whole
    found = intervals.analyse(TABLE, facts.gather(run).rows).differences
    for baseline, title in (('bm25', 'BM25'), ('student_sft', 'student, labels only')):
      cell = found[baseline, 'student', 'ndcg@5']
      numbers = [tiles.number(cell[k], sign='+') for k in ('value', 'low', 'high')]
      p, p_holm = (tables.chance(cell[name], 3) for name in ('p', 'p_holm'))
      value, low, high = numbers
      assert f'distilled student {title} {value} {low} to {high} {p} {p_holm}' in parsed.text
    assert 'Holm: corrected for the 10 tests of this page' in parsed.text

  def test_warnings_stand_before_all_that_is_less_important(self, tmp_path):
    _, parsed = written(make_run(tmp_path, queries=29))
    order = [parsed.text.index(words) for words in (
      'nDCG@5 of the distilled student', 'only 29 queries', 'distilled student BM25', 'With 29',
    )]  # fmt: skip
    assert order == sorted(order)


class TestLessThanAll:
  def test_nothing_done(self, tmp_path):
    _, parsed = written(opened(tmp_path))
    assert 'Nothing has been evaluated yet' in parsed.text
    assert 'Results' not in parsed.text

  def test_results_alone(self, tmp_path):
    run = make_run(tmp_path / 'full', name='run')
    other = tmp_path / 'bare'
    (other / 'evaluate').mkdir(parents=True)
    file = run.workdir / 'evaluate' / 'results.json'
    (other / 'evaluate' / 'results.json').write_bytes(file.read_bytes())
    _, parsed = written(opened(other))
    assert 'nDCG@5 of the distilled student' in parsed.text
    assert 'interval' not in parsed.text and 'Greatest' not in parsed.text

  def test_without_test_records_there_are_gains_but_no_rankings(self, tmp_path):
    run = make_run(tmp_path)
    for file in sorted((tmp_path / 'data').rglob('*'), reverse=True):
      file.rmdir() if file.is_dir() else file.unlink()
    (tmp_path / 'data').rmdir()
    text, parsed = written(run)
    assert 'Query by query' in parsed.text and 'Greatest' not in parsed.text
    assert 'Histograms' not in text

  @pytest.mark.parametrize(
    'models', [('bm25',), ('student',), ('random', 'teacher'), ('zero_shot',)]
  )
  def test_few_models(self, tmp_path, models):
    run = make_run(tmp_path, models)
    _, parsed = written(run)
    assert TABLE.row_title(models[0]) in parsed.text
    assert 'lead' not in parsed.text and 'Against BM25' not in parsed.text

  def test_one_query_has_no_intervals(self, tmp_path):
    _, parsed = written(make_run(tmp_path, queries=1))
    assert '95' not in parsed.text.split('Query by query')[0]

  def test_unfinished_stages_are_told(self, tmp_path):
    run = opened(tmp_path)
    manifest.Manifest(tmp_path / 'distill', 'distill', {}, {})
    assert 'distill not finished' in written(run)[1].text

  def test_a_damaged_run_is_an_error_with_its_line(self, tmp_path):
    run = make_run(tmp_path, ('bm25', 'student'))
    file = tmp_path / 'evaluate' / 'student.run'
    file.write_text(file.read_text() + 'torn\n')
    with pytest.raises(UserError, match=r'student\.run:321:row: .*--rerun=evaluate'):
      report.execute(run)


def test_the_page_says_what_was_drawn_and_when_that_is_few(tmp_path):
  run = make_run(tmp_path)
  before = written(run)[0]
  assert 'intervals are wider' not in before
  run.config.data.holdout_by = r'\d$'
  text = written(run)[0]
  assert 'The test has only 10 clusters of queries, so the true intervals are wider' in text
  assert 'paired bootstrap over 10 clusters of queries' in text
  values = facts.gather(run).rows
  for by, page_, other in (('', before, text), (r'\d$', text, before)):
    mean = intervals.analyse(
      TABLE, values, clusters_Q=holdout.clusters(values['student'], by)
    ).means['student', 'ndcg@5']
    assert tiles.span(mean) in page_ and tiles.span(mean) not in other
  run.config.report.cluster = '^q'  # which goes before data.holdout_by; nothing is left to draw
  assert 'The test has only 1 cluster of queries, so there are no intervals' in written(run)[0]


def test_stages_say_how_much_of_what_they_learned_or_scored(tmp_path):
  run = make_run(tmp_path)
  done = {'cpt': {'rows': 1000}, 'sft': {'rows': 60, 'steps': 2}, 'score': {'pairs': 7200}}
  for stage, results in done.items():
    manifest.Manifest(tmp_path / stage, stage, {}, {}).finished(results)
  text = written(run)[1].text
  markdown = (tmp_path / 'report' / 'report.md').read_text()
  for said in ('1,000 clicks', '60 queries', '7,200 pairs'):
    assert said in text and f'| {said} |' in markdown


def test_the_device_is_told_once_unless_stages_had_different_ones(tmp_path, monkeypatch):
  run = make_run(tmp_path)
  once = written(run)[0]
  monkeypatch.setattr(manifest, 'device', lambda: 'another device')
  manifest.Manifest(tmp_path / 'distill', 'distill', {}, {}).finished({})
  twice = written(run)[0]
  column = '<th scope="col">device</th>'
  assert column not in once and column in twice and 'another device' in twice


class TestRankings:
  @pytest.fixture
  def found(self, tmp_path):
    return facts.gather(make_run(tmp_path))

  def test_best_and_worst_are_by_the_difference_and_never_overlap(self, found):
    gained = rankings.gains(found)
    assert gained.model == 'student' and len(gained.pairs['student', 'bm25']) == 40
    assert len(gained.best) == 10 and all(q['gain'] > 0 for q in gained.best)
    assert gained.best[0]['gain'] == max(gained.pairs['student', 'bm25'])
    assert all(q['gain'] < 0 for q in gained.worst)

  def test_the_model_fused_with_the_first_stage_is_charted_against_it(self, tmp_path):
    run = make_run(tmp_path, ('bm25', 'student', 'fused', 'fused_ranks'))
    file = tmp_path / 'evaluate' / 'results.json'
    results = json.loads(file.read_text())
    results['fused']['against'], results['fused_ranks']['against'] = ['bm25', 'student'], []
    file.write_text(json.dumps(results))
    assert list(rankings.gains(facts.gather(run)).pairs) == [('student', 'bm25'), ('fused', 'bm25')]

  def test_columns_show_ranks_labels_and_moves_against_bm25(self, found):
    first, teacher, student = rankings.gains(found).best[0]['columns']
    assert [c['title'] for c in (first, teacher, student)] == [
      'BM25', 'teacher', 'distilled student',
    ]  # fmt: skip
    # BM25's top five miss the answer, which is shown behind a gap at its rank.
    assert [d['rank'] for d in first['docs']] == [1, 2, 3, 4, 5, 8]
    assert [d['gap'] for d in first['docs']] == [False] * 5 + [True]
    assert all(d['moved'] == 0 for d in first['docs'])
    answer = student['docs'][0]
    assert (answer['label'], answer['moved'], answer['rank']) == (2, 7, 1)
    assert teacher['value'] == 1.0 and first['value'] == 0.0

  def test_the_text_that_a_row_searches_stands_above_its_documents(self, tmp_path):
    run = make_run(tmp_path)
    before = written(run)[0]
    asked = facts.gather(run).tests.values()
    rewrites.write(
      tmp_path / 'evaluate' / 'student.rewrites.jsonl',
      [rewrites.Rewrite(g.query_id, g.query, EVIL, f'{g.query_id} {EVIL}') for g in asked],
    )
    first, _, student = rankings.gains(facts.gather(run)).best[0]['columns']
    assert first['searched'] == '' and student['searched'].endswith(f' {EVIL}')
    after = Page(written(run)[0])
    assert 'searched:' not in Page(before).text and student['searched'] in after.text

  def test_a_document_without_a_title_is_named_by_what_there_is(self):
    assert rankings.cell(Document('d', ' ', 'x' * 100), 1)['text'] == 'x' * 79 + '…'
    assert rankings.cell(Document('d', ' ', ''), 1)['text'] == 'd'

  def test_colours_of_labels_lie_in_range_for_any_grades(self):
    assert [rankings.grade(y, 4) for y in (-1, 0, 1, 4)] == [0, 0, 1, 4]
    assert {rankings.grade(y, 11) for y in range(12)} == set(range(5))
    assert rankings.grade(0, 0) == 0


def test_dotted_rows_are_those_without_a_model(tmp_path):
  run = make_run(tmp_path, ('random', 'bm25', 'student', 'fused', 'ours'))
  found = facts.gather(run)
  assert page.dotted(found) == ['bm25']  # all others have a time
  for name in ('fused', 'ours'):
    del found.results[name]['ms_per_pair']
  assert page.dotted(found) == ['bm25', 'ours']  # fused needs the student
  drawn = page.draw(found, found.intervals, None)['latency']
  label = re.search('aria-label="(.*?)"', drawn).group(1)
  assert 'distilled student 2.5 ms' in label and '>ours<' in drawn
  assert '>student + first stage<' not in drawn
  del found.results['student']['ms_per_pair']  # no chart of times, which alone draws `ours` dotted
  assert page.dotted(found) == ['bm25']


class TestFacts:
  def test_scores_are_gathered_by_label(self, tmp_path):
    found = facts.gather(make_run(tmp_path, ('bm25', 'teacher'), queries=3))
    scores = facts.scores_by_label(found)
    assert set(scores) == {'teacher'}
    assert {label: len(s) for label, s in scores['teacher'].items()} == {0: 21, 2: 3}
    assert min(scores['teacher'][2]) > max(scores['teacher'][0])

  def test_records_are_described(self, tmp_path):
    run = make_run(tmp_path, ('bm25',), queries=3)
    [test] = facts.gather(run).data
    assert (test['kind'], test['rows'], test['documents']) == ('test', 3, 24)
    assert test['labels'] == {0: 21, 2: 3}
    assert test['lengths']['query']['max'] == len(f'query 0 {EVIL}')
