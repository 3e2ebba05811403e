"""The command line: its commands, their help and errors, and the one way to override a config."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import batches
from disranker_jax import config as configs
from disranker_jax import main as run
from disranker_jax.commands import cli, common
from disranker_jax.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / 'configs' / 'tiny.py')
BENCHES = (
  'batches',
  'beams',
  'data',
  'growth',
  'latency',
  'prepare',
  'profile',
  'score',
  'serve',
  'soak',
  'suffixes',
  'train',
)


def error(capsys, *argv) -> str:
  """The one line with which a command line is refused."""
  with pytest.raises(SystemExit) as end:
    cli.main(list(argv))
  out, err = capsys.readouterr()
  assert end.value.code == 2 and out == '' and len(err.splitlines()) == 1
  assert err.startswith('error: ')
  return err.removeprefix('error: ').rstrip()


class TestHelp:
  @pytest.mark.parametrize('argv', [[], ['-h'], ['--help']])
  def test_without_a_command_all_commands_are_listed(self, argv, capsys):
    cli.main(argv)
    out = capsys.readouterr().out
    assert out.startswith('usage: disranker COMMAND')
    assert all(f'\n  {name} ' in out for name in cli.COMMANDS)

  def test_the_list_needs_neither_jax_nor_transformers(self):
    code = (
      'import sys; from disranker_jax.commands import cli; cli.main(["--help"]); '
      'sys.exit(any(name in sys.modules for name in ("jax", "transformers", "numpy")))'
    )
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

  @pytest.mark.parametrize('name', [n for n in cli.COMMANDS if n != 'bench'])
  def test_every_command_has_a_usage_a_sentence_and_an_example(self, name, capsys):
    with pytest.raises(SystemExit) as end:
      cli.main([name, '--help'])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith(f'usage: disranker {name} ') and f'\n  disranker {name} ' in out
    assert importlib.import_module(cli.COMMANDS[name].module).__doc__

  def test_benches_are_listed_with_their_first_sentence(self, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    cli.main(['bench'])
    out = capsys.readouterr().out
    assert all(f'\n  {name} ' in out for name in BENCHES)
    assert (
      f'profile  {(ast.get_docstring(parsed("benchmarks/step_profile.py"))).splitlines()[0]}' in out
    )

  @pytest.mark.parametrize('name', BENCHES)
  def test_every_bench_has_a_usage_and_an_example(self, name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
      cli.main(['bench', name, '--help'])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith(f'usage: disranker bench {name} ')
    assert f'\n  disranker bench {name} ' in out

  def test_defaults_are_shown_where_they_say_something(self, capsys):
    with pytest.raises(SystemExit):
      cli.main(['describe', '--help'])
    out = ' '.join(capsys.readouterr().out.split())
    assert '(default: 256)' in out and '(default: 0)' in out
    assert 'default: False' not in out and 'default: )' not in out


class TestErrors:
  def test_an_unknown_command_suggests_the_nearest(self, capsys):
    message = error(capsys, 'comapre')
    assert "'comapre': no such command; did you mean compare?" in message

  @pytest.mark.parametrize('name', [n for n in cli.COMMANDS if n != 'bench'])
  def test_a_missing_or_unknown_flag_is_one_line(self, name, capsys):
    assert f'see disranker {name} --help' in error(capsys, name, '--no-such-flag')

  @pytest.mark.parametrize(
    ('argv', 'flag'),
    [
      (['describe', 'python_docs:', '--max_len=9'], '--max-len'),
      (['describe', 'python_docs:', '--max_query_len', '9'], '--max-query-len'),
      (['prepare', '--source=x:', '--out=y', '--on_bad_row=error'], '--on-bad-row'),
      (['prepare', '--source=x:', '--out=y', '--beam_runner=DirectRunner'], '--beam-runner'),
      (['plan', '--stage=cpt', '--topology=v5e:1x1', '--pair_tokens=3'], '--pair-tokens'),
      (['run', '--rerum=cpt'], '--rerun'),
    ],
  )
  def test_an_underscore_or_a_typo_names_the_flag(self, argv, flag, capsys):
    assert f'no such flag; did you mean {flag}?' in error(capsys, *argv)

  def test_flags_are_not_abbreviated(self, capsys):
    assert '--js: no such flag' in error(capsys, 'describe', 'python_docs:', '--js')

  def test_a_bench_of_a_model_that_is_missing_is_one_line(self, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert 'none: has no config.json' in error(capsys, 'bench', 'latency', '--model=none')

  def test_outside_the_repository_bench_says_what_to_do(self, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert 'clone the repository' in error(capsys, 'bench', 'train')

  @pytest.mark.parametrize('raised', [KeyboardInterrupt, None])
  def test_ctrl_c_is_status_130(self, raised, capsys):
    with pytest.raises(SystemExit) as end, common.guarded():
      if raised:
        raise raised
      sys.exit(3)  # any other exit keeps its status
    assert end.value.code == (130 if raised else 3)
    assert capsys.readouterr().err == ('interrupted\n' if raised else '')

  @pytest.mark.parametrize(
    ('argv', 'status'),
    [(['--help'], 141), (['run', '--config=nope.py'], 2), (['fuse', 'a', '--out=b'], 2)],
  )
  @pytest.mark.parametrize('unbuffered', ['', '1'])
  def test_without_a_reader_of_messages_the_status_is_the_same(self, argv, status, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax', *argv], stdout=writer, stderr=writer,
      cwd=ROOT, env=os.environ | {'PYTHONUNBUFFERED': unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == status

  def test_a_log_without_a_reader_prints_no_traceback(self):
    code = (
      'import logging, sys\nfrom disranker_jax.commands.common import guarded\n'
      'with guarded():\n'
      '  logging.basicConfig(stream=sys.stdout, force=True)\n'
      '  logging.error("x" * 9000)'
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
      [sys.executable, '-c', code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.close(writer)
    assert done.stderr == ''

  @pytest.mark.parametrize('unbuffered', ['', '1'])
  @pytest.mark.parametrize(
    'argv',
    [['--help'], ['bench'], ['weights', 'tiny-encoder'], ['run', f'--config={TINY}', '--explain']],
  )
  def test_a_reader_that_leaves_causes_no_traceback(self, argv, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax', *argv], stdout=writer, cwd=ROOT,
      stderr=subprocess.PIPE, text=True, env=os.environ | {'PYTHONUNBUFFERED': unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, '')

  @pytest.mark.parametrize('encoding', ['latin-1', 'ascii:strict', 'utf-8'])
  @pytest.mark.parametrize('json_flag', [[], ['--json']])
  def test_characters_that_the_terminal_cannot_show_are_replaced(
    self, encoding, json_flag, tmp_path
  ):
    file = tmp_path / 'rows.jsonl'
    row = {'query_id': 'q', 'query': '文字 é', 'doc_id': 'd', 'title': 't', 'summary': 's'}
    file.write_text(json.dumps(row) + '\n{"文":\n', encoding='utf-8')
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax', 'describe', f'jsonl:{file}', *json_flag],
      cwd=ROOT, capture_output=True, env=os.environ | {'PYTHONIOENCODING': encoding},
    )  # fmt: skip
    shown = '文字 é'.encode(encoding.removesuffix(':strict'), 'replace')
    assert b'Traceback' not in done.stderr and shown in done.stdout

  def test_an_argument_that_is_not_unicode_is_shown_in_the_error(self):
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax', b'na\xffme'],
      cwd=ROOT, capture_output=True, env=os.environ | {'PYTHONUTF8': '1'},
    )  # fmt: skip
    assert done.returncode == 2 and b'no such command' in done.stderr

  def test_a_folder_that_cannot_be_written_names_what_may_be_moved(self, capsys):
    with pytest.raises(SystemExit) as end, common.guarded():
      raise PermissionError(13, 'Permission denied', '/.cache')
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith('error: /.cache: permission denied')
    assert all(name in err for name in ('--workdir', 'DISRANKER_CACHE', 'HF_HOME', 'MPLCONFIGDIR'))

  @pytest.mark.parametrize('command', ['run', 'ablate'])
  def test_a_workdir_below_a_file_is_one_line(self, command, tmp_path):
    (tmp_path / 'file').touch()
    more = ['configs/ablations/beta.py'] if command == 'ablate' else []
    done = subprocess.run(
      [sys.executable, '-m', 'disranker_jax', command, *more, f'--config={TINY}',
       f'--workdir={tmp_path}/file/below'], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'is a file and not a folder' in done.stderr

  def test_a_device_without_room_for_a_model_is_one_line(self, capsys):
    with pytest.raises(SystemExit) as end, common.guarded():
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory for 9 bytes.\nLog\nLog')
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith('error: the device is out of memory')
    assert '9 bytes' in err and 'batch_rows' in err and len(err.splitlines()) == 1

  def test_a_broken_pipe_of_a_worker_is_a_bug_with_its_traceback(self):
    code = (
      'from disranker_jax.commands.common import guarded\n'
      'with guarded():\n  raise BrokenPipeError(32, "a worker is gone")'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and 'a worker is gone' in done.stderr


class TestConfig:
  """`--config FILE --config.KEY=VALUE`, which all commands with a config share."""

  def load(self, *argv):
    parser = common.Parser('x', 'X.')
    parser.add_config(TINY)
    args = parser.parse_args(list(argv))
    return common.load_config(args.config, args.overrides)

  @pytest.mark.parametrize(
    ('words', 'key', 'value'),
    [
      (['--config.student.scan_layers=False'], 'student.scan_layers', False),
      (['--config.student.scan_layers=false'], 'student.scan_layers', False),
      (['--config.student.scan_layers'], 'student.scan_layers', True),
      (['--config.student.layers=(0, 1)'], 'student.layers', [0, 1]),
      (['--config.sft.epochs=2'], 'sft.epochs', 2.0),
      (['--config.sft.epochs', '2'], 'sft.epochs', 2.0),
      (['--config.mesh.data', '-1'], 'mesh.data', -1),
      (['--config.mesh.data=-1', '--config.mesh.data=2'], 'mesh.data', 2),
      (['--config.data.clicks=jsonl:my clicks.jsonl'], 'data.clicks', 'jsonl:my clicks.jsonl'),
      (['--config.evaluate.models=bm25,student'], 'evaluate.models', ['bm25', 'student']),
      (['--config.stages', 'prepare,cpt'], 'stages', ['prepare', 'cpt']),
      (['--config.data.holdout_by='], 'data.holdout_by', ''),
    ],
  )
  def test_a_value_gets_the_type_of_its_key(self, words, key, value):
    changed = configs.flatten(self.load(*words))[key]
    assert (changed, type(changed)) == (value, type(value))

  @pytest.mark.parametrize(
    ('words', 'message'),
    [
      (
        ['--config.sft.epoch=2'],
        "--config.sft.epoch: there is no such key; did you mean 'sft.epochs'?",
      ),
      (['--config.sft=2'], '--config.sft: there is no such key'),
      (['--config.sft.epochs=many'], 'many'),
      (['--config.sft.epochs'], 'epochs'),
      (['--config.seed=0.5'], '0.5'),
      (['--config.student.scan_layers=perhaps'], 'perhaps'),
      (['--config.sft.batch_rows=0'], 'config.sft.batch_rows=0: '),
      (['--config=nope.py'], '--config nope.py: no such file'),
      (['--config=/'], '--config /: is a folder; name a file in it'),
      (['--config', 'nope.py'], '--config nope.py: no such file'),
      (['--config='], '--config is missing: pass a Python file'),
    ],
  )
  def test_a_wrong_word_is_named(self, words, message):
    with pytest.raises(UserError) as caught:
      self.load(*words)
    assert message in str(caught.value) and '\n' not in str(caught.value)

  def test_a_copy_of_a_config_file_is_another_run(self, tmp_path):
    copy = tmp_path / 'mine.py'
    copy.write_text(Path(TINY).read_text())
    assert common.load_config(TINY).name == 'tiny'
    assert common.load_config(copy).name == 'mine'
    assert common.load_config(copy, ['--config.name=other']).name == 'other'
    copy.write_text(copy.read_text().replace('  return c', "  c.name = 'set'\n  return c"))
    assert common.load_config(copy).name == 'set'

  @pytest.mark.parametrize(
    ('text', 'message'),
    [
      ('raise KeyError("no such thing")', "raises KeyError: 'no such thing'"),
      ('def get_config():\n  return 1 / 0', 'raises ZeroDivisionError: division by zero'),
      ('x = (', 'raises SyntaxError: '),
      ('x = 1', 'has no get_config() that returns a ConfigDict'),
      ('def get_config():\n  return {}', 'has no get_config() that returns a ConfigDict'),
      (
        'from disranker_jax.config import defaults\n'
        'def get_config():\n  c = defaults()\n  c.sft.epoch = 2\n  return c',
        'epochs',
      ),
    ],
  )
  def test_a_file_that_cannot_be_used_is_named_with_the_reason(self, text, message, tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(text)
    with pytest.raises(UserError) as caught:
      self.load(f'--config={file}')
    assert str(caught.value).startswith(f'--config {file}: ') and message in str(caught.value)

  def test_a_command_without_a_config_has_no_overrides(self, capsys):
    message = error(capsys, 'describe', 'python_docs:', '--config.sft.epochs=2')
    assert '--config.sft.epochs: no such flag' in message

  @pytest.mark.parametrize('name', ['run', 'plan', 'ablate'])
  def test_commands_name_a_config_file_that_does_not_exist(self, name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    more = {'plan': ['--stage=cpt', '--topology=v5e:2x2'], 'ablate': ['configs/ablations/beta.py']}
    assert error(capsys, name, '--config=nope.py', *more.get(name, [])) == (
      '--config nope.py: no such file'
    )

  def test_bench_batches_reads_false_as_false(self, monkeypatch):
    seen = []
    monkeypatch.setattr(batches, 'padding', lambda args, config: seen.append(config))
    words = ['--config.student.scan_layers=False', '--config.student.layers=(1,)']
    batches.main(['padding', f'--config={TINY}', *words])
    assert seen[0].student.scan_layers is False and tuple(seen[0].student.layers) == (1,)


class TestRun:
  def test_explain_prints_a_section_and_runs_nothing(self, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli.main(['run', f'--config={TINY}', '--config.distill.beta=0.7', '--explain', 'distill'])
    out = capsys.readouterr().out
    assert '0.7' in out and 'distill' in out and 'watchdog_s' not in out
    assert not list(tmp_path.iterdir())

  def test_lists_are_split_at_commas(self):
    argv = ['--stages=prepare, cpt', '--rerun', 'cpt', '--reuse=a', '--reuse=b', '--workdir=w']
    args = run.parser().parse_args(argv)
    assert (args.stages, args.rerun, args.reuse) == (['prepare', 'cpt'], ['cpt'], ['a', 'b'])
    assert run.parser().parse_args(['--stages=']).stages == []

  def test_the_modules_are_the_same_command(self):
    """Launch scripts start `python -m disranker_jax.main`."""
    runs = [
      subprocess.run(
        [sys.executable, '-m', *module, '--config=none.py'],
        cwd=ROOT,
        capture_output=True,
        text=True,
      )
      for module in (['disranker_jax.main'], ['disranker_jax', 'run'])
    ]
    assert [done.returncode for done in runs] == [2] * len(runs)
    assert {done.stderr for done in runs} == {'error: --config none.py: no such file\n'}


def parsed(file: str) -> ast.Module:
  return ast.parse((ROOT / file).read_text())


@pytest.mark.parametrize('folder', ['disranker_jax', 'benchmarks'])
def test_no_module_has_the_name_of_a_standard_one(folder):
  """Python puts a script's folder first on the path, where such a file would hide the standard."""
  names = {file.stem for file in (ROOT / folder).rglob('*.py')} - {'__init__', '__main__'}
  assert len(names) > 10 and not names & sys.stdlib_module_names


@pytest.mark.parametrize('command', ['search', 'rewrite', 'rerank'])
@pytest.mark.parametrize(
  ('query', 'what'), [(' ', 'is empty'), ('a\udce9', 'is not valid Unicode')]
)
def test_a_query_that_no_tokenizer_reads_is_refused(command, query, what):
  """Half a surrogate pair is what Python makes of a byte that is no UTF-8."""
  module = importlib.import_module(f'disranker_jax.commands.{command}')
  where = ['--model', '.'] if command == 'rerank' else ['--run', '.']
  with pytest.raises(UserError, match=f'^--query: {what}'):
    module.parse_args([*where, '--query', query])
