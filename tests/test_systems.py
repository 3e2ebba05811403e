"""A second system: its own sections, stages, result table and report, and nothing of the first."""

import csv
import json
import re

import pytest
import source_reads

from disranker_jax import config as configs
from disranker_jax.commands import ablate, ablation
from disranker_jax.commands.common import load_config
from disranker_jax.config.settings import Key, at_least
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.evaluation import runs
from disranker_jax.models.settings import model
from disranker_jax.pipeline import manifest, runner, seeds, systems
from disranker_jax.pipeline.stage import Role, Run, Stage
from disranker_jax.pipeline.systems import System
from disranker_jax.stages import collection_rows, documents, earlier, evaluate, prepare, report
from disranker_jax.stages.result_table import Row, Table

QUERIES, PAGES = 40, 60
COLUMNS = ('hits@1', 'hits@5', 'mrr@10', 'ndcg@10')


def learn(run: Run) -> dict:
  """Trains nothing, but leaves what a training stage leaves."""
  steps = [{'step': i, 'loss': 1 / i} for i in range(1, 9)]
  (run.folder('learn') / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, steps)) + '\n')
  (run.folder('learn') / 'checkpoints').mkdir(exist_ok=True)
  return {'steps': 8}


def place_of(name: str, i: int) -> int:
  """At which rank a row finds the page of query i; 0: not at all."""
  return {'bm25': i % 4 + 1 if i % 5 else 0, 'before': i % 10 + 1, 'after': i % 2 + 1}[name]


RANKED = []  # (row, seed), in the order in which they were ranked


def rank(run: Run, row: Row, groups) -> tuple[dict, dict]:
  """Ten pages of the whole collection, most of which the test does not have."""
  RANKED.append((row.name, run.config.finder.seed))
  found = {}
  for group in groups:
    i = int(group.query_id[1:])
    pages = [f'page{(i + k) % PAGES}' for k in range(11, 20)]
    if at := place_of(row.name, i):
      pages.insert(at - 1, f'page{i}')
    found[group.query_id] = {page: -float(n) for n, page in enumerate(pages)}
  return found, {'ms_per_query': 7.0} if row.role else {}


def table() -> Table:
  rows = (
    Row('bm25', 'BM25', rank, is_baseline=True),
    Row('before', 'finder, untrained', rank, is_baseline=True),
    Row(
      'after', 'finder', rank, 'finder', trained_by='learn', stages=lambda config: ('learn',),
      improves_on=('bm25', 'before'),
    ),
  )  # fmt: skip
  return Table(
    'search', 'every row searches the collection', {row.name: row for row in rows},
    first_stage='bm25', subject='after', models=('after',), reranks=False, columns=COLUMNS,
    kept=(*COLUMNS, 'recall@10'), main='mrr@10', tested=('mrr@10', 'hits@5'),
    costs=('parameters', 'ms_per_query'),
    documents=lambda run: {'page12': Document('page12', 'the twelfth page', '')},
  )  # fmt: skip


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  """The system 'toy': two stages between prepare and report, one model, three rows."""
  RANKED.clear()
  own, settings = table(), {'pace': Key(1.0, at_least(0), 'How fast it learns.')}
  stages = (
    prepare.STAGE,
    Stage(
      'learn', 'the finder learns', learn, settings, models=('finder',), uses=lambda config: (),
      task=lambda config, network: None, reads_stages=('prepare',),
      reads_records=lambda config: ('judgements',),
    ),
    evaluate.stage(own, models=('finder',), reads_stages=('prepare', 'learn')),
    report.stage('prepare', 'learn', 'search'),
  )  # fmt: skip
  small = model(model='tiny-encoder', precision='float32', scan_layers=False)
  roles = {'finder': Role(small, lambda config: ('learn',))}
  monkeypatch.setitem(systems.every(), 'toy', System(stages, roles, own))
  configs.mappings.cache_clear()
  yield
  configs.mappings.cache_clear()


