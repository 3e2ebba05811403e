"""LLM rankers in two processes: each ranks its share of the queries, with the result of one."""

import json

import gang
import helpers
import llm_models
import numpy as np
import pytest

from disranker_jax.evaluation import runs
from disranker_jax.rankers.llm import costs

QUERIES = 10
STAGES = ('prepare', 'cpt', 'score', 'evaluate')
RANKERS = ('yes_no', 'prp_heapsort', 'listwise_text')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return llm_models.write(tmp_path_factory.mktemp('llm') / 'model')


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """Queries with 1 to 5 documents, so that a sort takes another number of steps in each process."""
  rng, words = np.random.default_rng(0), llm_models.WORDS.split()
  file = tmp_path_factory.mktemp('data') / 'rows.jsonl'
  with file.open('w') as out:
    for q in range(QUERIES):
      query = ' '.join(rng.choice(words, 3))
      for d in range(1 + q % 5):
        row = {'query_id': f'q{q}', 'query': query, 'doc_id': f'd{d}', 'title': '', 'rank': d + 1}
        out.write(json.dumps(row | {'summary': ' '.join(rng.choice(words, 6))}) + '\n')
  return f'jsonl:{file}'


def both(tmp_path, *arguments):
  """The folders of a command in one process, and in two; {folder} is replaced in the arguments."""
  for name, count in (('one', 1), ('two', 2)):
    folder = tmp_path / name
    folder.mkdir()
    typed = [str(word).replace('{folder}', str(folder)) for word in arguments]
    ended = gang.run(folder, typed, count, devices=2 // count)
    assert ended == [0] * count, (folder / 'process.0.log').read_text()[-3000:]
  return tmp_path / 'one', tmp_path / 'two'


def assert_equal(ours: dict, theirs: dict) -> None:
  """The same documents of the same queries, with scores that differ by rounding."""
  assert {q: sorted(docs) for q, docs in ours.items()} == {q: sorted(d) for q, d in theirs.items()}
  for query, docs in ours.items():
    for doc, score in docs.items():
      assert theirs[query][doc] == pytest.approx(score, abs=2e-4)


def test_the_command_writes_the_run_of_one_process(model, rows, tmp_path):
  one, two = both(
    tmp_path, '-m', 'disranker_jax', 'llm-rank', '--model', model, '--method',
    'prp_heapsort', '--source', rows, '--out', '{folder}/out.run', '--doc-tokens', 16,
    '--query-tokens', 8, '--batch-tokens', 512, '--precision', 'float32',
  )  # fmt: skip
  ours, theirs = (runs.read_run(folder / 'out.run') for folder in (one, two))
  assert len(ours) == QUERIES
  assert_equal(ours, theirs)
  spent, wanted = (helpers.load(folder / 'out.run.json') for folder in (two, one))
  assert spent['per_query'] == wanted['per_query']
  assert not list(two.glob('.out*'))


@pytest.mark.slow  # three processes that compile a training step and four kinds of prompts
def test_a_run_has_the_scores_rows_and_costs_of_one_process(model, tmp_path):
  prompts = {'query_tokens': 8, 'doc_tokens': 12, 'window': 4, 'stride': 2, 'top': 3}
  one, two = both(
    tmp_path, '-m', 'disranker_jax.main', '--no-estimate',
    *helpers.flags(
      '{folder}/run', stages=','.join(STAGES), teacher__model=model, cpt__trainable='.*',
      mesh__data=1, mesh__fsdp=2, teacher__precision='float32', score__max_tied_share=1.0,
      score__method='prp_allpair_soft',
      evaluate__models='random', evaluate__rankers=RANKERS,
      **{f'{s}__prompts__{k}': v for s in ('score', 'evaluate') for k, v in prompts.items()},
    ),
  )  # fmt: skip
  scored = [runs.read_run(folder / 'run' / 'score' / 'teacher.run.gz') for folder in (one, two)]
  assert_equal(*scored)
  ours, theirs = (helpers.load(f / 'run' / 'evaluate' / 'results.json') for f in (one, two))
  for name in RANKERS:
    assert_equal(*(runs.read_run(f / 'run' / 'evaluate' / f'{name}.run') for f in (one, two)))
    for fact in ('prompts', 'tokens', 'cut_rate', 'prompts_per_query'):
      assert ours[name][fact] == pytest.approx(theirs[name][fact]), (name, fact)


def test_counts_of_processes_are_added_beyond_32_bits(monkeypatch):
  def as_of_two(values):
    assert values.dtype == np.int32
    return 2 * values

  monkeypatch.setattr(costs.processes, 'add_up', as_of_two)
  found = costs.of_all_processes([{'tokens': 3 << 31, 'prompts': 7}, {'prompts': 1}])
  assert found['tokens'] == 6 << 31 and found['prompts'] == 16
