"""A bidirectional teacher through the pipeline: hidden tokens, labels, a mean as the score."""

import json

import helpers

from disranker_jax.pipeline import runner


def test_it_learns_from_hidden_tokens_and_labels_and_is_exported(tmp_path):
  config = helpers.config(
    stages=('prepare', 'cpt', 'sft', 'score', 'evaluate', 'export'), export__models=('teacher',),
    evaluate__models=('zero_shot', 'teacher'), teacher__bidirectional=True,
    teacher__pooling='mean', cpt__objective='masked', cpt__mask_share=0.3,
    cpt__learning_rate=0.01, validation__share=0.0,
  )  # fmt: skip
  runner.run(config, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / 'cpt' / 'metrics.jsonl').open()]
  losses = [row['loss'] for row in rows if 'loss' in row]
  assert losses[-1] < losses[0] - 0.5
  assert not (tmp_path / 'cpt' / 'samples.md').exists()
  folder = tmp_path / 'export' / 'teacher'
  assert json.loads((folder / 'config.json').read_text())['use_bidirectional_attention'] is True
  card = (folder / 'README.md').read_text()
  assert "disranker_jax.load('teacher')" in card and 'AutoModel' not in card
  assert '| disranker_jax.load |' in card
  results = json.loads((tmp_path / 'evaluate' / 'results.json').read_text())
  assert {row['queries'] for row in results.values()} == {6}