def write_rows(file, kind: str) -> str:
  """Queries with their own page, label 1, and a page without a label."""
  rows = []
  for i in range(QUERIES):
    pages = ((i, {'label': 1}), (i + 1, {} if kind == 'test' else {'label': 0}))
    for page, label in pages:
      name, query_id = (f'page{page}', f'q{i}') if kind == 'test' else (f'other{page}', f'j{i}')
      text = {'doc_id': name, 'title': f'title {page}', 'summary': f'text of {name}'}
      rows.append({'query_id': query_id, 'query': f'{kind} words {i}'} | text | label)
  file.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  return f'jsonl:{file}'


@pytest.fixture
def config(tmp_path):
  c = configs.defaults(system='toy')
  c.finder.update(max_len=16, max_query_len=8, row_len=16)
  c.data.judgements = write_rows(tmp_path / 'judgements.jsonl', 'judgements')
  c.data.test = write_rows(tmp_path / 'test.jsonl', 'test')
  return c


@pytest.fixture
def workdir(tmp_path, config):
  runner.run(config, tmp_path / 'run')
  return tmp_path / 'run'


def read(file) -> dict:
  return json.loads(file.read_text())


class TestConfig:
  def test_has_the_sections_of_its_own_system_alone(self):
    c = configs.defaults(system='toy')
    own = {'data', 'finder', 'learn', 'search', 'report'}
    assert {k for k, v in c.items() if hasattr(v, 'keys')} == own | {'mesh', 'validation'}
    assert c.stages == ('prepare', 'learn', 'search', 'report') and c.name == 'toy'
    assert not {'rankers', 'prompts'} & set(c.search.keys())
    configs.check(c)
    said = configs.explain(c)
    assert 'learn.pace = 1.0' in said and not re.search(r'(?m)^(sft|student|distill)', said)

  def test_of_another_system_is_refused_with_the_line_to_write(self, tmp_path):
    file = tmp_path / 'c.py'
    file.write_text('from disranker_jax.config import defaults\nget_config = defaults\n')
    with pytest.raises(UserError, match=r"sections of 'disranker'.*defaults\(system='toy'\)"):
      load_config(file, ['--config.system=toy'])
    with pytest.raises(UserError, match=r"system='tod': must be 'disranker' or .*'toy'"):
      load_config(file, ['--config.system=tod'])

  def test_a_key_of_another_system_is_unknown(self):
    c = configs.defaults(system='toy')
    with c.unlocked():
      c.learn.beta = 1.0
    with pytest.raises(UserError, match=r'config\.learn\.beta: there is no such key'):
      configs.check(c)

  def test_a_stage_of_another_system_is_unknown(self, config, tmp_path):
    with pytest.raises(UserError, match=r"'distill': the system 'toy' has the stages prepare, l"):
      systems.find(config, 'distill')
    with pytest.raises(UserError, match="stage 'distill': the config lists prepare, learn"):
      runner.run(config, tmp_path / 'run', ['distill'])


