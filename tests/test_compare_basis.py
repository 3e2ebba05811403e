"""What the compare command computes its figures on: documents, clusters of queries, power."""

import json

import compare_files
import numpy as np
import pytest
from compare_files import QUERIES, arguments, result

from disranker_jax.commands import compare
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.evaluation.runs import read_qrels, read_run
from disranker_jax.report import comparison


@pytest.fixture
def folder(tmp_path):
  return compare_files.write_all(tmp_path)


# Runs of different documents

HAND = {'a': 2, 'b': 1, 'c': 0, 'd': 1}


def hand(folder, **runs):
  """Judgements HAND of the queries q0 and q1, and runs {name: the documents in their order}."""
  qrels = [f'q{q} 0 {doc}{q} {grade}\n' for q in range(2) for doc, grade in HAND.items()]
  (folder / 'qrels.txt').write_text(''.join(qrels))
  for name, docs in runs.items():
    rows = [f'q{q} Q0 {doc}{q} 1 {-i} x\n' for q in range(2) for i, doc in enumerate(docs)]
    (folder / f'{name}.run').write_text(''.join(rows))


def pnr(found):
  return {name: run['metrics']['pnr']['value'] for name, run in found['runs'].items()}


def test_a_ranking_that_is_cut_is_not_better_than_the_whole_one(folder):
  """Whole: ac ab ad concordant, bc dc too. Without c d: ac ab ad bc, and dc half."""
  hand(folder, whole='abdc', cut='ab')
  found = result(folder, 'whole', 'cut', metrics='pnr')
  assert found['runs']['whole']['pairs'] == {'concordant': 10, 'discordant': 0, 'tied': 0}
  assert found['runs']['cut']['pairs'] == {'concordant': 9, 'discordant': 1, 'tied': 0}
  assert pnr(found) == pytest.approx({'whole': float('inf'), 'cut': 9})
  # Alone the cut ranking has the pair ab only.
  assert result(folder, 'cut', metrics='pnr')['runs']['cut']['pairs']['concordant'] == 2


def test_runs_of_different_documents_are_reported_with_counts(folder, capsys):
  hand(folder, whole='abdc', other='axb')
  words = [*arguments(folder, 'whole', 'other', metrics='pnr,ndcg@5'), '--out', f'{folder}/out']
  compare.main(words)
  printed = capsys.readouterr()
  found = json.loads((folder / 'out' / 'compare.json').read_text())
  assert found['runs']['other']['documents'] == {
    'queries': 2, 'documents': 6, 'judged': 4, 'lacks': 4, 'lacks_judged': 4,
  }  # fmt: skip
  assert found['documents'] == {
    'rule': 'all', 'differ': True, 'held': 10, 'held_judged': 8, 'judged': 8,
    'queries_without_common': 0,
  }  # fmt: skip
  warning = (
    'the runs hold different documents: whole lacks 2 of 10 (0 of 8 judged), other lacks 4 of 10 '
    '(4 of 8 judged); --documents all: in PNR, a judged document that a run lacks and another run '
    'holds ranks last'
  )
  assert f'warning: {warning}\n' in printed.err
  page = (folder / 'out' / 'compare.md').read_text()
  assert '| other | 2 | 6 | 4 | 4 | 4 |' in page and f'- {warning}' in page
  assert 'The runs hold different documents (all: ' in printed.out
  same = result(folder, 'whole')
  assert not same['documents']['differ']
  assert 'different documents' not in comparison.text(same) + ''.join(same['warnings'])


@pytest.mark.parametrize(
  ('rule', 'pairs', 'ndcg'),
  [
    # b before a of abcd, c and d missing: ab is discordant, ac ad bc concordant, dc half.
    ('all', (7, 3, 0), (1 + 3 / np.log2(4)) / (3 + 1 / np.log2(3) + 1 / np.log2(4))),
    ('judged', (7, 3, 0), (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3) + 1 / np.log2(4))),
    ('common', (0, 2, 0), (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))),
  ],
)
def test_the_documents_that_count_are_those_of_the_rule(folder, rule, pairs, ndcg):
  hand(folder, whole='abdc', part='bxa')
  found = result(folder, 'whole', 'part', metrics='pnr,ndcg@5', documents=rule)
  part = found['runs']['part']
  assert tuple(part['pairs'].values()) == pairs
  assert part['metrics']['ndcg@5']['value'] == pytest.approx(ndcg)
  assert found['runs']['whole']['metrics']['ndcg@5']['value'] == pytest.approx(1)


