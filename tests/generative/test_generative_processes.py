"""Two processes with a device each make what one process with two devices makes, in every stage."""

import json
import pathlib

import gang
import numpy as np
import pytest
import trainer
from small_collection import collection

from disranker_jax.evaluation import runs
from disranker_jax.generative.retrieved import FORMAT, read
from disranker_jax.rankers.shards import Shards

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import tiny_dgr
def get_config():
  return tiny_dgr.config({addresses!r}, **{changes!r})
"""
# Without pseudo-queries and without a teacher, and all stages.
LABELS = {
  'stages': ('prepare', 'index', 'memorise', 'retrieve', 'ltrgr', 'search'),
  'retriever__views': ('title', 'body'), 'ltrgr__refresh': 2, 'align__refresh': 0,
  'search__models': ('bm25', 'memorised', 'ltrgr'),
}  # fmt: skip
SHARED = {f'{stage}__data_shards': 2 for stage in ('cpt', 'memorise', 'ltrgr', 'align')}
SHARED['ltrgr__epochs'] = 4.0  # of the few queries whose page was found


def both(tmp_path: pathlib.Path, **changes) -> list[pathlib.Path]:
  """The workdirs of one process, and of two."""
  (tmp_path / 'data').mkdir()
  file, tests = tmp_path / 'config.py', str(pathlib.Path(__file__).parent)
  addresses = collection(tmp_path / 'data')
  file.write_text(CONFIG.format(tests=tests, addresses=addresses, changes=SHARED | changes))
  folders = []
  for name, count in (('one', 1), ('two', 2)):
    arguments = ['-m', 'disranker_jax.main', f'--config={file}', '--no-estimate']
    folder = tmp_path / name
    ended = gang.run(folder, [*arguments, f'--workdir={folder / "run"}'], count, devices=2 // count)
    assert ended == [0] * count, (folder / 'process.0.log').read_text()[-3000:]
    folders.append(folder / 'run')
  return folders


def found(folder: pathlib.Path) -> list[tuple]:
  """(query_id, pages, tokens of all n-grams) of shards, and their numbers apart."""
  count = sum(json.loads(note.read_text())['queries'] for note in folder.glob('_*.json'))
  rows, numbers = [], []
  for one in read(Shards(folder, count, None, FORMAT)):
    matches = [match for _, page in one.pages for match in page.matches]
    rows.append((one.query_id, [d for d, _ in one.pages], [m.ngram.tokens for m in matches]))
    numbers += [page.score for _, page in one.pages] + [m.ngram.logprob for m in matches]
  return rows, numbers


@pytest.mark.parametrize(
  'changes',
  [
    pytest.param(LABELS, id='labels'),  # `make test-more` has it
    # Three processes that compile every stage.
    pytest.param({}, id='all stages', marks=pytest.mark.slow),
  ],
)
def test_two_processes_make_what_one_makes(tmp_path, changes):
  stages = ['memorise', 'ltrgr'] if changes else ['cpt', 'memorise', 'ltrgr', 'align']
  assert_same(*both(tmp_path, **changes), stages)


def assert_same(one: pathlib.Path, two: pathlib.Path, stages: list[str]) -> None:
  """The same index, and the same losses, pages and rankings up to rounding."""
  for name in ('text.npy', 'starts.npy', 'suffixes/order.npy'):
    assert (one / 'index' / name).read_bytes() == (two / 'index' / name).read_bytes()
  for stage in stages:
    losses = [trainer.losses(folder / stage) for folder in (one, two)]
    assert len(losses[0]) >= 3
    np.testing.assert_allclose(*losses, rtol=1e-3, err_msg=stage)
  for place in ('retrieve/shards', f'{stages[-1]}/found/000000002'):
    (ours, numbers), (theirs, wanted) = (found(folder / place) for folder in (two, one))
    assert ours == theirs and any(pages for _, pages, _ in ours)
    np.testing.assert_allclose(numbers, wanted, rtol=1e-3, atol=1e-3)
  results = [json.loads((folder / 'search/results.json').read_text()) for folder in (one, two)]
  assert results[0].keys() == results[1].keys()
  for name in results[0]:
    ours, theirs = (runs.read_run(folder / f'search/{name}.run') for folder in (two, one))
    assert ours.keys() == theirs.keys()
    for query, scores in theirs.items():
      assert ours[query] == pytest.approx(scores, rel=1e-3, abs=1e-3)
