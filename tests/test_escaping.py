"""Texts of strangers in terminals, Markdown, JSON and spreadsheets, wherever they are shown."""

import csv
import json
import types

import pytest
from online_logs import ROW, write

from disranker_jax import escaping, progress
from disranker_jax.commands import common, compare, describe, online, rerank
from disranker_jax.data.records import Click, Document
from disranker_jax.errors import UserError
from disranker_jax.evaluation import runs
from disranker_jax.stages import cpt, evaluate

TITLE = '\x1b]0;PWNED\x07\x1b[2J'  # sets the title of a terminal and clears it
SHOWN = r'\x1b]0;PWNED\x07\x1b[2J'
HTML = '<img src=x onerror=alert(1)>'


def obeyed(text: str) -> list[str]:
  """The characters of a text that a terminal obeys."""
  return [c for c in text if c != '\n' and not c.isprintable()]


def test_a_terminal_gets_no_control_characters():
  assert escaping.terminal(f'a{TITLE}\nb\tc') == f'a{SHOWN}\nb\tc'
  assert escaping.line(f'a{TITLE}\nb') == rf'a{SHOWN}\nb'
  assert escaping.terminal('\x9b2J\x7f\u202e\u2066\ud800\r') == r'\x9b2J\x7f\u202e\u2066\ud800\r'
  assert escaping.terminal('größe 猫　🦊 👩\u200d🚀') == 'größe 猫　🦊 👩\u200d🚀'


@pytest.mark.parametrize(
  ('text', 'escaped'),
  [
    (HTML, '&lt;img src=x onerror=alert(1)>'), ('</td>', '&lt;/td>'), ('<!--', '&lt;!--'),
    ('<0.0001', '<0.0001'), ('a < b', 'a < b'), ('&lt;b>', '&amp;lt;b>'), ('a & b', 'a & b'),
    ('x|y', r'x\|y'), (r'x\|y', r'x\\\|y'), ('**b** `c`', r'\*\*b\*\* \`c\`'),
    ('[a](javascript:b)', r'\[a\](javascript:b)'), ('a\n\n# b', 'a # b'),
    (TITLE, r'\\x1b\]0;PWNED\\x07\\x1b\[2J'),
  ],
)  # fmt: skip
def test_markdown_is_text(text, escaped):
  assert escaping.markdown(text) == escaped


@pytest.mark.parametrize('text', ['plain', 'a `b` c', '``', '`', '', f'{HTML}\n\n# x'])
def test_code_ends_where_it_should(text):
  shown = escaping.code(text)
  fence = shown[: len(shown) - len(shown.lstrip('`'))]
  assert shown.endswith(fence) and fence not in shown[len(fence) : -len(fence)].strip()
  assert '\n' not in shown


def test_json_is_the_same_json():
  value = {'größe': [TITLE, '\x9b\u2028\u202e', 1.5, None]}
  text = escaping.json(value)
  assert json.loads(text) == value and 'größe' in text and not obeyed(text)


@pytest.mark.parametrize('text', ['=1+1', '+1', '-1', '@a', '\tx', "'=1", "''=1", "'a", 'q1', ''])
def test_a_cell_is_no_formula_and_comes_back(text):
  assert not escaping.cell(text).startswith(escaping.FORMULA)
  assert escaping.of_cell(escaping.cell(text)) == text
  assert escaping.cell('q1') == 'q1' and escaping.cell("'a") == "'a"


def test_metrics_per_query_come_back_from_their_file(tmp_path):
  ids = ['=1+1', '-3', "'=x", 'q,"1"', 'größe']
  rows = {query: {'ndcg@5': i / 8, 'pnr': 1.5} for i, query in enumerate(ids)}
  evaluate.write_per_query(tmp_path / 'm.csv', 'm', rows)
  (tmp_path / 'per_query.csv').write_text(
    'query_id,model,ndcg@5,pnr\n' + (tmp_path / 'm.csv').read_text()
  )
  with (tmp_path / 'per_query.csv').open(newline='') as file:
    cells = [row[0] for row in csv.reader(file)][1:]
  assert cells == ["'=1+1", "'-3", "''=x", 'q,"1"', 'größe']
  assert runs.read_per_query(tmp_path / 'per_query.csv') == {'m': rows}


