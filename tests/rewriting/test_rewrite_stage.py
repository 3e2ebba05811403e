"""The stage on a collection of forty pages: what it checks, writes and measures."""

import json
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from disranker_jax.config import check, defaults
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Click, Document
from disranker_jax.devices import memory, sharding
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.pipeline import steps
from disranker_jax.rewriting import packed, queries, rewards, searches
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.rewriter import Rewriter
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.stages import cpt, held_out, prepare
from disranker_jax.training import train

MESH = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
PAGES = [
  Document(f'd{i}', f'str.method{i}', f'Return a copy of number {i}.') for i in range(10, 50)
]


def make_config(**changes) -> ConfigDict:
  """A config with what the stage reads."""
  c = defaults('query_rewriting')
  c.rewriter.update(model='tiny-decoder', precision='float32', remat='none')
  c.rewriter.update(max_len=32, max_query_len=16, row_len=64)
  c.rewrite.update(
    prompts=4, samples=4, max_new=6, reward='bm25', max_steps=3, learning_rate=1e-3, save_every=100
  )
  c.rewrite.update(changes)
  c.stages = ('prepare', 'cpt', 'rewrite')
  c.validation.share = 0.4
  c.tensorboard = False
  return c


@pytest.fixture
def run(tmp_path, monkeypatch):
  asked = [Query(page.doc_id, f'copy of number {page.doc_id[1:]}', (page,)) for page in PAGES]
  monkeypatch.setattr(queries, 'training', lambda run: asked)
  monkeypatch.setattr(queries, 'collection', lambda config: PAGES)

  def make(**changes):
    return types.SimpleNamespace(
      config=make_config(**changes), mesh=MESH, workdir=tmp_path, folder=lambda s: tmp_path / s
    )

  monkeypatch.setattr(rewrite.roles, 'trained', lambda run, role, model, stages, trains: (
    model.pretrained(0, run.mesh, run.config[trains].trainable)
  ))  # fmt: skip
  return make


def test_queries_that_are_held_out_do_not_count_for_a_step(run, monkeypatch):
  """What the check counts is what the stage learns from."""
  for share in (0.4, 0.1):  # of 40; of the second fewer are held out than say something
    here = run()
    here.config.validation.share = share
    asked = queries.training(here)
    groups = [rewrite.as_group(query) for query in asked]
    monkeypatch.setattr(prepare, 'records', lambda run, kind, groups=groups: groups)
    kept = held_out.left(here, groups)
    split = held_out.split(here, 'rewrite', asked, query=rewrite.as_group)
    assert kept == len(split.learned) and (kept < len(asked)) == (share == 0.4)
    here.config.rewrite.prompts = kept
    rewrite.check_records(here)
    here.config.rewrite.prompts = kept + 1
    others = rf' \({len(asked) - kept} more are held out\)' if share == 0.4 else ''
    lower = '; lower config.rewrite.prompts' + (' or config.validation.share' if others else '')
    message = rf'prompts={kept + 1}: .* only {kept} queries to learn from{others}{lower}$'
    with pytest.raises(UserError, match=message):
      rewrite.check_records(here)


def test_a_decision_counts_the_held_out_queries_that_are_measured(run, monkeypatch):
  """Those without a positive document are judged too, and no query of the stage."""
  here, asked = run(), queries.training(None)
  every = [rewrite.as_group(query) for query in asked]
  monkeypatch.setattr(prepare, 'records', lambda run, kind: every)
  here.config.rewrite.validation.keep_best = True
  rewrite.check_records(here)
  held = set(held_out.find(here, every)[0])
  learned = [query for i, query in enumerate(asked) if i not in held]
  monkeypatch.setattr(queries, 'training', lambda run: learned)
  with pytest.raises(UserError, match=rf'keep_best=True: rewrite: 0 of its {len(learned)} queries'):
    rewrite.check_records(here)


def test_queries_that_are_cut_are_counted(run, capsys):
  here = run()
  opened, asked = rewrite.open_rewriter(here.config), queries.training(here)
  long = [Query(f'long{i}', 'copy of a number ' * 9, (PAGES[0],)) for i in range(2)]
  for some, said in ((asked, False), (asked + long, True)):
    rewrite.job(here, opened, some, reward=None)
    line = f'rewrite: the end of 2 of {len(asked) + 2} queries is not read; raise config.'
    assert (line in capsys.readouterr().err) == said


@pytest.mark.parametrize('drawn', [0, 16])
def test_a_step_without_memory_is_told_of_what_is_drawn(run, drawn):
  here = run(drawn=drawn)
  opened, asked = rewrite.open_rewriter(here.config), queries.training(here)
  todo, *_ = rewrite.job(here, opened, asked, reward=None)
  said = train.needs_less(todo, opened.network.shapes(), MESH)
  fewer = ', samples or drawn (now 16), set ' if drawn else ' or samples, set '
  assert said.startswith(f'lower config.rewrite.prompts (now 4){fewer}config.rewriter.remat=full')


def letters(queries, rewrites) -> np.ndarray:
  return np.array([[len(text) for text in each] for each in rewrites], np.float32)


