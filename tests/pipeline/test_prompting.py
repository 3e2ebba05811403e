"""LLM rankers in whole runs: as rows of the table, and as the teacher of a student."""

import json

import helpers
import jax
import llm_models
import numpy as np
import pytest

from disranker_jax import config as configs
from disranker_jax.data.named_contracts import NAMED
from disranker_jax.models import hf, network
from disranker_jax.pipeline import inputs, manifest, runner, systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.rankers.llm import ranker
from disranker_jax.rankers.llm.methods import GIVES, METHODS
from disranker_jax.stages import scored_records

PROMPTS = {'query_tokens': 8, 'doc_tokens': 12, 'window': 4, 'stride': 2, 'top': 3}

LIKELIHOOD = {
  'teacher__scorer': 'query_likelihood', 'teacher__template': '{title} {summary} {query}',
}  # fmt: skip


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return str(llm_models.write(tmp_path_factory.mktemp('llm') / 'chat-model'))


@pytest.fixture(scope='module')
def ready(tmp_path_factory):
  """Such a model as a reranker with a linear head."""
  folder = tmp_path_factory.mktemp('ready') / 'reranker'
  llm_models.without_weights(folder)
  net = network.from_hf(folder, head='rank')
  variables = jax.tree.map(np.asarray, net.init(jax.random.key(1)))
  hf.save(folder, net, jax.tree.map(lambda x: x * np.float32(6) if x.ndim > 1 else x, variables))
  llm_models.without_weights(folder)
  return str(folder)


def config(model, section, **changes):
  prompts = {f'{section}__prompts__{name}': value for name, value in PROMPTS.items()}
  return helpers.config(teacher__model=model, **prompts | changes)


class TestRows:
  STAGES = ('prepare', 'evaluate', 'report')

  def config(self, model, *rankers, **changes):
    return config(
      model, 'evaluate', stages=self.STAGES, evaluate__models=('random', 'bm25'),
      evaluate__rankers=rankers, **changes,
    )  # fmt: skip

  def test_each_has_metrics_and_costs_and_is_kept(self, model, tmp_path, monkeypatch):
    workdir, names = tmp_path / 'run', ('yes_no', 'prp_allpair', 'listwise')
    runner.run(self.config(model, *names), workdir)
    results = helpers.load(workdir / 'evaluate' / 'results.json')
    assert list(results) == ['random', 'bm25', *names]
    run = (workdir / 'evaluate' / 'prp_allpair.run').read_text().split('\n')
    sizes = {}
    for line in filter(None, run):
      sizes[line.split()[0]] = sizes.get(line.split()[0], 0) + 1
    pairs = sum(n * (n - 1) for n in sizes.values()) / len(sizes)
    assert results['prp_allpair']['prompts_per_query'] == pairs
    assert results['yes_no']['prompts_per_query'] == sum(sizes.values()) / len(sizes)
    assert results['yes_no']['title'] == 'pointwise yes/no (chat-model)'
    assert 0 <= results['prp_allpair']['conflict_rate'] <= 1
    assert all(results[name]['ms_per_query'] > 0 for name in names)
    # The method's own ties: its scores have none, because equal ones keep the documents' order.
    tied = f'{results["prp_allpair"]["tied_rate"]:.1%} of the pairs tied'
    assert tied in results['prp_allpair']['note'] and results['prp_allpair']['tie_rate'] == 0
    text = (workdir / 'report' / 'report.md').read_text()
    [head] = [line for line in text.splitlines() if line.startswith('| model | PNR')]
    assert '| prompts | tokens | ms per query | conflicts | ties |' in head

    # A row more costs only itself, and other windows cost only the rows that have some.
    ranked, seen = ranker.LLMRanker.ranked, []

    def watched(self, parts):
      seen.append(self.plan.method.name)
      return ranked(self, parts)

    monkeypatch.setattr(ranker.LLMRanker, 'ranked', watched)
    runner.run(self.config(model, *names, 'setwise'), workdir)
    assert seen == ['setwise']
    assert helpers.load(workdir / 'evaluate' / 'results.json')['listwise'] == results['listwise']

  @pytest.mark.parametrize(
    'changes, message',
    [
      ({'evaluate__prompts__stride': 9}, 'config.evaluate.prompts: stride: is 9; must be at most'),
      ({'evaluate__prompts__contract': 'yes_no'}, 'fits none of config.evaluate.rankers'),
      ({'evaluate__prompts__instruction': 'find'}, 'listwise has no {instruction}'),
      ({'evaluate__prompts__window': 21}, 'at most 20 documents, not 21'),
      ({'evaluate__prompts__doc_tokens': 2000}, 'lower window or doc_tokens'),
      ({'evaluate__runs': {'listwise': 'trec:a.run'}}, 'is the name of another row'),
    ],
  )
  def test_what_does_not_fit_is_told_before_the_first_stage(
    self, model, tmp_path, changes, message
  ):
    found = helpers.refused(self.config(model, 'listwise', **changes), tmp_path / 'run')
    assert message in found and 'config.' in found
    assert not (tmp_path / 'run' / 'evaluate').exists()

  def test_a_teacher_without_the_labels_is_told_too(self, tmp_path):
    found = helpers.refused(self.config('tiny-decoder', 'yes_no'), tmp_path / 'run')
    assert "config.teacher.model='tiny-decoder': contract 'yes_no': the label ' Yes'" in found

  def test_a_teacher_that_is_no_decoder_is_told_too(self, tmp_path):
    found = helpers.refused(self.config('tiny-encoder', 'yes_no'), tmp_path / 'run')
    assert "config.teacher.model='tiny-encoder'" in found and 'answers no prompts' in found

  def test_a_head_that_is_not_trained_is_told(self, model, tmp_path):
    found = helpers.refused(self.config(model, 'rankllama_v1'), tmp_path / 'run')
    assert "config.evaluate.rankers: 'rankllama_v1' reads a linear head" in found
    found = helpers.refused(self.config(model, 'rankllama_v1', teacher__ready=True), tmp_path / 'a')
    assert 'has no head of its own that gives a score (score.weight missing)' in found


