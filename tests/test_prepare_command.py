"""`disranker prepare` as a command: killed, with wrong flags, read back by address."""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import pytest

from disranker_jax import config as configs
from disranker_jax.commands import prepare
from disranker_jax.data import preparing, sources, store
from disranker_jax.errors import UserError
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import prepare as prepare_stage

ROOT = pathlib.Path(__file__).parents[1]
NEGATIVES = ('--negatives', '3', '--kind', 'judgements')


def command(*arguments, **options):
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  line = [sys.executable, '-m', 'disranker_jax', 'prepare', *map(str, arguments)]
  return subprocess.Popen(
    line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
  )


def write(path, rows, bad=0):
  row = {'query': 'red fox', 'title': 'a page about foxes', 'summary': 'words ' * 30}
  with path.open('w') as file:
    for i in range(rows):
      name = {'query_id': f'q{i // 10}', 'doc_id': f'd{i % 10}', 'query': f'fox {i // 10}'}
      file.write(json.dumps(row | name) + '\n')
    file.writelines('{"broken": \n' for _ in range(bad))
  return f'jsonl:{path}'


def test_a_killed_command_continues_to_the_same_bytes(tmp_path):
  address = write(tmp_path / 'a.jsonl', 120_000, bad=2)
  flags = ('--source', address, '--on-bad-row', 'quarantine', '--out')
  whole = command(*flags, tmp_path / 'whole')
  journal = tmp_path / '.out.partial' / 'journal.json'
  process = command(*flags, tmp_path / 'out')
  deadline = time.monotonic() + 120
  while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL and journal.exists()
  again = command(*flags, tmp_path / 'out')
  stdout, stderr = again.communicate()
  assert again.returncode == 0 and 'continues after' in stderr, stderr
  assert '12,000 queries of 120,002 rows, 2 bad' in stdout
  assert whole.wait() == 0
  files = [
    {f.name: f.read_bytes() for f in (tmp_path / n).iterdir() if f.name != 'prepared.json'}
    for n in ('whole', 'out')
  ]
  assert files[0] == files[1] and len(files[0]) >= 3
  first, second = (tmp_path / f'{n}.quarantine.jsonl' for n in ('whole', 'out'))
  assert first.read_bytes() == second.read_bytes()


def test_what_it_wrote_is_an_address(tmp_path, capsys):
  address = write(tmp_path / 'a.jsonl', 40)
  prepare.main(['--source', address, '--out', str(tmp_path / 'out')])
  assert '4 queries of 40 rows, 0 bad' in capsys.readouterr().out
  found = list(sources.read(f'tfds:{tmp_path}/out', 'candidates'))
  assert list(map(repr, found)) == list(map(repr, sources.read(address, 'candidates')))


def test_teachers_and_negatives_by_flags(tmp_path):
  docs = [{'doc_id': f'd{i}', 'title': f'fox {i}', 'summary': ''} for i in range(30)]
  (tmp_path / 'docs.jsonl').write_text(''.join(json.dumps(doc) + '\n' for doc in docs))
  (tmp_path / 'queries.tsv').write_text('q1\tfox\n')
  (tmp_path / 'qrels.txt').write_text('q1 0 d3 1\n')
  (tmp_path / 'bm25.run').write_text(''.join(f'q1 Q0 d{i} {i + 1} {-i} x\n' for i in range(30)))
  (tmp_path / 't.run').write_text(''.join(f'q1\td{i}\t{i % 7}\n' for i in range(30)))
  flags = ['--source', f'trec:{tmp_path}', '--kind', 'judgements', '--out', str(tmp_path / 'out')]
  flags += ['--teachers', f'trec:{tmp_path}/t.run', '--negatives', '5']
  flags += ['--min-rank', '11', '--max-rank', '30', '--filter-false-negatives', '--margin', '1']
  prepare.main(flags)
  (group,) = store.open('judgements', tmp_path / 'out')
  negatives = [doc for doc in group.docs if doc.label == 0]
  assert len(negatives) == 5 and all(11 <= doc.rank <= 30 for doc in negatives)
  assert all(doc.teacher == int(doc.doc_id[1:]) % 7 <= 2 for doc in negatives)
  # A run whose config asks for the same records takes them: it is the same job.
  config = configs.defaults()
  config.data.update(judgements=f'trec:{tmp_path}', teachers=(f'trec:{tmp_path}/t.run',))
  config.data.negatives.update(
    count=5, min_rank=11, max_rank=30, filter_false_negatives=True, margin=1.0
  )
  run = Run(config, tmp_path / 'run', None)
  by_flags = prepare.job_of(prepare.parse_args(flags)[0])
  assert preparing.take(prepare_stage.job_of(run, 'judgements'), by_flags)
  config.data.negatives.margin = 2.0
  assert prepare_stage.job_of(run, 'judgements').digest() != by_flags.digest()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--negatives', '3'], '--negatives: needs --kind judgements'),
    ([*NEGATIVES, '--min-rank', '9', '--max-rank', '2'], '--min-rank 9 --max-rank 2: must be'),
    ([*NEGATIVES, '--min-rank', '0'], '--min-rank 0'),
    ([*NEGATIVES, '--filter-false-negatives'], 'needs the scores of --teachers'),
    ([*NEGATIVES, '--margin', '1'], '--margin: needs --filter-false-negatives'),
    ([*NEGATIVES, '--margin', 'nan'], '--margin nan: must be a finite number'),
    (['--margin', '1'], '--margin: needs --negatives'),
    (['--filter-false-negatives'], '--filter-false-negatives: needs --negatives'),
    (['--max-rank', '10'], '--max-rank: needs --negatives'),
    (['--kind', 'clicks', '--teachers', 'trec:a.run'], '--teachers: score documents by their ids'),
    (['--limit', '-1'], '--limit'),
    (['--depth', '-1'], 'depth'),
  ],
)
def test_a_wrong_flag_is_refused_and_nothing_is_written(tmp_path, flags, message):
  with pytest.raises(UserError) as caught:
    prepare.main(['--source', 'python_docs:', '--out', str(tmp_path / 'out'), *flags])
  assert message in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_and_status_2(tmp_path):
  process = command('--source', f'jsonl:{tmp_path}/none', '--out', tmp_path / 'out')
  stdout, stderr = process.communicate()
  assert process.returncode == 2 and not stdout
  assert stderr.startswith('error: ') and len(stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize('order', ['sorted', 'shuffled'])
def test_memory_does_not_grow_with_the_rows(tmp_path, order):
  script = runpy.run_path(str(ROOT / 'benchmarks' / 'prepare.py'))
  peaks = []
  for rows in (150_000, 450_000):
    (folder := tmp_path / str(rows)).mkdir()
    script['write'](folder / 'rows.jsonl', rows, order)
    peaks.append(script['measure'](folder / 'rows.jsonl', 'candidates', folder)['memory_mb'])
  # 190 MB more of rows; what is held is 32 MB of them, and blocks of a few more runs.
  assert peaks[1] < peaks[0] + 30
