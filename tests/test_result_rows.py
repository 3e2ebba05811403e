"""The rows that no model fills: the first stage, and runs from elsewhere."""

import math
import types

import ir_measures
import numpy as np
import pytest
from ir_measures import RR

from disranker_jax import config as configs
from disranker_jax.data.records import BadRows, Document, Group, listed
from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion, metrics, runs
from disranker_jax.pipeline import seeds
from disranker_jax.stages import result_rows, result_table


def group(query_id: str, query: str, *docs: tuple[str, str, int]) -> Group:
  """A query with documents of (id, text, rank)."""
  made = [Document(doc_id, text, '', label=0, rank=rank) for doc_id, text, rank in docs]
  return Group(query_id, query, tuple(made))


def run_with(test='jsonl:test.jsonl', **runs):
  config = configs.defaults()
  config.data.test = test
  config.evaluate.runs = runs
  return types.SimpleNamespace(config=config)


def first_stage(groups, test='jsonl:test.jsonl'):
  return result_rows.first_stage(run_with(test), result_rows.ROWS['bm25'], groups)


def order(ranking, query: str) -> list[str]:
  return metrics.ranked(ranking[query])


class TestFirstStage:
  def test_without_ranks_bm25_ranks_the_documents_of_each_query(self):
    # By ids alone the order would be c, b, a for both queries.
    a, b, c = ('a', 'an apple tart', 0), ('b', 'a pear', 0), ('c', 'the apple apple pie', 0)
    groups = [group('q', 'pear', a, b, c), group('r', 'tart', a, b, c)]
    ranking, facts = first_stage(groups)
    assert order(ranking, 'q')[0] == 'b' and order(ranking, 'r')[0] == 'a'
    assert set(ranking['q']) == {'b'}  # the others share no word with the query
    assert facts['title'] == 'BM25 (test documents)'
    assert 'no first-stage rank' in facts['note'] and '4 of 6 documents' in facts['note']

  def test_a_document_that_another_query_has_is_not_ranked(self):
    groups = [
      group('q', 'pear', ('a', 'pear', 0), ('b', 'plum', 0)), group('r', 'pear', ('c', 'pear', 0)),
    ]  # fmt: skip
    ranking, _ = first_stage(groups)
    assert set(ranking['q']) == {'a'} and set(ranking['r']) == {'c'}

  def test_ranks_are_the_order_and_documents_without_one_are_not_in_it(self):
    ranking, facts = first_stage([group('q', 'x', ('z', 'x', 0), ('b', 'x', 2), ('a', 'x', 1))])
    assert order(ranking, 'q') == ['a', 'b']
    assert facts['note'] == '1 of 3 documents is not found by it and ranks last'

  @pytest.mark.parametrize(
    'address, title',
    [
      ('python_docs:', None), ('trec:data?run=bm25&pool=judged', None),
      ('trec:data?run=bm25.run.gz', 'first stage'), ('jsonl:test.jsonl', 'first stage'),
      ('bright:data?task=biology', None),
    ],
  )  # fmt: skip
  def test_only_ranks_that_bm25_gave_are_called_bm25(self, address, title):
    _, facts = first_stage([group('q', 'x', ('a', 'x', 1))], address)
    assert facts.get('title') == title and 'note' not in facts

  def scored(self, *docs):
    """A query with documents of (id, rank, score)."""
    made = [Document(doc_id, 'x', '', rank=rank, score=score) for doc_id, rank, score in docs]
    return Group('q', 'x', tuple(made))

  @pytest.mark.parametrize('scale', [1.0, 1e-12, -3e5, 0.0])
  def test_its_run_is_fused_as_its_scores_are_and_keeps_the_order_of_its_ranks(
    self, tmp_path, scale
  ):
    base = (9.5, 7.0, 7.0, 7.0 - 1e-10, 1.0) if scale > 0 else (1.0, 1.0, 1.0 + 1e-10, 2.0, 2.5)
    given = dict(zip('abcde', (scale * score for score in base), strict=True))
    docs = [(doc, i, score) for i, (doc, score) in enumerate(given.items(), 1)]
    groups = [self.scored(*reversed(docs), ('z', 0, math.nan))]
    ranking, facts = first_stage(groups)
    assert '-rank' not in facts['note']  # it says that z is not found
    runs.write_run(tmp_path / 'bm25.run', ranking, 'bm25')
    read = runs.read_run(tmp_path / 'bm25.run')
    assert order(read, 'q') == order(ranking, 'q') == list('abcde')
    model = {'a': 0.0, 'b': 2.0, 'c': 3.0, 'd': 1.0, 'e': 0.5, 'z': 2.5}
    wanted = fusion.convex(model, given, 0.4)
    if scale:  # else all scores are equal, and only the order is left of them
      assert fusion.convex(model, read['q'], 0.4) == pytest.approx(wanted, abs=1e-6)

  @pytest.mark.parametrize('scale', [1.0, 1e-6, -3e5])
  def test_trec_eval_finds_the_same_order_of_equal_scores_in_its_run(self, tmp_path, scale):
    rng, groups = np.random.default_rng(0), []
    for q in range(20):
      scores = np.sort(scale * np.repeat(rng.uniform(5, 20, 10), 2))[::-1]
      names = [f'd{i}' for i in rng.permutation(20)]
      docs = zip(names, scores.tolist(), strict=True)
      made = [Document(d, 'x', '', rank=i, score=s) for i, (d, s) in enumerate(docs, 1)]
      groups.append(Group(f'q{q}', 'x', tuple(made)))
    ranking, facts = first_stage(groups)
    file = tmp_path / 'bm25.run'
    runs.write_run(file, ranking, 'bm25')
    for place in range(20):  # the rank of each document, as trec_eval sees it
      qrels = {group.query_id: {group.docs[place].doc_id: 1} for group in groups}
      theirs = ir_measures.pytrec_eval.calc_aggregate(
        [RR], qrels, ir_measures.read_trec_run(str(file))
      )
      assert theirs[RR] == pytest.approx(1 / (place + 1))
    given = {g.query_id: {d.doc_id: d.score for d in g.docs} for g in groups}
    other = sum(order(given, query) != order(ranking, query) for query in given)
    assert other > 0 and facts['note'].startswith(f'{other} of 20 queries have equal scores, which')

  def test_equal_scores_in_the_order_of_trec_eval_are_not_told(self):
    _, facts = first_stage([self.scored(('c', 1, 5.0), ('b', 2, 5.0), ('d', 3, 4.0))])
    assert 'note' not in facts
    docs = ('b', 1, 5.0), ('c', 2, 5.0), ('d', 3, 4.0)
    assert '1 of 1 query has equal scores' in first_stage([self.scored(*docs)])[1]['note']
    _, facts = first_stage([self.scored(*docs)], 'trec:data?run=bm25')
    assert 'note' not in facts  # there is no other file of it

  @pytest.mark.parametrize(
    ('docs', 'why'),
    [
      ((('a', 1, 5.0), ('b', 2, math.nan)), '1 of 2 documents that it found has no score'),
      ((('a', 1, 5.0), ('b', 2, 6.0)), 'its scores do not have the order of its ranks'),
      ((('a', 1, 5.0), ('b', 1, 4.0)), 'its scores do not have the order of its ranks'),
    ],
  )
  def test_scores_that_do_not_fit_the_ranks_are_said_and_not_used(self, docs, why):
    ranking, facts = first_stage([self.scored(*docs)])
    assert ranking['q'] == {doc: -rank for doc, rank, _ in docs}
    assert facts['note'] == f'{why}, so the scores in bm25.run are -rank; fuse it by ranks'