class TestTeacher:
  STAGES = ('prepare', 'score', 'distill', 'evaluate')

  def config(self, model, method, **changes):
    options = {'stages': self.STAGES, 'evaluate__models': ('student',), 'score__method': method}
    return config(model, 'score', **options | changes)

  def test_a_student_learns_from_soft_points(self, model, tmp_path):
    workdir = tmp_path / 'run'
    runner.run(self.config(model, 'prp_allpair_soft', distill__normalize_scores='query'), workdir)
    done = helpers.load(workdir / 'score' / 'manifest.json')['results']
    assert done['prompts'] > 0 and 0 <= done['conflict_rate'] <= 1
    stats = helpers.load(workdir / 'score' / 'stats.json')
    # The points of a query are its pairs: their mean is (n - 1) / 2.
    for note in (workdir / 'score' / 'shards' / 'candidates').glob('_*.json'):
      counts = json.loads(note.read_text())['counts']
      assert sum(c['prompts'] for c in counts) == sum(2 * c['pairs'] for c in counts)
    assert stats['candidates']['mean'] > 0
    assert 'student' in helpers.load(workdir / 'evaluate' / 'results.json')
    changed = self.config(
      model, 'prp_allpair_soft', distill__normalize_scores='query', score__prompts__doc_tokens=11
    )
    assert 'its input score.method has changed' in helpers.refused(changed, workdir)

  @pytest.mark.parametrize(
    'name',
    [
      'query_likelihood', 'rankllama_v1', 'prp_sliding', 'setwise', 'listwise_permutation',
      'listwise_text',
    ],
  )  # fmt: skip
  def test_every_kind_of_method_scores(self, model, ready, tmp_path, name):
    """Every kind of answer and of score, with the loss that the table of the docs names."""
    loss, normalize = GIVES[METHODS[name].gives].learn
    head = NAMED[METHODS[name].contract].formula == 'head'
    more = {'teacher__ready': True} if head else {}
    c = self.config(
      ready if head else model, name, distill__loss=loss, distill__normalize_scores=normalize,
      data__limit__candidates=4, score__group_size=4, score__judgements=False,
      score__max_tied_share=1.0, score__prompts__children=2, **more,
    )  # fmt: skip
    configs.check(c)
    runner.run(c, tmp_path / 'run', stages=['prepare', 'score'])
    scored = scored_records.open_scored(Run(c, tmp_path / 'run', None))
    assert len(scored) == 4
    for _, scores_N in scored:
      assert np.isfinite(scores_N).all() and np.ptp(scores_N) > 0

  def test_settings_of_prompts_that_are_not_used_make_nothing_stale(self, model):
    plain, other = (self.config(model, '', score__prompts__doc_tokens=n) for n in (11, 12))
    stage = systems.find(plain, 'score')
    found = [
      (manifest.settings_of(c, stage.sections(c)), inputs.outside(c, stage, None))
      for c in (plain, other)
    ]
    assert found[0] == found[1]
    assert not [key for key in found[0][0] if key.startswith(('score.method', 'score.prompts'))]

  def test_points_that_are_mostly_tied_are_refused(self, model, tmp_path):
    config = self.config(
      model, 'prp_allpair', stages=('prepare', 'score'), score__max_tied_share=0.0
    )
    found = helpers.refused(config, tmp_path / 'run')
    assert "config.score.method='prp_allpair': gives the same score to" in found
    assert (tmp_path / 'run' / 'score' / 'teacher.run.gz').exists()

  @pytest.mark.parametrize(
    'method, changes, message',
    [
      ('prp_heapsort', {}, "gives positions, and config.distill.loss='hybrid' learns their"),
      ('setwise_heapsort', {'distill__loss': 'margin_mse'}, "loss='margin_mse' learns their"),
      ('listwise', {}, "set config.distill.normalize_scores='query'"),
      ('query_likelihood', {}, "set config.distill.normalize_scores='query'"),
      ('yes_no', {'stages': ('prepare', 'sft', 'score')}, 'take sft out of config.stages'),
      ('yes_no', {'score__prompts__contract': 'prp'}, 'needs one with one document per prompt'),
      ('yes_no', {'score__prompts__instruction': 'find'}, 'yes_no has no {instruction}'),
      ('yes_no', {'teacher__init_from': 'old'}, "init_from='old' would have no effect"),
      ('rankllama_paper', LIKELIHOOD, "set config.teacher.scorer='score_head'"),
      ('rankllama_paper', {}, 'has no head of its own (score.weight missing), so the scores would'),
      ('', {}, 'lists score without sft'),
    ],
  )
  def test_what_does_not_fit_is_told(self, model, tmp_path, method, changes, message):
    assert message in helpers.refused(self.config(model, method, **changes), tmp_path / 'run')
