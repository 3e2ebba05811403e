"""What the labels of a test must be, seen before anything trains: some relevant, none too large."""

import json
import pathlib
import runpy

import pytest

from disranker_jax import config as configs
from disranker_jax.data import sources, store, trec
from disranker_jax.data.records import LARGEST_LABEL, UNJUDGED, BadRow, Document, Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import evaluate, result_table

ROOT = pathlib.Path(__file__).parents[1]


def run_of(workdir, *labels, system='', **settings):
  """A run whose prepared test has one query with documents of these labels."""
  docs = tuple(Document(f'd{i}', 't', '', label) for i, label in enumerate(labels))
  return run_on(workdir, [Group('q', 'query', docs)], system, **settings)


def run_on(workdir, tests, system='', **settings):
  """A run with this prepared test."""
  config = configs.defaults(system) if system else configs.defaults()
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in settings.items()})
  config.data.test = 'jsonl:mine.jsonl'
  store.write('test', tests, workdir / 'data' / 'test')
  return Run(config, workdir, None)


@pytest.mark.parametrize('system', ['', 'dgr', 'query_rewriting'])
@pytest.mark.parametrize(
  ('labels', 'says'),
  [
    ((UNJUDGED, UNJUDGED), 'no document of its 1 query has a label'),
    ((0, 0, UNJUDGED), 'all 2 labels are 0'),
    ((0, 1024), 'has a label of 1,024, and labels go up to 1000'),
  ],
)
def test_a_test_that_measures_nothing_is_refused(tmp_path, system, labels, says):
  run = run_of(tmp_path, *labels, system=system)
  with pytest.raises(UserError) as caught:
    evaluate.check_labels(run, result_table.of(run.config))
  assert str(caught.value).startswith(f"config.data.test='jsonl:mine.jsonl': {says}")


def test_the_stage_looks_at_them(tmp_path):
  with pytest.raises(UserError, match='all 1 labels are 0'):
    evaluate.check_records(run_of(tmp_path, 0))


@pytest.mark.parametrize(
  ('labels', 'settings', 'says'),
  [
    ((0, 1), {}, ''),
    ((1, UNJUDGED), {}, ''),
    ((1, UNJUDGED, UNJUDGED), {}, '2 of 3 test pairs are not judged; they count as not relevant'),
    (
      (0, 2), {'evaluate__min_relevance': 3},
      'no document has a label of config.evaluate.min_relevance=3 or better (the highest label is '
      '2), so MRR will be 0 in every row; lower it',
    ),
    ((0, 10), {}, ''),
    (
      (0, 80, 100), {},
      "config.data.test='jsonl:mine.jsonl': labels go up to 100, and the gain of nDCG is 2^label - "
      '1, so almost only the best label counts; map the labels to 0 to 4, and set '
      'config.evaluate.min_relevance to the lowest relevant one',
    ),
  ],
)  # fmt: skip
def test_what_tells_little_is_a_line(tmp_path, capsys, labels, settings, says):
  run = run_of(tmp_path, *labels, **settings)
  evaluate.check_labels(run, result_table.of(run.config))
  assert capsys.readouterr().err == (f'evaluate: {says}\n' if says else '')


def ranked(*queries, ranks=2):
  """A test with the labels of each query, of which so many documents are ranked."""
  return [
    Group(
      f'q{i}', f'query {i}',
      tuple(Document(f'd{j}', 't', '', x, j + 1, in_pool=j < ranks) for j, x in enumerate(labels)),
    )
    for i, labels in enumerate(queries)
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('labels', 'fix'),
  [
    ([(1,), (1,)], 'add documents that are not relevant, in rows with a "label" of 0 or without'),
    ([(2, 2), (0, 0), (1, 1, 0)], 'add documents that are not relevant'),
    ([(0, 0, 1), (0, UNJUDGED)], 'none of them is relevant: raise config.data.depth'),
  ],
)
def test_a_test_in_which_every_order_is_as_good_is_refused(tmp_path, labels, fix):
  run = run_on(tmp_path, ranked(*labels))
  with pytest.raises(UserError) as caught:
    evaluate.check_records(run)
  assert str(caught.value).startswith(
    "config.data.test='jsonl:mine.jsonl': no query has ranked documents of two grades, so every "
    f'order of them is as good and there is nothing to measure; {fix}'
  )
  assert str(caught.value).endswith('; or take evaluate out of config.stages')


def test_queries_in_which_every_order_is_as_good_are_counted(tmp_path, capsys):
  """A query without a relevant document has a warning of its own."""
  evaluate.check_records(run_on(tmp_path, ranked((1, 1), (0, 0), (0, 0, 1), (0, 1))))
  assert capsys.readouterr().err == (
    'evaluate: 2 of 4 test queries have ranked documents of one grade only, so every order of them '
    'is as good\n'
  )


def test_a_table_that_searches_the_collection_takes_relevant_documents_alone(tmp_path, capsys):
  file = tmp_path / 'documents.jsonl'
  file.write_text(json.dumps({'doc_id': 'd0', 'title': 't', 'summary': 's'}))
  run = run_on(tmp_path, ranked((1,), (1,)), 'query_rewriting', data__documents=f'jsonl:{file}')
  evaluate.check_records(run)
  assert not capsys.readouterr().err


def test_a_label_that_no_metric_can_compute_is_a_bad_row_with_its_place(tmp_path):
  row = {'query_id': 'q', 'query': 'x', 'doc_id': 'd', 'title': 't', 'summary': 's'}
  (tmp_path / 'a.jsonl').write_text(json.dumps(row | {'label': LARGEST_LABEL}))
  (tmp_path / 'b.jsonl').write_text(json.dumps(row | {'label': LARGEST_LABEL + 1}))
  for kind in ('test', 'judgements'):
    [group] = sources.read(f'jsonl:{tmp_path}/a.jsonl', kind)
    assert 0 < metrics.ndcg({'d': 1.0}, group.grades) <= 1
    with pytest.raises(UserError, match=r'b\.jsonl:1:label: is 1001, outside 0\.\.1000; write'):
      list(sources.read(f'jsonl:{tmp_path}/b.jsonl', kind))
  with pytest.raises(BadRow, match=r'label: is 1001; write at most 1000'):
    trec._judged('qrels', 1, b'q 0 d 1001')


@pytest.mark.parametrize(('test', 'least'), [('python_docs:', 4), ('jsonl:mine.jsonl', 1)])
def test_own_documents_counts_label_1_as_relevant_in_a_test_of_ones_own(tmp_path, test, least):
  text = (ROOT / 'configs' / 'own_documents.py').read_text()
  file = tmp_path / 'mine.py'
  file.write_text(text.replace("c.data.test = 'python_docs:'", f'c.data.test = {test!r}'))
  assert runpy.run_path(str(file))['get_config']().evaluate.min_relevance == least