@pytest.mark.parametrize('rule', ['all', 'judged'])
def test_runs_of_the_same_documents_are_compared_as_if_each_were_alone(folder, rule):
  """30 documents are judged, of which both runs hold the same 20."""
  for name in ('weak', 'good'):
    rows = (folder / f'{name}.run').read_text().splitlines(keepends=True)
    (folder / f'{name}.run').write_text(''.join(r for r in rows if int(r.split()[2][1:]) < 20))
  together = result(folder, 'weak', 'good', documents=rule)['runs']
  for name in ('weak', 'good'):
    plain = metrics.summary(
      metrics.per_query(read_run(folder / f'{name}.run'), read_qrels(folder / 'qrels.txt'))
    )
    for metric in metrics.COLUMNS:
      assert together[name]['metrics'][metric]['value'] == pytest.approx(plain[metric])


def test_common_leaves_out_queries_without_common_documents_and_says_so(folder):
  hand(folder, one='ab', two='ab')
  with (folder / 'one.run').open('a') as f:
    f.write('q2 Q0 e 1 1 x\n')
  with (folder / 'qrels.txt').open('a') as f:
    f.write('q2 0 e 1\n')
  found = result(folder, 'one', 'two', documents='common')
  assert (found['queries'], found['documents']['queries_without_common']) == (2, 1)
  assert found['runs']['two']['missing'] == 1
  assert (
    'the runs have no document in common for 1 of 3 queries (q2), which do not count'
    in (found['warnings'])
  )
  (folder / 'far.run').write_text('q0 Q0 z 1 1 x\n')
  with pytest.raises(UserError, match='--documents=common: the runs have no document in common'):
    result(folder, 'one', 'far', documents='common')


def test_a_run_without_a_query_orders_its_documents_as_chance_does(folder):
  hand(folder, whole='abdc', part='abdc')
  rows = (folder / 'part.run').read_text().splitlines(keepends=True)
  (folder / 'part.run').write_text(''.join(rows[:4]))
  found = result(folder, 'whole', 'part', metrics='pnr')
  assert pnr(found) == pytest.approx({'whole': float('inf'), 'part': (5 + 2.5) / 2.5})


def test_tables_say_what_they_are_of(folder):
  hand(folder, whole='abc', tied='abc')
  rows = (folder / 'tied.run').read_text().replace(' -2 x', ' -1 x')
  (folder / 'tied.run').write_text(rows)
  words = comparison.text(result(folder, 'whole', 'tied', metrics='pnr,ndcg@5'))
  # ab ac bc of two queries; d is in no run; b and c are tied in one run.
  assert 'Means: of 2 queries and 8 judged documents. No run holds 2 of these, which' in words
  assert 'PNR: of 6 pairs; tied, which do not count: whole 0.0 %, tied 33.3 %.' in words
  (folder / 'teacher.run').write_text('q0 Q0 a0 1 2 x\nq0 Q0 b0 2 1 x\nq1 Q0 a1 1 2 x\n')
  found = result(folder, 'whole', teacher=folder / 'teacher.run')
  assert "Kendall's tau: of the 1 query where it is defined." in comparison.text(found)
  assert any('does not order documents for 1 of 2 queries (q1)' in w for w in found['warnings'])
  assert found['runs']['whole']['metrics']['tau']['counted'] == 1


# Queries that share judgements


@pytest.fixture
def topics(folder):
  """30 topics of 5 queries that share judgements, and two runs that answer a topic alike."""
  rng = np.random.default_rng(0)
  runs = {'weak': [], 'good': []}
  qrels = []
  for t in range(30):
    grades = rng.choice(3, 10)
    docs = [f't{t}d{d}' for d in range(10)]
    scores = {'weak': rng.normal(size=10), 'good': 0.3 * grades + rng.normal(size=10)}
    for q in range(5):
      qrels += [f'{t}-{q} 0 {doc} {grade}\n' for doc, grade in zip(docs, grades, strict=True)]
      for name, rows in runs.items():
        rows += [f'{t}-{q} Q0 {doc} 1 {s} x\n' for doc, s in zip(docs, scores[name], strict=True)]
  (folder / 'qrels.txt').write_text(''.join(qrels))
  for name, rows in runs.items():
    (folder / f'{name}.run').write_text(''.join(rows))
  return folder


