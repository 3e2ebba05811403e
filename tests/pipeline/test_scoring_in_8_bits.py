"""Runs whose teacher scores in 8 bits: gate, notes, resuming, and other settings."""

import json
import shutil

import helpers
import pytest

from disranker_jax.pipeline import runner
from disranker_jax.pipeline.stage import Run
from disranker_jax.report import facts, findings

STAGES = ['prepare', 'cpt', 'sft', 'score']
# A random model of two narrow layers is no teacher; its order changes more than a real one's.
WIDE = {'score__quantize_gate__min_tau': -1.0, 'score__quantize_gate__max_ndcg_change': 1.0}


def options(**more):
  return {'score__unit_queries': 4, 'score__quantize': 'int8', **WIDE, **more}


def shards(workdir):
  folder = workdir / 'score' / 'shards'
  return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob('*') if f.is_file()}


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  """A run up to the scores in 8 bits."""
  workdir = tmp_path_factory.mktemp('scored') / 'run'
  runner.run(helpers.config(**options()), workdir, stages=STAGES)
  return workdir


def test_manifest_notes_and_report_say_how_it_scored(scored):
  manifest = helpers.load(scored / 'score' / 'manifest.json')
  assert manifest['inputs']['score.quantize'] == 'int8'
  found = manifest['results']['quantised']
  assert found['format'] == 'int8' and found['ndcg_gains'] == 'labels'
  assert 0.5 < found['tau'] <= 1 and found['pairs'] > 100
  notes = [json.loads(text) for name, text in shards(scored).items() if name.endswith('.json')]
  assert notes and all(note['made']['quantize'] == 'int8' for note in notes)
  gathered = facts.gather(Run(helpers.config(**options()), scored, None))
  [sentence] = [s for s in findings.sentences(gathered) if 'int8' in s]
  assert sentence.startswith(f"the teacher scored in int8: Kendall's tau {found['tau']:.4f}")


def test_the_scores_are_near_those_in_full_precision_but_not_the_same(scored, tmp_path):
  copy = shutil.copytree(scored, tmp_path / 'run')
  runner.run(helpers.config(**options(score__quantize='')), copy, stages=['score'], rerun=['score'])
  full, small = (helpers.load(w / 'score' / 'stats.json')['candidates'] for w in (copy, scored))
  assert small['mean'] != full['mean']
  assert small['std'] == pytest.approx(full['std'], rel=0.2)
  assert 'quantised' not in helpers.load(copy / 'score' / 'manifest.json')['results']


def test_what_is_missing_is_scored_again_to_the_last_bit_without_another_gate(
  scored, tmp_path, capsys
):
  copy = shutil.copytree(scored, tmp_path / 'run')
  manifest = helpers.load(copy / 'score' / 'manifest.json')
  gate = (copy / 'score' / 'quantise_gate.json').read_bytes()
  notes = sorted((copy / 'score' / 'shards' / 'candidates').glob('_*.json'))
  notes[1].unlink()
  (copy / 'score' / 'manifest.json').write_text(json.dumps(manifest | {'status': 'running'}))
  capsys.readouterr()
  runner.run(helpers.config(**options()), copy, stages=['score'])
  assert shards(copy) == shards(scored)
  assert (copy / 'score' / 'quantise_gate.json').read_bytes() == gate
  said = capsys.readouterr().err
  assert 'score a sample' not in said and "score in int8: Kendall's tau" in said


def test_another_setting_is_refused_and_limits_are_not_one(scored, tmp_path):
  copy = shutil.copytree(scored, tmp_path / 'run')
  message = helpers.refused(helpers.config(**options(score__quantize='')), copy, stages=['score'])
  assert 'score.quantize is no longer in the config' in message and '--rerun' in message
  message = helpers.refused(
    helpers.config(**options(score__quantize='fp8')), copy, stages=['score']
  )
  assert 'score.quantize has changed' in message
  before = shards(copy)
  changed = options(score__quantize_gate__max_ndcg_change=0.9)
  runner.run(helpers.config(**changed), copy, stages=['score'])
  assert shards(copy) == before


def test_a_gate_that_fails_stops_before_the_pass_and_is_kept(scored, tmp_path, capsys):
  copy = shutil.copytree(scored, tmp_path / 'run')
  shutil.rmtree(copy / 'score')
  strict = helpers.config(**options(score__quantize_gate__min_tau=1.0))
  message = helpers.refused(strict, copy, stages=['score'])
  assert message.startswith("config.score.quantize='int8': Kendall's tau ")
  assert 'outside config.score.quantize_gate.min_tau=1' in message
  assert not list((copy / 'score').glob('shards/*/*.parquet'))
  # A repetition does not score the sample again.
  capsys.readouterr()
  assert helpers.refused(strict, copy, stages=['score']) == message
  assert 'score a sample' not in capsys.readouterr().err