def test_it_trains_measures_and_shows_rewrites(run, tmp_path, monkeypatch):
  monkeypatch.setattr(rewards, 'Ranking', lambda *arguments: letters)
  results = rewrite.execute(run(reward='bm25+0.1*repetition', beta=0.1))
  rows = [json.loads(line) for line in (tmp_path / 'rewrite/metrics.jsonl').open()]
  assert [row['step'] for row in rows] == [1, 2, 3]
  lines = [line for panel in rewrite.PANELS for line in panel.lines]
  drawn = {line.name for line in lines} | {line.spread for line in lines} - {''}
  assert {'reward', 'reward_std', 'kl', 'entropy', 'length', 'cut', 'equal_groups'} < drawn
  expected = drawn | {'repeated', 'sampler_difference', 'reward_bm25'}
  assert expected <= rows[0].keys() and np.isfinite([*rows[-1].values()]).all()
  assert abs(rows[0]['kl']) < 1e-4 < abs(rows[-1]['kl'])  # k1 can be below 0
  assert rows[0]['sampler_difference'] < 1e-4
  assert {'validation/ndcg@10', 'validation/reward'} <= rows[-1].keys()
  assert 0 < results['before']['ndcg@10'] <= 1 and results['validation']['metric'] == 'ndcg@10'
  assert results['rows'] + results['validation']['queries'] == len(PAGES)
  for name in ('ndcg@10', 'reward'):
    cell, after = results['gain'][name], rows[-1][f'validation/{name}']
    assert cell['queries'] == results['validation']['queries'] and 0 < cell['p'] <= 1
    assert cell['value'] == pytest.approx(after - results['before'][name], abs=1e-6)
  samples = (tmp_path / 'rewrite/samples.md').read_text()
  assert samples.count('- `copy of number') >= 10 and 'nDCG@10' in samples


def test_what_is_measured_is_the_search_with_the_likeliest_rewrite(run, tmp_path):
  """With rewrites that name the page, every page is found first."""
  here, index = run(), BM25(PAGES)
  opened = rewrite.open_rewriter(here.config)
  reward = rewards.make(here.config.rewrite, PAGES, index)
  asked = queries.training(here)[:12]
  measure = searches.Searches(here, opened, asked, PAGES, index, reward)
  measure._rewriter = lambda variables, texts: [f'method{text.split()[-1]}' for text in texts]
  assert measure({}) == {'ndcg@10': 1.0, 'reward': pytest.approx(0.0)}  # the query finds it too
  measure._rewriter = lambda variables, texts: ['39 39 39 39'] * len(texts)
  found = measure({})
  assert found['ndcg@10'] < 0.9 and found['reward'] < 0
  assert '`39 39 39 39`' in (tmp_path / 'rewrite/samples.md').read_text()


def test_pages_with_equal_scores_are_measured_as_the_table_does(run):
  """Also where more than ten have the score of the tenth."""
  here = run()
  opened = rewrite.open_rewriter(here.config)
  pages = [Document(f'd{i}', 'red fox', '') for i in range(10, 50)]
  index, asked = BM25(pages), [Query(doc.doc_id, 'red', (doc,)) for doc in pages]
  measure = searches.Searches(
    here, opened, asked, pages, index, rewards.make(here.config.rewrite, pages, index)
  )
  measure._rewriter = lambda variables, texts: ['fox'] * len(texts)
  measure({})
  found = queries.found(index.top, measure._ids, asked, ['red red fox'] * len(asked), 1000)
  of_table = metrics.per_query(
    {query.query_id: each for query, each in zip(asked, found, strict=True)},
    {query.query_id: query.relevant for query in asked}, 1, ('ndcg@10',),
  )  # fmt: skip
  assert measure.by_query['ndcg@10'].tolist() == [row['ndcg@10'] for row in of_table.values()]
  assert measure.by_query['ndcg@10'][-1] == 1  # the greatest id


def test_greedy_rewrites_do_not_depend_on_the_batch(run):
  config = run().config
  opened = rewrite.open_rewriter(config)
  variables = opened.pretrained(0, MESH)
  texts = ['split a string', 'a', 'open a file and read all of its lines']
  three, one = (Rewriter.of(opened, config.rewrite, MESH, rows) for rows in (3, 1))
  assert three(variables, texts) == one(variables, texts)
  rewritten = one(variables, ['a'])[0]
  expected = (rewritten, queries.searched('a', rewritten, 'append', 2))
  assert one.rewritten(variables, ['a']) == [expected]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'drawn': 3}, 'drawn=3: must be 0 or at least config.rewrite.samples=4, '),
    ({'prompts': 6, 'gradient_accumulation_steps': 4}, 'prompts=6: must be a multiple .* = 4'),
    ({'max_new': 32}, 'max_new=32: must be below config.rewriter.max_len=32'),
    ({'kl': 'k1'}, "kl='k1': has a gradient of zero"),
    ({'think': True}, 'max_new=6: holds no thoughts'),
    ({'reward': 'bm26'}, "reward='bm26': cannot use"),
  ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
  with pytest.raises(UserError, match=f'config.rewrite.{message}'):
    rewrite.check(make_config(**changes))
  rewrite.check(make_config())


