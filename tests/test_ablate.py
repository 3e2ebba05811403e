"""Tables of ablations: what a file may say, the commands of its rows, a table's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from ablations import results, write

from disranker_jax import config as configs
from disranker_jax.commands import ablate, ablation, ablation_runs
from disranker_jax.commands.common import load_config
from disranker_jax.errors import Stopped, UserError
from disranker_jax.pipeline import manifest, runner
from disranker_jax.pipeline.stage import Run
from disranker_jax.rankers.llm.methods import METHODS
from disranker_jax.stages import collection_rows, result_table

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'configs' / 'ablations').glob('*.py'))
BASES = {'retrievers': 'dgr.py', 'rewriting': 'query_rewriting.py'}  # of other systems
NEEDED = dict.fromkeys(BASES, ('--config.search.reranker=/a/student',))
NEEDED['rankers'] = ('--config.data.teachers=trec:other.run',)
TINY = str(ROOT / 'configs' / 'tiny.py')


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_every_row_of_the_committed_tables_is_a_config_that_can_run(file, monkeypatch):
  base = ROOT / 'configs' / BASES.get(file.stem, 'quickstart.py')
  monkeypatch.setattr(collection_rows.loaded, 'check', lambda folder: {})  # of a re-ranker
  args = ablate.parse_args([str(file), f'--config={base}', *NEEDED.get(file.stem, ())])
  table = ablate.load(file, args.base)
  seen = set()
  for row in table.rows:
    changed = ablation.settings(args, [row], 0, 0)
    base = args.base.copy_and_resolve_references()
    base.update_from_flattened_dict(changed)
    configs.check(base)
    assert row.model in METHODS or result_table.of(base).rows[row.model].is_available(base)
    seen.add((row.model, json.dumps(changed, sort_keys=True)))
  assert len(seen) == len(table.rows)  # no row is another one's twin


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('"""T."""\nROWS = {}', 'needs a docstring and ROWS'),
    ("ROWS = {'a': ('student', {})}", 'needs a docstring and ROWS'),
    ('"""T."""\nROWS = {"a": ("pupil", {})}', "a: model 'pupil': there are random, bm25"),
    ('"""T."""\nROWS = {"a": ("bm25", {})}\nAGAINST = "b"', "no row 'b'; there are a"),
    ('raise KeyError(1)', 'cannot be run: KeyError: 1'),
    ('"""T."""\nROWS = ["a"]', 'needs a docstring and ROWS'),
    ('"""T."""\nROWS = {"a": "bm25"}', 'a: must be (model, '),
    ('"""T."""\nROWS = {"a": ("bm25", 5)}', 'a: must be (model, '),
    (
      '"""T."""\nROWS = {"a": ("bm25", {}, "data.techers")}',
      'a: needs config.data.techers: there is no such key',
    ),
  ],
)
def test_what_a_file_cannot_say_is_one_line(tmp_path, text, said):
  with pytest.raises(UserError, match=said.replace('(', r'\(')):
    ablate.load(write(tmp_path, text), configs.defaults())


def test_a_row_with_an_unknown_key_is_named(tmp_path):
  file = write(tmp_path, '"""T."""\nROWS = {"a": ("student", {"distill.bta": 1})}')
  args = ablate.parse_args([str(file), '--config', TINY])
  with pytest.raises(UserError, match=r'a: config\.distill\.bta: there is no such key'):
    ablation.settings(args, ablate.load(file, args.base).rows[:1], 0, 0)


def test_a_row_without_its_reranker_is_left_out_or_an_error_if_it_is_asked_for(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(ablate.child_process, 'run', lambda *_: pytest.fail('a run has started'))
  file, base = ROOT / 'configs/ablations/retrievers.py', ROOT / 'configs/dgr.py'
  typed = [str(file), f'--config={base}', f'--workdir={tmp_path / "runs"}']
  with pytest.raises(
    UserError, match=r'BM25, re-ranked: needs config\.search\.reranker; add --con'
  ):
    ablate.main([*typed, '--row=BM25', '--row=BM25, re-ranked'])
  assert not (tmp_path / 'runs').exists()
  ablate.main([*typed, '--dry-run'])
  said = capsys.readouterr()
  assert 'reranked' not in said.out and 'bm25' in said.out
  assert 'BM25, re-ranked: left out: needs config.search.reranker' in said.err
  monkeypatch.setattr(collection_rows.loaded, 'check', lambda folder: {})
  ablate.main([*typed, '--config.search.reranker=/a/student', '--dry-run'])
  assert 'bm25_reranked' in capsys.readouterr().out


def test_a_run_that_was_stopped_is_told_and_continued(tmp_path, monkeypatch, capsys):
  file = write(tmp_path, '"""T."""\nROWS = {"a": ("bm25", {})}')
  typed = [str(file), '--config', TINY, '--workdir', str(tmp_path / 'runs')]

  def asked(_):
    raise Stopped('stopped; the same command continues from there', status == 130)

  for status in (130, 0):
    monkeypatch.setattr(ablate.child_process, 'run', asked)
    with pytest.raises(SystemExit) as ended:
      ablate.main(typed)
    assert ended.value.code == status
    assert capsys.readouterr().err.endswith('stopped; the same command continues from there\n')
  monkeypatch.setattr(ablate.child_process, 'run', lambda _: 0)  # SIGTERM went to the run alone
  with pytest.raises(UserError, match='a: the run was stopped; the same command continues'):
    ablate.main(typed)


def test_seeds_reach_rows_that_are_made_from_rows_of_a_seeded_model(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(collection_rows.loaded, 'check', lambda folder: {})
  rows = '{"first": ("bm25_reranked", {}), "mine": ("aligned_fused_reranked", {})}'
  file, base = write(tmp_path, f'"""T."""\nROWS = {rows}'), ROOT / 'configs/dgr.py'
  typed = [str(file), f'--config={base}', f'--workdir={tmp_path}', '--seeds=0,1', '--dry-run']
  ablate.main([*typed, '--config.search.reranker=/a/student'])
  both, other = capsys.readouterr().out.splitlines()
  assert '--config.search.models=bm25_reranked,aligned_fused_reranked' in both
  assert '--config.retriever.seed=0' in both and '--config.retriever.seed=1' in other
  assert '--config.search.models=aligned_fused_reranked' in other


def test_a_model_that_nothing_trains_has_no_seeds(tmp_path, capsys):
  rows = '{"given": ("pretrained", {}), "warm": ("cpt", {})}'
  file, base = write(tmp_path, f'"""T."""\nROWS = {rows}'), ROOT / 'configs/query_rewriting.py'
  ablate.main([str(file), f'--config={base}', f'--workdir={tmp_path}', '--seeds=0,1', '--dry-run'])
  both, other = capsys.readouterr().out.splitlines()
  assert '--config.search.models=pretrained,cpt' in both and '--config.rewriter.seed=0' in both
  assert '--config.search.models=cpt' in other and '--config.rewriter.seed=1' in other


@pytest.mark.parametrize(
  ('base', 'changes', 'expected'),
  [
    ('query_rewriting.py', (), 'cpt'),
    ('tongsearch_qwen_1_5b.py', (), 'pretrained'),
    ('tongsearch_qwen_1_5b.py', ('--config.rewriter.init_from=/a/run',), 'rewrite'),
    ('query_rewriting.py', ('--config.rewriter.init_from=/a/run',), 'rewrite'),
  ],
)
def test_rewriters_are_compared_with_what_grpo_begins_with(
  base, changes, expected, monkeypatch, tmp_path, capsys
):
  """Whatever that is, its row can be filled and is no twin of another one."""
  monkeypatch.setattr(collection_rows.loaded, 'check', lambda folder: {})
  typed = [str(ROOT / 'configs/ablations/rewriting.py'), f'--config={ROOT / "configs" / base}']
  typed += [f'--workdir={tmp_path}', '--dry-run', *changes]
  args = ablate.parse_args([*typed, '--config.search.reranker=/a/student'])
  loaded = ablate.load(args.file, args.base)
  kept = {row.name: row for row in ablate.available(loaded, args).rows}
  assert list(kept) == [row.name for row in loaded.rows]
  assert kept[loaded.against].model == expected
  assert kept['before GRPO, re-ranked'].model == f'{expected}_reranked'
  assert 'rewrite' not in ablation.settings(args, [kept[loaded.against]], 0, 0)['stages']
  assert ('model as given' in kept) == (expected != 'pretrained')
  ablate.main(typed)
  assert 'before GRPO, re-ranked: left out' in capsys.readouterr().err


def test_commands_share_stages_and_seed_only_students(tmp_path, capsys):
  rows = '{"first": ("bm25", {}), "mine": ("student", {"student.layers": (0, 1)})}'
  file = write(tmp_path, f'"""T."""\nROWS = {rows}')
  changed = ('--config.sft.epochs=2.0', '--config.data.holdout=0.5', '--folds=0,1', '--seeds=0,1')
  where = (f'--config={TINY}', f'--workdir={tmp_path}')
  ablate.main([str(file), *where, *changed, '--dry-run'])
  first, second, *students = capsys.readouterr().out.splitlines()
  assert len(students) == 4  # two seeds in two folds; BM25 has no seed
  assert '--config.stages=prepare,evaluate' in first and '--config.data.fold=1' in second
  assert all('--config.sft.epochs=2.0' in line for line in (first, *students))
  assert '--config.student.layers=(0, 1)' in students[0]
  assert [f'--config.student.seed={n}' in students[2] for n in (0, 1)] == [False, True]


def test_rows_with_equal_settings_share_a_run(tmp_path, capsys):
  rows = """{"first": ("bm25", {}), "other": ("student", {"student.layers": (0, 1)}),
  "mine": ("student", {}), "prompts": ("yes_no", {}), "taught": ("teacher", {})}"""
  file = write(tmp_path, f'"""T."""\nROWS = {rows}')
  typed = [str(file), f'--config={TINY}', f'--workdir={tmp_path}', '--seeds=0,1', '--dry-run']
  ablate.main(typed)
  lines = capsys.readouterr().out.splitlines()
  models = [line.partition('--config.evaluate.models=')[2].split()[0] for line in lines]
  assert models == ['bm25,student,teacher', 'student', 'student', 'student']
  assert ['rankers' in line and 'yes_no' in line for line in lines] == [True, False, False, False]
  assert f'--workdir={tmp_path}/first+mine+prompts+taught/seed0-fold0 ' in lines[0]
  # Fewer rows have a folder of their own, because they prepare less, and take what is done.
  done = tmp_path / 'first+mine+prompts+taught' / 'seed0-fold0'
  done.mkdir(parents=True)
  (done / 'config.json').touch()
  ablate.main([*typed, '--row=mine'])
  first, _ = capsys.readouterr().out.splitlines()
  assert f'--workdir={tmp_path}/first+mine/seed0-fold0 ' in first and f'--reuse={done}' in first
  long = [ablation.Row(f'{n} {"x" * 60}', 'bm25', {}) for n in range(3)]
  named = ablation_runs.folder_of(long)
  assert len(named) == 80 and named != ablation_runs.folder_of(long[:2])


def test_rows_whose_names_differ_in_special_characters_have_folders_of_their_own(tmp_path, capsys):
  rows = '{"k<5": ("bm25", {"seed": 1}), "k>5": ("bm25", {"seed": 2}), "k_5": ("bm25", {}), '
  file = write(tmp_path, f'"""T."""\nROWS = {rows}"a b": ("bm25", {{"seed": 3}})}}')
  typed = [str(file), f'--config={TINY}', f'--workdir={tmp_path}', '--dry-run']

  def folders(*more):
    ablate.main([*typed, *more])
    lines = capsys.readouterr().out.splitlines()
    return [line.partition('--workdir=')[2].split('/seed0')[0] for line in lines]

  found = folders()
  assert len(set(found)) == 4
  assert found[2:] == [f'{tmp_path}/k_5', f'{tmp_path}/a_b']  # as ever
  assert folders('--row=k>5') == found[:2]  # of a call with fewer rows, too


@pytest.fixture
def begun(tmp_path):
  """An ablation of two rows whose runs have prepared their records; (arguments, workdirs)."""
  jsonl = tmp_path / 'test.jsonl'
  row = {'query_id': 'q', 'query': 'x', 'doc_id': 'd', 'title': 't', 'summary': 's', 'label': 1}
  jsonl.write_text(json.dumps(row) + '\n')
  file = write(tmp_path, '"""T."""\nROWS = {"a": ("bm25", {}), "b": ("bm25", {"seed": 1})}')
  typed = [str(file), f'--config={TINY}', f'--config.data.test=jsonl:{jsonl}']
  typed += [f'--workdir={tmp_path / "runs"}', f'--out={tmp_path}']
  args = ablate.parse_args(typed)
  plan = ablation_runs.planned(args, ablate.load(file, args.base), (0,), (0,))
  for run in plan:
    config = load_config(args.config, ablation_runs.flags_of(args, run.changes))
    pipeline = runner.Pipeline(Run(config, run.workdir, None))
    stage = pipeline.listed[0]
    run.workdir.mkdir(parents=True)
    configs.save(config, run.workdir / 'config.json')
    folder = pipeline.run.folder(stage.name)
    folder.mkdir()
    found = {'status': 'done', 'config': manifest.settings_of(config, stage.sections(config))}
    found |= {'inputs': pipeline.inputs(stage)}
    (folder / manifest.FILE).write_text(json.dumps(found))
  return typed, [run.workdir for run in plan]


def test_stale_runs_are_told_before_the_first_one_runs(begun, tmp_path, monkeypatch):
  typed, (first, second) = begun
  started = []

  def run(command):
    started.append(command)
    raise Stopped('stopped')

  monkeypatch.setattr(ablate.child_process, 'run', run)
  with pytest.raises(SystemExit):
    ablate.main(typed)
  assert len(started) == 1  # neither is stale
  (second / 'data' / manifest.FILE).write_text(
    (second / 'data' / manifest.FILE).read_text().replace('"data.depth": ', '"data.depth": 9')
  )
  with pytest.raises(UserError) as caught:
    ablate.main(typed)
  said = str(caught.value)
  assert said.startswith(f'b: {second}/data is stale: config.data.depth')
  assert said.endswith(
    f'. Give another --workdir; with --reuse={tmp_path}/runs it takes the stages that have not '
    'changed'
  )
  (tmp_path / 'test.jsonl').write_text('')
  with pytest.raises(
    UserError, match=r'^a: .*data is stale: its input data.test.*, and so is 1 other run\. Give'
  ):
    ablate.main(typed)
  assert len(started) == 1
  # As the message says.
  with pytest.raises(SystemExit):
    ablate.main([*typed, f'--workdir={tmp_path}/new', f'--reuse={tmp_path}/runs'])
  assert f'--reuse={first},{second}' in started[1]


def test_a_fusion_of_the_student_needs_its_stages_and_has_its_seed(tmp_path):
  file = write(tmp_path, '"""T."""\nROWS = {"a": ("fused", {}), "b": ("bm25", {})}')
  args = ablate.parse_args([str(file), '--config', TINY])
  fused, bm25 = (ablation.settings(args, [row], 3, 0) for row in ablate.load(file, args.base).rows)
  assert fused['student.seed'] == 3 and 'student.seed' not in bm25
  assert {'student_sft', 'distill'} <= set(fused['stages']) and 'distill' not in bm25['stages']


def test_no_row_of_a_table_ranks_by_prompts(tmp_path):
  file = write(tmp_path, '"""T."""\nROWS = {"mine": ("student", {})}')
  rankers = '--config.evaluate.rankers=yes_no,prp_allpair'
  args = ablate.parse_args([str(file), '--config', TINY, rankers])
  assert args.base.evaluate.rankers == ('yes_no', 'prp_allpair')
  changes = ablation.settings(args, ablate.load(file, args.base).rows[:1], 0, 0)
  typed = ablation_runs.command(args, changes, tmp_path, [])
  again = ablate.parse_args([str(file), '--config', TINY, *typed[2:]])
  assert again.base.evaluate.rankers == ()


def test_a_row_can_be_a_method_that_ranks_by_prompts(tmp_path):
  file = write(
    tmp_path,
    '"""T."""\nROWS = {"a": ("yes_no", {"evaluate.prompts.doc_tokens": 9}), "b": ("bm25", {})}',
  )
  args = ablate.parse_args([str(file), '--config', TINY])
  found = []
  for row in ablate.load(file, args.base).rows:
    typed = ablation_runs.command(args, ablation.settings(args, [row], 1, 0), tmp_path, [])
    base = ablate.parse_args([str(file), '--config', TINY, *typed[2:]]).base
    found.append((base.evaluate.models, base.evaluate.rankers, base.stages))
    assert base.student.seed == 0  # no student ranks
  stages = ('prepare', 'evaluate')
  assert found == [((), ('yes_no',), stages), (('bm25',), (), stages)]
  assert base.evaluate.prompts.doc_tokens == 128


def test_what_a_query_costs_is_in_the_table_if_a_row_ranks_by_prompts(tmp_path, monkeypatch):
  file = write(tmp_path, '"""T."""\nROWS = {"a": ("bm25", {}), "b": ("teacher", {})}')
  found = {name: results(np.ones((1, 4)), np.ones((1, 4, 2))) for name in 'ab'}
  model = {'ms_per_pair': 3.0, 'pairs': 40, 'queries': 4, 'tie_rate': 0.0}  # of PNR
  asked = {'prompts_per_query': 56.0, 'tokens_per_query': 9000.0, 'ms_per_query': 70.0}
  asked |= {'tied_rate': 1.0}
  monkeypatch.setattr(ablate, 'run_all', lambda *_: found)
  heads = []
  for spent in (model, model | asked):
    # Of two folds, each of which has its own cost.
    found['b'].costs = [ablate.costs(spent), ablate.costs(spent | {'ms_per_pair': 5.0})]
    ablate.main([str(file), '--config', TINY, '--out', str(tmp_path)])
    text = (tmp_path / 'table-tiny.md').read_text()
    heads.append(next(line for line in text.splitlines() if line.startswith('| row |')))
    rows = json.loads((tmp_path / 'table-tiny.json').read_text())['rows']
    assert rows[0]['costs'] == {}
    if spent is model:
      assert rows[1]['costs'] == {'prompts_per_query': 10, 'ms_per_query': 40}
    else:
      assert rows[1]['costs'] == asked
  assert ['prompts' in head for head in heads] == [False, True]


def test_a_row_that_a_run_left_out_is_named(tmp_path):
  (tmp_path / 'manifest.json').write_text(json.dumps({'device': 'cpu', 'results': {'bm25': {}}}))
  with pytest.raises(UserError, match="has no row 'fused'"):
    ablate.read(ablate.Results(), tmp_path, 'fused', 0)


def test_costs_are_means_of_the_runs_that_have_them():
  found = [{'prompts_per_query': 2.0}, {'prompts_per_query': 4.0, 'conflict_rate': 0.5}]
  assert ablate.mean(found) == {'prompts_per_query': 3.0, 'conflict_rate': 0.5}
  assert ablate.mean([]) == {}


@pytest.mark.slow
def test_a_table_from_runs_to_files(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  rows = '{"first": ("bm25", {}), "labels": ("student_sft", {}), "beta": ("student", {})}'
  file = write(tmp_path, f'"""T.\n\nText."""\nROWS = {rows}')
  arguments = [str(file), '--config', TINY, '--workdir', str(tmp_path / 'runs')]
  arguments += ['--out', str(tmp_path / 'out'), '--seeds=0,1']
  ablate.main(arguments)
  result = json.loads((tmp_path / 'out' / 'table-tiny.json').read_text())
  assert [row['seeds'] for row in result['rows']] == [[0], [0, 1], [0, 1]]
  # Rows with equal settings share a run, which has their names.
  shared = [
    tmp_path / 'runs' / name
    for name in ('first+labels+beta/seed0-fold0', 'labels+beta/seed1-fold0')
  ]
  run = json.loads((shared[1] / 'evaluate/results.json').read_text())
  by_seed = result['rows'][1]['metrics']['ndcg@5']['by_seed']
  assert by_seed['1'] == pytest.approx(run['student_sft']['ndcg@5'])
  # The second seed's student has the first one's teacher.
  manifests = [json.loads((folder / 'score/manifest.json').read_text()) for folder in shared]
  assert manifests[0] == manifests[1]
  page = (tmp_path / 'out' / 'table-tiny.md').read_text()
  assert '| labels |' in page and 'table-tiny.svg' in page and 'Text.' in page


@pytest.mark.parametrize(
  ('holdout', 'folds', 'common'),
  [
    (0.5, '0,1', ''),
    (1 / 3, '0,1,2', ''),
    (0.25, '0,3', ''),
    (0.5, '0,2', '0 and 2'),
    (0.4, '0,1,2', '0 and 2'),  # 0 to .4, .6 to 1, .2 to .6
    (0.3, '1,1', '1 and 1'),
    (0.0, '0,1', '0 and 1'),
  ],
)
def test_folds_that_test_the_same_queries_are_refused(tmp_path, holdout, folds, common):
  file = write(tmp_path, '"""T."""\nROWS = {"a": ("bm25", {})}')
  words = [str(file), f'--config={TINY}', f'--config.data.holdout={holdout}', f'--folds={folds}']
  args = ablate.parse_args(words)
  if not common:
    ablate.check_folds(args)
    return
  with pytest.raises(UserError, match=f'folds {common} have test queries in common'):
    ablate.check_folds(args)