class TestGivenRun:
  @pytest.fixture
  def groups(self):
    docs = [(name, name, 0) for name in 'abc']
    return [group('q', 'x', *docs), group('r', 'y', *docs)]

  def ranked(self, tmp_path, groups, text):
    (tmp_path / 'production.run').write_text(text)
    run = run_with(production=f'trec:{tmp_path}/production.run')
    [row] = result_table.given_rows(run.config)
    assert row.name == row.title == 'production'
    return row.rank(run, row, groups)

  def test_orders_the_same_documents_and_counts_what_it_lacks_and_what_it_has_beside(
    self, tmp_path, groups
  ):
    text = 'q Q0 c 1 -5 x\nq Q0 other 2 -6 x\nq Q0 a 3 -7 x\nnot_a_test_query Q0 a 1 1 x\n'
    ranking, facts = self.ranked(tmp_path, groups, text)
    assert order(ranking, 'q') == ['c', 'a'] and set(ranking) == {'q'}
    assert 'compare --documents common' in facts['note']
    for part in (
      '1 of 3 documents is not in it and ranks last',
      '1 of its documents is not among those that all rows rank and is left out',
      '1 of 2 queries is not in it and counts as 0',
    ):
      assert part in facts['note']

  def test_says_nothing_if_it_has_exactly_the_documents(self, tmp_path, groups):
    lines = [f'{q} Q0 {d} 1 {s} x\n' for q in 'qr' for d, s in zip('abc', (1, 3, 2), strict=True)]
    ranking, facts = self.ranked(tmp_path, groups, ''.join(lines))
    assert order(ranking, 'r') == ['b', 'c', 'a'] and not facts

  def test_a_document_with_two_scores_is_refused_and_equal_rows_count_as_by_compare(
    self, tmp_path, groups
  ):
    lines = [f'{q} Q0 {d} 1 {s} x\n' for q in 'qr' for d, s in zip('abc', (1, 3, 2), strict=True)]
    ranking, facts = self.ranked(tmp_path, groups, ''.join([*lines, lines[1], lines[4], lines[1]]))
    assert order(ranking, 'q') == order(ranking, 'r') == ['b', 'c', 'a']
    noted = BadRows()
    assert runs.read_run(tmp_path / 'production.run', noted) == ranking
    assert facts['note'] == f'trec:{tmp_path}/production.run: {listed(noted.notes)[0]}'
    other, of_no_test = 'r Q0 b 9 7.5 x\n', 't Q0 b 1 1 x\nt Q0 b 2 2 x\n'
    assert self.ranked(tmp_path, groups, ''.join([*lines, of_no_test]))[0] == ranking
    with pytest.raises(UserError, match=(
      r"runs\.production: .*'b' appears twice for query_id 'r', with the scores 3 and 7\.5; keep"
    )):  # fmt: skip
      self.ranked(tmp_path, groups, ''.join([*lines, other]))
    with pytest.raises(UserError, match="'b' appears twice for query_id 'r'; keep one of the rows"):
      runs.read_run(tmp_path / 'production.run')

  def test_a_run_of_other_queries_is_refused(self, tmp_path, groups):
    with pytest.raises(UserError, match=r"runs\.production: .* none of the test queries.*'q'"):
      self.ranked(tmp_path, groups, 'other Q0 a 1 1 x\n')


def test_a_given_run_may_not_have_the_name_of_a_row(monkeypatch):
  config = configs.defaults()
  config.evaluate.runs = {'teacher': 'trec:a.run'}
  with pytest.raises(UserError, match=r'config\.evaluate\.runs\.teacher: is the name'):
    configs.check(config)


def test_another_seed_repeats_the_rows_that_it_changes():
  """The earlier run's student is a row of its own, which no training of this run changes."""
  config = configs.defaults()
  config.student.init_from = 'runs/before'
  config.evaluate.rankers, config.evaluate.runs = ('yes_no',), {'other': 'trec:a.run'}
  config.evaluate.prompts.contract = 'yes_no'
  changed = seeds.with_seed(config, 7)
  assert set(changed.evaluate.models) == {'student_sft', 'student'}
  assert not changed.evaluate.rankers and not changed.evaluate.runs
  assert changed.student.seed == 7
