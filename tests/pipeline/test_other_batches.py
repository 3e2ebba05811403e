"""A run goes on in other batches, as another mesh may need: what is finished is kept."""

import helpers
import pytest

from disranker_jax.errors import Stopped
from disranker_jax.pipeline import runner
from disranker_jax.rankers import shards

STAGES = ('prepare', 'score', 'evaluate')


def config(**changes):
  """A teacher that scores as it is."""
  return helpers.config(
    stages=STAGES, teacher__scorer='query_likelihood', score__judgements=False,
    teacher__template='{title} : {summary} : {query}', evaluate__models=('bm25', 'zero_shot'),
    **changes,
  )  # fmt: skip


def test_scores_and_rows_are_kept(tmp_path, monkeypatch):
  whole, run = tmp_path / 'whole', tmp_path / 'run'
  runner.run(config(score__unit_queries=2), whole)
  write, written = shards.Shards.write, []

  def stopping(self, *args):
    write(self, *args)
    written.append(args)
    if len(written) == 3:
      raise Stopped('')

  with monkeypatch.context() as m:
    m.setattr(shards.Shards, 'write', stopping)
    with pytest.raises(Stopped):
      runner.run(config(score__unit_queries=2), run)
  kept = {f: f.stat().st_mtime_ns for f in (run / 'score' / 'shards').rglob('*.parquet')}
  other = {'score__batch_rows': 16, 'score__unit_queries': 0, 'evaluate__batch_rows': 16}
  runner.run(config(**other), run)
  assert len(kept) == 3 and {f: f.stat().st_mtime_ns for f in kept} == kept
  ours, theirs = (helpers.load(w / 'score' / 'stats.json') for w in (run, whole))
  assert ours['candidates']['pairs'] == theirs['candidates']['pairs']
  assert ours['candidates']['mean'] == pytest.approx(theirs['candidates']['mean'], rel=1e-5)
  assert helpers.metrics(run) == helpers.metrics(whole)
  before = helpers.snapshot(run)
  runner.run(config(), run)
  assert helpers.snapshot(run) == before