def test_another_embedder_in_the_same_folder_makes_the_stage_stale(tmp_path):
  config = make_config(reward='embedding+bm25', embedder=str(tmp_path))
  config.data.documents = f'jsonl:{tmp_path / "documents.jsonl"}'
  (tmp_path / 'documents.jsonl').write_text('{"doc_id": "a", "title": "b"}\n')
  found = []
  for content in ('first', 'second', 'first'):
    (tmp_path / 'model.safetensors').write_text(content)
    found.append(rewrite.outside(config, tmp_path)['rewrite.embedder'])
  assert found[0] == found[2] != found[1]
  config.rewrite.embedder = 'minilm-l6'
  assert 'rewrite.embedder version' in rewrite.outside(config, tmp_path)
  config.rewrite.reward = 'bm25'
  assert rewrite.outside(config, tmp_path).keys() == {'data.documents'}


def test_templates_and_embedders_are_checked_before_anything_runs():
  config = make_config(reward='embedding', embedder='no-such-model')
  with pytest.raises(UserError, match=r"config.rewrite.embedder='no-such-model'"):
    rewrite.check_models(config, {'rewriter': rewrite.open_rewriter(config)})
  config = make_config(max_new=30)
  with pytest.raises(UserError, match=r'config\.rewriter\.max_len=32: leaves no token for a query'):
    rewrite.check_models(config, {'rewriter': rewrite.open_rewriter(config)})
  config.rewriter.template = '{title} : {summary} : {query}'
  with pytest.raises(UserError, match=r'config\.rewriter\.template=.*then \{title\}, then'):
    check(config)


def test_its_shape_is_known_without_data():
  config = make_config(beta=0.1, iterations=2)
  task = rewrite.task(config, rewrite.open_rewriter(config).network)
  batch = task.shape.block(2).zeros(2)
  assert batch['mask_GN'].shape == (4, 4) and {'old_AP', 'reference_AP'} <= batch.keys()
  # 26 tokens of a prompt and 4 samples of 6.
  assert batch['tokens_BT'].shape == (4, 56) and batch['owner_AP'].shape == (2, 2 * 24)
  variables = jax.eval_shape(lambda: rewrite.open_rewriter(config).network.init(jax.random.key(0)))
  assert task.more(jax.tree.map(lambda x: np.zeros(x.shape), variables)).keys() == {'frozen'}


def test_what_it_takes_is_estimated_from_shapes():
  config = make_config(beta=0.1, gradient_accumulation_steps=2)
  network = rewrite.open_rewriter(config).network
  step = steps.training(config, rewrite.STAGE, network, MESH)
  assert step.flops.model > 0 and memory.live(step.trace().jaxpr.jaxpr) > 0


def test_the_step_that_is_opened_fits_the_devices_as_the_stage_does(monkeypatch):
  """Prompts of other lengths need other numbers of rows."""
  config = make_config(prompts=3, samples=3)
  opened = rewrite.open_rewriter(config)
  monkeypatch.setattr(sharding, 'parts', lambda mesh: 2)
  for longest in (26, 10):
    monkeypatch.setattr(rewrite, 'longest', lambda config, longest=longest: longest)
    step = steps.training(config, rewrite.STAGE, opened.network, MESH)
    assert step.batch['tokens_BT'].shape[0] == 6
    shape = packed.shape_of(config.rewrite, opened.network, longest, 64, MESH)
    assert shape.zeros()['tokens_BT'].shape == step.batch['tokens_BT'].shape


def test_cpt_trains_the_model_of_any_role():
  config = make_config()
  stage, opened = cpt.stage('rewriter'), rewrite.open_rewriter(config)
  assert stage.role == 'rewriter'
  assert stage.sections(config) == ('seed', 'rewriter', 'validation', 'cpt')
  assert stage.task(config, opened.network).shape.row_len == 64
  stage.check(config)
  config.rewriter.bidirectional = True
  with pytest.raises(UserError, match=r'config\.rewriter\.bidirectional=True'):
    stage.check(config)


def test_clicks_without_a_title_teach_a_title_nothing(monkeypatch, capsys):
  run = types.SimpleNamespace(config=make_config())
  clicks = [Click('find a file', '', 'a text'), Click('open a file', 'open', 'a text')]
  for found in (clicks, clicks[1:]):
    monkeypatch.setattr(prepare, 'records', lambda run, kind, found=found: found)
    cpt.check_records('rewriter', run)
  assert capsys.readouterr().err.count('1 of the first 2 clicks has no title') == 1
  monkeypatch.setattr(prepare, 'records', lambda run, kind: clicks[:1])
  with pytest.raises(UserError, match=r'config\.rewriter\.template=.*add \{summary\} to it'):
    cpt.check_records('rewriter', run)
  run.config.rewriter.template = '{query} : {title} : {summary}'
  cpt.check_records('rewriter', run)