class TestTable:
  def test_rows_rank_the_whole_collection_and_only_the_judgements_are_shared(self, workdir):
    results = read(workdir / 'search' / 'results.json')
    assert list(results) == ['bm25', 'before', 'after']
    for name, row in results.items():
      places = [place_of(name, i) for i in range(QUERIES)]
      assert row['hits@1'] == pytest.approx(sum(p == 1 for p in places) / QUERIES)
      assert row['hits@5'] == pytest.approx(sum(0 < p <= 5 for p in places) / QUERIES)
      assert row['mrr@10'] == pytest.approx(sum(1 / p for p in places if p) / QUERIES)
      assert row['missing'] == 0  # nothing is missing where there is no pool
    run = runs.read_run(workdir / 'search' / 'after.run')
    assert 'page12' in run['q1']  # which is in no group of the test's q1

  def test_every_query_has_the_metrics_that_the_table_keeps(self, workdir):
    with (workdir / 'search' / 'per_query.csv').open() as f:
      rows = list(csv.DictReader(f))
    assert len(rows) == 3 * QUERIES
    assert {*COLUMNS, 'recall@10'} <= rows[0].keys() and 'ndcg@5' not in rows[0]

  def test_only_rows_that_changed_are_ranked_again(self, workdir, config, capsys):
    assert [name for name, _ in RANKED] == ['bm25', 'before', 'after']
    runner.run(config, workdir)
    assert 'all is done' in capsys.readouterr().err and len(RANKED) == 3
    (workdir / 'search' / 'before.json').unlink()
    runner.run(config, workdir)
    assert [name for name, _ in RANKED[3:]] == ['before']
    config.learn.pace = 2.0
    with pytest.raises(
      UserError, match=r'learn is stale: config\.learn\.pace: was 1\.0, is now 2\.0'
    ):
      runner.run(config, workdir)
    runner.run(config, workdir, rerun=['learn'])
    assert [name for name, _ in RANKED[4:]] == ['after']  # the others do not read it

  def test_a_row_that_fails_leaves_the_others(self, config, tmp_path):
    def fails(run, row, groups):
      raise UserError('too large')

    row = systems.get('toy').table.rows['before']
    object.__setattr__(row, 'rank', fails)
    with pytest.raises(UserError, match='too large'):
      runner.run(config, tmp_path / 'run')
    object.__setattr__(row, 'rank', rank)
    runner.run(config, tmp_path / 'run')
    assert [name for name, _ in RANKED] == ['bm25', 'before', 'after']

  def test_a_row_depends_on_the_other_records_that_it_reads(self, config, tmp_path):
    object.__setattr__(systems.get('toy').table.rows['before'], 'reads_records', ('judgements',))
    config.stages = ('prepare', 'search')
    runner.run(config, tmp_path / 'run')
    assert (tmp_path / 'run' / 'data' / 'judgements').exists()  # though no stage learns from them
    rows = (tmp_path / 'judgements.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'judgements.jsonl').write_text(''.join(rows[2:]))
    runner.run(config, tmp_path / 'run', rerun=['prepare'])
    assert [name for name, _ in RANKED] == ['bm25', 'before', 'before']

  def test_a_row_depends_on_the_model_of_the_row_that_it_changes(self, config, tmp_path):
    base = systems.get('toy').table.rows['after']
    object.__setattr__(base, 'needs_training', lambda config: False)
    row = collection_rows.derived(base, 'again', 'again', rank, lambda config: None)
    config.stages = ('prepare', 'search')
    assert row.is_available(config)
    runner.run(config, tmp_path / 'run')
    of_run, found = Run(config, tmp_path / 'run', None), []
    for start in ('a', 'b'):
      file = tmp_path / 'run' / 'search' / 'manifest.json'
      done = read(file)
      done['inputs']['finder.init_from'] = start
      file.write_text(json.dumps(done))
      found.append(evaluate.made_from(of_run, row))
    assert found[0] != found[1]

  def test_a_row_whose_stage_is_not_listed_is_left_out(self, config, tmp_path):
    config.stages = ('prepare', 'search')
    runner.run(config, tmp_path / 'run')
    assert list(read(tmp_path / 'run' / 'search' / 'results.json')) == ['bm25', 'before']

  @pytest.mark.parametrize(('shares', 'reads'), [(True, 1), (False, 2)])
  def test_rows_that_share_a_collection_read_it_once(
    self, config, tmp_path, monkeypatch, shares, reads
  ):
    """It is freed after the last one."""
    table, read = systems.get('toy').table, source_reads.counted(monkeypatch)
    object.__setattr__(table, 'shares', lambda config: shares)
    for row in table.rows.values():

      def reading(run, row, groups):
        assert len(documents.every(run.config.data.test)) == QUERIES + 1  # and their neighbours
        return rank(run, row, groups)

      object.__setattr__(row, 'rank', reading)
    config.stages = ('prepare', 'search')
    runner.run(config, tmp_path / 'run')
    assert [name for name, _ in RANKED] == ['bm25', 'before'] and len(read) == reads
    assert all(one() is None for one in read)

  def test_a_ranking_from_elsewhere_keeps_its_pages(self, config, tmp_path):
    lines = [f'q{i} Q0 page{p} 1 {-n} x\n' for i in range(9) for n, p in enumerate((59, i))]
    (tmp_path / 'their.run').write_text(''.join(lines))
    config.stages = ('prepare', 'search')
    config.search.runs = {'theirs': f'trec:{tmp_path}/their.run'}
    runner.run(config, tmp_path / 'run')
    found = read(tmp_path / 'run' / 'search' / 'results.json')['theirs']
    assert found['mrr@10'] == pytest.approx(9 / 2 / QUERIES) and found['pairs'] == 18
    assert found['note'].endswith('31 of 40 queries are not in it and count as 0')
    config.search.runs = {'after': f'trec:{tmp_path}/their.run'}
    with pytest.raises(UserError, match=r'search\.runs\.after: is the name of another row'):
      configs.check(config)

  def test_needs_are_those_of_the_system(self):
    after = systems.get('toy').table.rows['after']
    assert after.needs('toy') == ('learn',)


class TestReport:
  def test_shows_its_columns_differences_and_curves_and_no_empty_part(self, workdir):
    text = (workdir / 'report' / 'report.md').read_text()
    head = '| model | Hits@1 | Hits@5 | MRR@10 | 95 % interval | nDCG@10 | parameters |'
    assert f'{head} ms per query |\n' in text  # and no column for ties, which PNR has
    assert 'for which every row ranks the whole collection' in text and 'PNR' not in text
    assert 'For MRR and Hits, grade 1 or higher is relevant.' in text
    page = (workdir / 'report' / 'index.html').read_text()
    headings = re.findall(r'<h2>(.*?)</h2>', page)
    assert headings == ['Results', 'Query by query', 'Training', 'Data', 'How it was made']
    assert not re.search(r'<h[23]>[^<]*</h[23]>\s*</section>', page)
    assert 'Loss of learn over 8 steps' in page and 'MRR@10 of every model' in page
    for part in ('every row ranks the whole collection', 'finder against BM25, query by query'):
      assert part in page
    for part in (
      'the twelfth page',
      'page13',
      'title 1',
    ):  # of the collection, unknown, of the test
      assert part in page
    shown = re.sub(r'<.*?>', ' ', page.partition('<main>')[2].partition('<h2>Data</h2>')[0])
    for part in ('nDCG@5', 'PNR', 'student', 'teacher', 'ms per pair'):
      assert part not in shown

  def test_compares_the_subject_with_each_baseline_by_the_tested_columns(self, workdir):
    summary = read(workdir / 'report' / 'summary.json')
    pairs = {(d['model'], d['against'], d['metric']) for d in summary['differences']}
    wanted = {('finder', 'BM25'), ('finder', 'finder, untrained'), ('finder, untrained', 'BM25')}
    assert pairs == {(*pair, metric) for pair in wanted for metric in ('mrr@10', 'hits@5')}
    first, second, corrected, power = summary['sentences']
    assert first.startswith('"finder" against "BM25": +0.') and 'MRR@10' in first
    assert second.startswith('"finder" against "finder, untrained": +0.')
    assert "Holm's correction for the 6 tests" in corrected
    assert 'MRR@10 to BM25 is found in 80 % of cases' in power
    assert summary['lead_kept'] is None
    # Unjudged pages say nothing about rankings of the whole collection.
    assert not [w for w in summary['warnings'] if 'not judged' in w]

  def test_has_a_tile_for_the_subject_and_one_for_each_baseline(self, workdir):
    page = (workdir / 'report' / 'index.html').read_text()
    tiles = re.findall(r'<li><b>(.*?)</b>(.*?)</li>', page.partition('</ul>')[0], re.S)
    assert tiles[0][0] == '0.750' and len(tiles) == 3
    assert 'MRR@10 of the finder' in tiles[0][1]
    assert 'MRR@10 against BM25' in tiles[1][1] and 'finder, untrained' in tiles[2][1]
    assert tiles[1][0].startswith('+0.') and '95 % interval' in tiles[1][1]

  def test_warns_where_the_subject_ranks_no_better(self, config, tmp_path, monkeypatch):
    monkeypatch.setattr(f'{__name__}.place_of', lambda name, i: 2 if name == 'after' else 1)
    runner.run(config, tmp_path / 'run')
    warnings = read(tmp_path / 'run' / 'report' / 'summary.json')['warnings']
    assert warnings[0].startswith(
      '"finder" ranks no better than "BM25": MRR@10 0.500 against 1.000'
    )

  def test_of_a_run_that_searched_nothing_has_its_stages(self, config, tmp_path):
    config.stages = ('prepare', 'learn', 'report')
    runner.run(config, tmp_path / 'run')
    page = (tmp_path / 'run' / 'report' / 'index.html').read_text()
    assert re.findall(r'<h2>(.*?)</h2>', page) == ['Training', 'Data', 'How it was made']
    assert list(read(tmp_path / 'run' / 'report' / 'summary.json')['stages']) == [
      'prepare', 'learn',
    ]  # fmt: skip


class TestCommands:
  def test_seeds_train_the_subject_again(self, config, workdir):
    seeds.run(config, workdir, [config.finder.seed, 5])
    assert ('after', 5) in RANKED and ('bm25', 5) not in RANKED
    assert not (workdir / 'seeds' / '5' / 'report').exists()
    summary = read(workdir / 'report' / 'summary.json')
    assert summary['seeds'] == {'after': {'0': 0.75, '5': 0.75}}
    assert any(s.startswith('finder with seeds 0, 5: MRR@10') for s in summary['sentences'])

  def test_an_ablation_is_of_its_rows_and_metrics(self, tmp_path):
    (tmp_path / 'c.py').write_text(
      'import functools\nfrom disranker_jax.config import defaults\n'
      "get_config = functools.partial(defaults, 'toy')\n"
    )
    file = tmp_path / 'rows.py'
    file.write_text('"""T."""\nROWS = {"a": ("after", {"learn.pace": 2.0}), "b": ("bm25", {})}\n')
    args = ablate.parse_args([str(file), f'--config={tmp_path / "c.py"}'])
    found = ablate.load(file, args.base)
    assert found.metrics == ['mrr@10', 'hits@1', 'hits@5', 'ndcg@10']
    after, bm25 = (ablation.settings(args, [row], 3, 0) for row in found.rows)
    assert after['stages'] == ('prepare', 'learn', 'search') and after['finder.seed'] == 3
    assert bm25['stages'] == ('prepare', 'search') and 'finder.seed' not in bm25
    assert after['search.models'] == ('after',) and 'evaluate.models' not in after

  def test_a_later_run_starts_from_the_stages_of_the_role(self, config, workdir, tmp_path):
    config.finder.init_from = str(workdir)
    assert list(earlier.named(config)) == [('finder.init_from', str(workdir))]
    assert systems.trained_stages(config, 'finder') == ['learn']
    before = earlier.fingerprint(config, tmp_path, 'finder')
    assert before == manifest.digest([manifest.read(workdir / 'learn')['fingerprint']])
    config.finder.max_len = 8  # which is no other model
    assert earlier.fingerprint(config, tmp_path, 'finder') == before
    config.finder.lora_rank = 4
    with pytest.raises(UserError, match=r'its config\.finder\.lora_rank is 0, here it is 4'):
      earlier.fingerprint(config, tmp_path, 'finder')


def test_a_stage_depends_on_the_prepared_records_that_it_reads_alone(tmp_path):
  """The pages that were retrieved are those of a stage; other test queries change no score."""
  pipeline = runner.Pipeline(Run(configs.defaults('dgr'), tmp_path, None))

  def prepared(name: str) -> list[str]:
    found = pipeline.inputs(systems.find(pipeline.run.config, name))
    return [key for key in found if key.startswith('prepare ')]

  assert prepared('score') == prepared('generate') == []
  assert prepared('align') == ['prepare judgements']
  assert prepared('report') == ['prepare clicks', 'prepare judgements', 'prepare test']
