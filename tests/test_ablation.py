"""Files of ablations: rows that depend on the base config, and rows that it cannot have."""

from pathlib import Path

import llm_models
import pytest

from disranker_jax import config as configs
from disranker_jax.commands import ablate, ablation
from disranker_jax.data.named_contracts import NAMED
from disranker_jax.errors import UserError
from disranker_jax.rankers.llm.methods import METHODS
from disranker_jax.stages import prepare

ROOT = Path(__file__).parents[1]
TINY = ROOT / 'configs' / 'tiny.py'
# With and without clicks, a score head, query likelihood, adapters, generated queries.
BASES = (
  'quickstart', 'tiny', 'own_documents', 'own_data', 'disranker_mistral_7b', 'qwen3_modernbert',
  'collections/chorus', 'collections/chorus_titles', 'collections/cranfield',
  'collections/nfcorpus', 'collections/scientific_python', 'collections/trec_session',
)  # fmt: skip
FOREIGN = "student of another ranker's run"
OF_RUN = (FOREIGN, "LLM by another ranker's run")


def parsed(file, base, *more):
  if not Path(file).exists():
    file = ROOT / 'configs' / 'ablations' / f'{file}.py'
  base = base if Path(base).exists() else ROOT / 'configs' / f'{base}.py'
  return ablate.parse_args([str(file), f'--config={base}', *more])


def write(folder, text):
  file = folder / 'table.py'
  file.write_text(text)
  return file


@pytest.mark.parametrize('base', BASES)
@pytest.mark.parametrize('file', ['rankers', 'ranker_methods'])
def test_a_table_of_llm_rankers_is_one_command_for_every_config(file, base, monkeypatch):
  monkeypatch.setattr(configs, 'trec_folder', lambda folder, source: f'trec:{folder}')
  other = ('--config.data.teachers=trec:other.run',) if file == 'rankers' else ()
  args = parsed(file, base, '--dry-run', *other)
  lacking = {}
  for row in ablation.load(args.file, args.base).rows:
    config = args.base.copy_and_resolve_references()
    config.update_from_flattened_dict(ablation.settings(args, [row], 0, 0))
    if why := ablation.lacking(args, row):
      lacking[row.name] = why
    if row.name in ('TSRankGPT', 'LLM2Vec'):  # both have two stages, with or without clicks
      assert 'cpt' in config.stages and config.data.clicks
    if row.name == 'RankLLaMA':
      [piece] = NAMED['rankllama_paper'].pieces
      assert config.teacher.template == piece and config.teacher.scorer == 'score_head'
    # With its scores the other rows would have two teachers.
    assert bool(config.data.teachers) == (row.name in OF_RUN)
  if (file, base) != ('rankers', 'own_documents'):
    assert not lacking
    return
  # Its stages have no labels, and its queries no ids that another ranker could know.
  trained = ('RankLLaMA', 'TSRankGPT', 'LLM2Vec')
  assert lacking.keys() == {'student, labels only', *trained, *OF_RUN}
  assert 'needs the stage student_sft' in lacking['student, labels only']
  assert 'config.data.judgements: is empty, but read by sft' in lacking['RankLLaMA']
  assert 'config.data.candidates: is empty, but read by distill' in lacking[FOREIGN]


def test_the_run_of_another_ranker_is_a_teacher_and_a_row(tmp_path, capsys):
  args = parsed('rankers', 'quickstart', '--dry-run')
  names = [row.name for row in ablation.available(ablation.load(args.file, args.base), args).rows]
  assert not set(OF_RUN) & set(names)
  message = f'{FOREIGN}: left out: needs config.data.teachers; add --config.data.teachers=VALUE'
  assert message in capsys.readouterr().err
  teacher = '--config.data.teachers=trec:other.run.gz'
  given = '--config.evaluate.runs.theirs=trec:theirs.run'
  words = ['--row', FOREIGN, '--row', 'theirs', '--row', 'student of the teacher']
  path = str(ROOT / 'configs' / 'ablations' / 'rankers.py')
  base = f'--config={ROOT / "configs" / "quickstart.py"}'
  ablate.main([path, base, teacher, given, *words, f'--workdir={tmp_path}', '--dry-run'])
  plain, foreign = capsys.readouterr().out.splitlines()
  # The table of any run has the row of a run from elsewhere.
  assert '--config.evaluate.models=bm25,student ' in plain and given in plain
  assert '--config.data.teachers=()' in plain and ',score,' in plain
  assert teacher in foreign and '--config.stages=prepare,distill,evaluate' in foreign


def test_every_method_ranks_and_teaches_in_one_table():
  args = parsed('ranker_methods', 'quickstart')
  names = [row.name for row in ablation.load(args.file, args.base).rows]
  heads = {m.name for m in METHODS.values() if NAMED[m.contract].formula == 'head'}
  assert heads == {'rankllama_v1', 'rankllama_tevatron', 'rankllama_paper'}
  for name in METHODS:
    assert (name in names and f'student of {name}' in names) == (name not in heads)
  ready = parsed('ranker_methods', 'quickstart', '--config.teacher.ready=True')
  assert heads < {row.name for row in ablation.load(ready.file, ready.base).rows}