def test_errors_and_messages(capsys):
  with pytest.raises(SystemExit), common.guarded():
    raise UserError(f'{TITLE}/f.jsonl: does not exist')
  progress.say(f'{TITLE}.jsonl: has no rows; skipped')
  assert capsys.readouterr().err == (
    f'error: {SHOWN}/f.jsonl: does not exist\n{SHOWN}.jsonl: has no rows; skipped\n'
  )


def test_rerank(capsys):
  rerank.show([(Document(f'd{TITLE}', '', f'text{TITLE}'), 1.0)], {f'd{TITLE}': 3})
  out = capsys.readouterr().out
  assert not obeyed(out) and f'd{SHOWN}' in out and f'text{SHOWN}' in out


def test_compare(tmp_path, capsys):
  query = f'={HTML}|{TITLE}'.replace(' ', '_')
  (tmp_path / 'qrels.txt').write_text(f'q1 0 d1 1\n{query} 0 d1 1\n')
  (tmp_path / 'a.run').write_text('q1 Q0 d1 1 1.0 t\n')
  compare.main([f'{tmp_path}/a.run', f'--qrels={tmp_path}/qrels.txt', f'--out={tmp_path}/out',
                '--samples=100'])  # fmt: skip
  out, err = capsys.readouterr()
  assert not obeyed(out) and not obeyed(err)
  assert 'no documents for 1 of 2 queries' in err and SHOWN in err
  written = (tmp_path / 'out' / 'compare.md').read_text()
  assert '<img' not in written and '&lt;img' in written and not obeyed(written)
  with (tmp_path / 'out' / 'per_query.csv').open(newline='') as file:
    assert {row['query_id'] for row in csv.DictReader(file)} == {'q1', f"'{query}"}


def test_online(tmp_path, capsys):
  name = f'{HTML}|{TITLE}\n# x'
  rows = [ROW | {'user': f'u{i}', 'bucket': ('control', name)[i % 2]} for i in range(8)]
  log = write(tmp_path / 'log.jsonl', rows)
  online.main([str(log), f'--out={tmp_path}/out'])
  out = capsys.readouterr().out
  assert not obeyed(out) and SHOWN in out
  online.main([str(log), '--json'])
  printed = capsys.readouterr().out
  assert not obeyed(printed) and name in json.loads(printed)['buckets']
  written = (tmp_path / 'out' / 'online.md').read_text()
  assert '<img' not in written and '\n# x' not in written and not obeyed(written)
  for line in written.splitlines():
    if line.startswith('| '):  # as many cells as the table has columns
      assert line.replace(r'\|', '').count('|') in (7, 9)


@pytest.mark.parametrize('flags', [[], ['--json']])
def test_describe(tmp_path, capsys, flags):
  row = {'query': f'q{TITLE}', 'title': 't\x9b', 'summary': 's'}
  (tmp_path / 'f.jsonl').write_text(json.dumps(row) + '\n')
  describe.main([f'jsonl:{tmp_path}/f.jsonl', '--kind=clicks', *flags])
  assert not obeyed(capsys.readouterr().out)


def test_samples_of_pretraining(tmp_path, monkeypatch):
  text = f'`{HTML}`\n\n# x{TITLE}'
  encoded = types.SimpleNamespace(ids=cpt.jnp.arange(4), predict=(1, 3))
  monkeypatch.setattr(cpt.batches, 'encode_click', lambda *_: types.SimpleNamespace(docs=[encoded]))
  monkeypatch.setattr(cpt, 'generate', lambda *_, **__: [[1]])
  tokenizer = types.SimpleNamespace(decode=lambda *_, **__: text, eos_token_id=2)
  teacher = types.SimpleNamespace(tokenizer=tokenizer, prompt=lambda **_: None, network=None)
  settings = types.SimpleNamespace(cpt=types.SimpleNamespace(predict='document'))
  run = types.SimpleNamespace(config=settings, folder=lambda _: tmp_path)
  cpt.write_samples(run, teacher, None, [Click('q', 't', 's')])
  written = (tmp_path / 'samples.md').read_text()
  assert not obeyed(written) and '\n# x' not in written
  assert all(line.count('`` `') == 1 for line in written.splitlines()[2:])
