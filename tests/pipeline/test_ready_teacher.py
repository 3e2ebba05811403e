"""A ready reranker as the teacher, as it is: scored, evaluated and distilled without training."""

import helpers
import numpy as np
import pytest
from ready_rerankers import transformers_folder

from disranker_jax.data import store
from disranker_jax.data.prompts import document_text
from disranker_jax.pipeline import runner
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import score

STAGES = ('prepare', 'score', 'distill', 'evaluate', 'export')


def config(folder, tmp_path, **changes):
  ready = {
    'stages': STAGES, 'teacher__model': str(folder), 'teacher__ready': True,
    'evaluate__models': ('bm25', 'teacher', 'student'), 'score__judgements': False,
    'distill__hard_label_weight': 0.0, 'export__formats': (),
  }  # fmt: skip
  return helpers.config(**helpers.own_data(tmp_path), **ready | changes)


@pytest.mark.parametrize('kind, reads', [('bert', 'template'), ('qwen3', 'pair')])
def test_it_scores_as_sentence_transformers_does_and_a_student_learns_it(kind, reads, tmp_path):
  torch = pytest.importorskip('torch')
  cross_encoder = pytest.importorskip('sentence_transformers').CrossEncoder
  folder = transformers_folder(tmp_path / 'ready', kind)
  c = config(folder, tmp_path, teacher__input=reads, export__models=('student', 'teacher'))
  workdir = tmp_path / 'run'
  runner.run(c, workdir)
  candidates = list(store.open('candidates', workdir / 'data' / 'candidates'))
  shards = score.open_shards(Run(c, workdir, None), 'candidates', len(candidates))
  ours = {(query, doc): value for query, doc, value in shards.rows()}
  texts = {(g.query_id, d.doc_id): (g.query, document_text(d)) for g in candidates for d in g.docs}
  assert ours.keys() == texts.keys() and len(ours) == 24
  theirs = cross_encoder(str(folder), device='cpu').predict(
    [texts[pair] for pair in ours], activation_fn=torch.nn.Identity(), show_progress_bar=False
  )
  np.testing.assert_allclose(list(ours.values()), theirs, atol=1e-4)
  results = helpers.load(workdir / 'evaluate' / 'results.json')
  assert {'teacher', 'student'} <= results.keys()


def test_what_does_not_go_with_a_ready_reranker_is_told(tmp_path):
  pytest.importorskip('torch')
  folder = transformers_folder(tmp_path / 'ready', 'bert')
  message = helpers.refused(config(folder, tmp_path, stages=('prepare', 'sft', 'score')), tmp_path)
  assert 'config.teacher.ready' in message and 'config.stages lists sft' in message
  message = helpers.refused(
    config(folder, tmp_path, teacher__scorer='query_likelihood'), tmp_path / 'run'
  )
  assert 'config.teacher.ready' in message and "scorer='score_head'" in message
  # A base model has no head; the message comes before the first stage.
  message = helpers.refused(config('tiny-decoder', tmp_path), tmp_path / 'run')
  assert message.startswith("config.teacher.model='tiny-decoder'")
  assert 'has no head of its own' in message and 'score.weight' in message
  several = transformers_folder(tmp_path / 'several', 'bert', labels=3)
  message = helpers.refused(config(several, tmp_path), tmp_path / 'run')
  assert message.startswith('config.teacher.model=') and 'it has 3' in message