def test_rows_that_the_model_cannot_answer_are_left_out(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(ablate.child_process, 'run', lambda *_: pytest.fail('a run has started'))
  file = write(
    tmp_path,
    '"""T."""\nROWS = {"BM25": ("bm25", {}), "asked": ("yes_no", {}), "all": ("first", {}),'
    '"taught": ("student", {"score.method": "yes_no", "stages": ("prepare", "score", "distill",'
    ' "evaluate")})}',
  )
  typed = [str(file), f'--config={TINY}', f'--workdir={tmp_path / "runs"}']
  # The tokenizer of tiny-decoder has neither ' Yes' as one token nor a chat template.
  with pytest.raises(UserError, match=r"asked: config\.teacher\.model='tiny-decoder': contract"):
    ablate.main([*typed, '--row=asked'])
  args = ablate.parse_args(typed)
  kept = ablation.available(ablation.load(file, args.base), args)
  assert [row.name for row in kept.rows] == ['BM25']
  said = capsys.readouterr().err
  assert "asked: left out: config.teacher.model='tiny-decoder': contract 'yes_no'" in said
  assert 'taught: left out' in said and 'wants a chat template' in said
  able = tmp_path / 'chat'
  llm_models.without_weights(able)
  args = ablate.parse_args([*typed, f'--config.teacher.model={able}'])
  kept = ablation.available(ablation.load(file, args.base), args)
  assert [row.name for row in kept.rows] == ['BM25', 'asked', 'all', 'taught']
  # A model that cannot be fetched is the run's to tell.
  args = ablate.parse_args([*typed, f'--config.teacher.model={tmp_path / "no"}'])
  assert len(ablation.available(ablation.load(file, args.base), args).rows) == 4


def test_a_row_with_settings_that_contradict_each_other_says_which(tmp_path, capsys):
  rows = '{"BM25": ("bm25", {}), "two": ("teacher", {"sft.lm_weight": 1.0})}'
  args = parsed(write(tmp_path, f'"""T."""\nROWS = {rows}'), TINY)
  kept = ablation.available(ablation.load(args.file, args.base), args)
  assert [row.name for row in kept.rows] == ['BM25']
  assert 'two: left out: config.sft.lm_weight and kl_weight: need next-token logits' in (
    capsys.readouterr().err
  )


def test_rows_of_another_system_are_an_error(tmp_path):
  args = parsed('rankers', 'dgr')
  with pytest.raises(UserError, match="has no rows for a config of system 'dgr'"):
    ablation.load(args.file, args.base)


def test_half_of_the_layers_are_half_of_the_model_that_is_there():
  def halved(base, *more):
    args = parsed('limits', base, *more)
    [row] = [r for r in ablation.load(args.file, args.base).rows if r.name == 'half of the layers']
    return ablation.lacking(args, row) or row.changes['student.layers']

  assert halved('quickstart') == (0, 2, 4)
  assert halved('tiny') == (0,)
  assert halved('own_data') == (0, 4, 8)
  assert 'needs config.student.layers' in halved('qwen3_modernbert')
  assert halved('qwen3_modernbert', '--config.student.layers=(0,1,2,9)') == (0, 2)


def test_a_log_beside_generated_queries_is_learned_alone_and_halved_too():
  stages = '--config.stages=prepare,generate,score,distill,evaluate'
  args = parsed('generated', 'quickstart', stages, '--config.distill.init_from=')
  assert '0 queries' in [row.name for row in ablation.load(args.file, args.base).rows]
  args = parsed('limits', 'quickstart', stages, '--config.distill.init_from=')
  rows = {row.name: row for row in ablation.load(args.file, args.base).rows}
  half = rows['half of the queries, twice as often'].changes
  assert half['distill.generated_weight'] == 0.5 and half['data.limit.candidates'] == 300
  args = parsed('generated', 'quickstart', '--config.stages=prepare,distill')
  with pytest.raises(UserError, match=r'need the stage score, which config\.stages lacks'):
    ablation.load(args.file, args.base)


def test_a_run_without_the_stage_generate_reads_no_generated_queries():
  args = parsed('models', 'own_documents')
  rows = {row.name: row for row in ablation.load(args.file, args.base).rows}
  plain = ablation.settings(args, [rows['BM25']], 0, 0)
  assert plain['data.candidates'] == '' and 'generate' not in plain['stages']
  student = ablation.settings(args, [rows['distilled student']], 0, 0)
  assert 'data.candidates' not in student and 'generate' in student['stages']


@pytest.mark.parametrize('base', BASES)
@pytest.mark.parametrize('file', ['generated', 'limits'])
def test_what_limits_a_student_is_one_command_with_and_without_a_log(file, base, monkeypatch):
  monkeypatch.setattr(configs, 'trec_folder', lambda folder, source: f'trec:{folder}')
  args = parsed(file, base, '--dry-run')
  table, rows, lacking = ablation.load(args.file, args.base), {}, {}
  for row in table.rows:
    rows[row.name] = ablation.settings(args, [row], 0, 0)
    if why := ablation.lacking(args, row):
      lacking[row.name] = why
  has_log = args.base.data.candidates != prepare.GENERATED_ADDRESS
  if file == 'limits':
    assert ('as many queries of the log' in rows) == (not has_log)
    # Half of an unknown number is unknown.
    unknown = {
      'half of the queries, twice as often': has_log and not args.base.data.limit.candidates,
      'half of the layers': base == 'qwen3_modernbert',
    }
    assert lacking.keys() == {name for name, is_unknown in unknown.items() if is_unknown}
    return
  assert not lacking
  assert ('0 queries' in rows) == ('labels only' in rows) == has_log
  learned = [row for name, row in rows.items() if name.endswith('queries')]
  own = ('distill.generated_limit', 'distill.generated_weight')  # all else is the same
  assert len({str({k: v for k, v in row.items() if k not in own}) for row in learned}) == 1
  assert all('generate' in row['stages'] and 'score' in row['stages'] for row in learned)
