"""What the tests of whole runs share: the tiny config, small own data, commands and snapshots."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from disranker_jax.errors import UserError
from disranker_jax.pipeline import runner

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / 'configs' / 'tiny.py'
STAGE_FOLDERS = (
  'data', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate', 'export', 'report',
)  # fmt: skip
TRAINING = ('cpt', 'sft', 'student_sft', 'distill')
# Fewer queries than configs/tiny.py has: what is tested is the way through.
SMALLER = {
  'data.limit.judgements': 16, 'data.limit.candidates': 16, 'data.limit.test': 6,
  'score.shard_seconds': 0.0,  # a shard for each unit of queries
}  # fmt: skip
STEPS = 6  # of every training stage


def config(**changes):
  """configs/tiny.py, smaller, with changes by dotted key (written with two underscores)."""
  tiny = runpy.run_path(str(TINY))['get_config']()
  tiny.update_from_flattened_dict(SMALLER)
  tiny.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return tiny


def flags(workdir, **changes) -> list[str]:
  """The command line that means the same as `config(**changes)`."""
  overrides = SMALLER | {k.replace('__', '.'): v for k, v in changes.items()}
  changed = [f'--config.{key}={value}' for key, value in overrides.items()]
  return [f'--config={TINY}', f'--workdir={workdir}', *changed]


def command(*arguments) -> subprocess.CompletedProcess:
  """Runs Python with arguments as the tests' own jax is set, until it ends or dies."""
  env = os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'PYTHONPATH': str(ROOT)}
  return subprocess.run(
    [sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300
  )


def main(*arguments) -> subprocess.CompletedProcess:
  """Runs `python -m disranker_jax.main` with flags."""
  return command('-m', 'disranker_jax.main', *arguments)


def refused(config, workdir, **options) -> str:
  """The one-line message with which the pipeline turns a config down."""
  with pytest.raises(UserError) as caught:
    runner.run(config, workdir, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def snapshot(workdir: pathlib.Path) -> dict[str, tuple[int, bytes]]:
  """{path: (time of change, content)} of every file under the stages' folders."""
  files = (f for name in STAGE_FOLDERS for f in (workdir / name).rglob('*') if f.is_file())
  return {str(f.relative_to(workdir)): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def load(file: pathlib.Path):
  return json.loads(file.read_text())


def metrics(workdir: pathlib.Path) -> dict:
  """results.json without titles and the one value that is measured by a clock."""
  results = load(workdir / 'evaluate' / 'results.json')
  left_out = ('title', 'ms_per_pair')
  return {m: {k: v for k, v in row.items() if k not in left_out} for m, row in results.items()}


def run_scores(file: pathlib.Path) -> dict[str, dict[str, float]]:
  """{query: {document: score}} of a TREC run."""
  scores = {}
  for line in file.read_text().splitlines():
    query, _, doc, _, score, _ = line.split(' ')
    scores.setdefault(query, {})[doc] = float(score)
  return scores


def losses(file: pathlib.Path) -> list[tuple[int, float]]:
  """[(step, loss)] of a training stage's metrics.jsonl."""
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  return [(row['step'], row['loss']) for row in rows]


def write_jsonl(file: pathlib.Path, rows) -> pathlib.Path:
  """Rows as JSON lines; text is written as it is."""
  file.write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in rows))
  return file


WORDS = [
  'list',
  'file',
  'string',
  'path',
  'number',
  'thread',
  'socket',
  'parser',
  'queue',
  'module',
]


def own_rows(kind: str, queries: int = 6, documents: int = 4) -> list[dict]:
  """A small made-up search log; the page whose title is the query's word has the best label."""
  rows = []
  page = (
    't' if kind == 'test' else 'd'
  )  # with the same documents, test and labels would be of one topic
  for i in range(queries):
    word = WORDS[i % len(WORDS)]
    # A test of the queries that are learned is refused.
    query = f'how to {"close" if kind == "test" else "open"} a {word}'
    if kind == 'clicks':
      rows.append({'query': query, 'title': word, 'summary': f'Returns a {word} to the caller.'})
      continue
    for j in range(documents):
      title = WORDS[(i + j) % len(WORDS)]
      row = {
        'query_id': f'{kind}{i}', 'query': query, 'doc_id': f'{page}{j}', 'title': title,
        'summary': f'Opens or closes a {title}.', 'rank': documents - j,
      }  # fmt: skip
      rows.append(row if kind == 'candidates' else row | {'label': 4 if j == 0 else j % 2})
  return rows


def own_data(folder: pathlib.Path) -> dict[str, str]:
  """Writes all four files; returns the changes to the config that read them."""
  kinds = ('clicks', 'judgements', 'candidates', 'test')
  return {
    f'data__{kind}': f'jsonl:{write_jsonl(folder / f"{kind}.jsonl", own_rows(kind))}'
    for kind in kinds
  }