def test_queries_that_share_judgements_are_drawn_together_unless_told_otherwise(topics):
  default, alone, named, finer = (
    result(topics, 'weak', 'good', metrics='ndcg@5', **flags)
    for flags in ({}, {'cluster': ''}, {'cluster': '^[^-]+'}, {'cluster': '^.+[12]'})
  )
  where = f'{topics}/qrels.txt: 150 of 150 queries share their judgements'
  assert default['warnings'] == [
    f"{where}, so 30 clusters are drawn instead of 150 queries, as with --cluster '^[^-]+'; "
    "--cluster '' draws queries one by one, with p-values that are too small"
  ]
  assert alone['warnings'] == [
    f"{where}; --cluster '' separates 30 of their groups, so p-values are too small; use "
    "--cluster '^[^-]+'"
  ]
  assert named['warnings'] == [] and 'separates' in finer['warnings'][0]
  assert default['runs'] == named['runs']
  assert (default['clusters'], alone['clusters']) == (30, 150)
  assert default['shared_judgements'] == {'queries': 150, 'groups': 30, 'pattern': '^[^-]+'}
  p = [r['runs']['good']['differences']['ndcg@5']['p'] for r in (default, alone)]
  assert p[0] > 3 * p[1]


def test_verdicts_of_queries_that_share_judgements_are_drawn_together_too(topics):
  rows = [f'{t}-{q},{"good" if t % 3 else "bad"}' for t in range(30) for q in range(5)]
  (topics / 'v.csv').write_text('query_id,verdict\n' + '\n'.join(rows) + '\n')
  found = [result(topics, 'weak', verdicts=topics / 'v.csv', **f) for f in ({}, {'cluster': ''})]
  assert [each['verdicts']['clusters'] for each in found] == [30, 150]


def test_one_topic_is_refused_and_related_ids_are_told(topics):
  rows = (topics / 'qrels.txt').read_text().splitlines(keepends=True)
  (topics / 'qrels.txt').write_text(''.join(rows[:50]))
  with pytest.raises(UserError, match=r'5 of 5 queries share .* one cluster; judge more topics'):
    result(topics, 'weak')
  assert result(topics, 'weak', cluster='')['clusters'] == 5
  # Each query of a topic has judgements of half of the topic's documents.
  kept = [row for i, row in enumerate(rows) if (i + i // 10) % 10 < 5]
  (topics / 'qrels.txt').write_text(''.join(kept))
  found = result(topics, 'weak')
  assert found['clusters'] == 150
  assert (
    "if they are topics or sessions, p-values are too small without --cluster '^[^-]+'"
    in (found['warnings'][-1])
  )
  assert result(topics, 'weak', cluster='^[^-]+')['warnings'] == []


# Power


def test_a_sentence_per_run_says_which_difference_these_queries_show(folder):
  found = result(folder, 'weak', 'good', 'same', metrics='pnr,ndcg@5')
  qrels = read_qrels(folder / 'qrels.txt')
  ours, theirs = (
    np.array([r['ndcg@5'] for r in metrics.per_query(read_run(folder / n), qrels).values()])
    for n in ('good.run', 'weak.run')
  )
  error = (ours - theirs).std(ddof=1) / np.sqrt(QUERIES)
  cell = found['runs']['good']['differences']['ndcg@5']
  # Student's t with 39 degrees of freedom: 2.0227 + 0.8512.
  assert cell['detectable'] == pytest.approx(2.8739 * error, rel=1e-3)
  sentences = [line for line in comparison.text(found).splitlines() if line.startswith('Power: ')]
  assert sentences == [
    f'Power: good, nDCG@5: with 40 queries a true difference of {cell["detectable"]:.3f} is '
    f'found in 80 % of cases (p < 0.05, one test); one of {cell["value"]:+.3f} needs '
    f'about {cell["needed"]:.0f} queries.',
    'Power: same, nDCG@5: unknown, as no query differs from weak.',
  ]
  assert cell['needed'] < QUERIES
  assert comparison.text(result(folder, 'weak')).count('Power') == 0
