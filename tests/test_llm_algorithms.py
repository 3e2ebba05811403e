"""LLM rankers as algorithms, answered by oracles: orders, numbers of prompts, ties, repair."""

import collections
import itertools

import numpy as np
import pytest

from disranker_jax.rankers.llm import (
  asking,
  heap,
  listwise,
  methods,
  pairwise,
  pointwise,
  setwise,
)

SIZES = (0, 1, 2, 3, 4, 5, 20, 21)


class Oracle:
  """Answers prompts from hidden relevance, and remembers them."""

  def __init__(self, relevance):
    self.relevance, self.asked = np.asarray(relevance, float), []

  def pair(self, docs):
    self.asked.append(docs)
    apart = self.relevance[docs[0]] - self.relevance[docs[1]]
    return np.array([apart / 2, -apart / 2])

  def labels(self, docs):
    """Logits of 26 labels; those without a document are the largest and must not be read."""
    self.asked.append(docs)
    return np.array([*self.relevance[list(docs)], *[1e9] * (26 - len(docs))])


def always_first(docs):
  """A model that always names the first passage."""
  return np.array([5.0] + [0.0] * 25)


def order(outcome) -> list[int]:
  return np.argsort(-outcome.scores, kind='stable').tolist()


def run(steps, relevance, kind='labels'):
  oracle = Oracle(relevance)
  outcome = asking.drive(steps, getattr(oracle, kind))
  assert len(outcome.scores) == len(relevance) and np.isfinite(outcome.scores).all()
  return outcome, oracle.asked


def shuffled(n, seed=0):
  return np.random.default_rng(seed).permutation(n)


PAIRWISE = {
  'allpair': lambda n: pairwise.allpair(n),
  'soft': lambda n: pairwise.allpair(n, soft=True),
  'heapsort': lambda n: pairwise.heapsort(n, 10),
  'sliding': lambda n: pairwise.sliding(n, 10),
}
SETS = {
  'heapsort 2': lambda n: setwise.heapsort(n, 10, 2),
  'heapsort 3': lambda n: setwise.heapsort(n, 10, 3),
  'heapsort 19': lambda n: setwise.heapsort(n, 10, 19),
  'bubblesort 3': lambda n: setwise.bubblesort(n, 10, 3),
  'bubblesort 9': lambda n: setwise.bubblesort(n, 10, 9),
  'one window': lambda n: listwise.at_once(n, 26, 13, 1),
}
ALL = [(name, make, 'pair') for name, make in PAIRWISE.items()]
ALL += [(name, make, 'labels') for name, make in SETS.items()]
HEAPS = [row for row in ALL if 'heapsort' in row[0]]


class TestOrders:
  @pytest.mark.parametrize('n', SIZES)
  @pytest.mark.parametrize('name, make, kind', ALL, ids=[row[0] for row in ALL])
  def test_a_perfect_model_finds_the_best(self, name, make, kind, n):
    for seed in range(10):
      relevance = shuffled(n, seed)
      outcome, asked = run(make(n), relevance, kind)
      best = np.argsort(-relevance).tolist()[:10]
      assert order(outcome)[:10] == best
      assert all(len(docs) == len(set(docs)) >= 2 for docs in asked)
      assert not asked if n < 2 else asked

  @pytest.mark.parametrize('name, make, kind', HEAPS, ids=[row[0] for row in HEAPS])
  def test_below_the_best_ten_of_a_heap_the_order_of_the_first_stage_stays(self, name, make, kind):
    outcome, _ = run(make(21), shuffled(21), kind)
    rest = order(outcome)[10:]
    assert rest == sorted(rest)

  def test_a_model_that_finds_the_opposite_reverses_the_order(self):
    relevance = shuffled(9)
    for make in PAIRWISE.values():
      forward, _ = run(make(9), relevance, 'pair')
      backward, _ = run(make(9), -relevance, 'pair')
      assert order(forward) == order(backward)[::-1]

  def test_allpair_does_not_depend_on_the_order_of_documents(self):
    relevance = shuffled(8)
    for soft in (False, True):
      base, _ = run(pairwise.allpair(8, soft), relevance, 'pair')
      again = shuffled(8, 5)
      moved, _ = run(pairwise.allpair(8, soft), relevance[again], 'pair')
      np.testing.assert_allclose(moved.scores, base.scores[again], atol=pairwise.TIE_BREAK)

  def test_the_bubblesort_of_sets_is_exact_from_every_order(self):
    """Skipping windows that look unchanged would be wrong in most of these."""
    for seed, (n, children) in itertools.product(range(60), ((20, 3), (20, 9), (40, 9))):
      relevance = shuffled(n, seed)
      outcome, _ = run(setwise.bubblesort(n, 10, children), relevance)
      assert order(outcome)[:10] == np.argsort(-relevance).tolist()[:10]


class TestNumbersOfPrompts:
  @pytest.mark.parametrize('n, prompts', [(100, 9900), (20, 380), (8, 56), (2, 2), (1, 0), (0, 0)])
  def test_allpair(self, n, prompts):
    outcome, asked = run(pairwise.allpair(n), shuffled(n), 'pair')
    assert len(asked) == prompts == len(set(asked)) and outcome.counts['compared'] == prompts // 2

  @pytest.mark.parametrize('n, prompts', [(100, 1890), (20, 290), (8, 56), (1, 0)])
  def test_sliding(self, n, prompts):
    assert len(run(pairwise.sliding(n, 10), shuffled(n), 'pair')[1]) == prompts

  @pytest.mark.parametrize('n, in_order, low, high', [(100, 406, 540, 570), (20, 150, 160, 175)])
  def test_pairwise_heapsort(self, n, in_order, low, high):
    best_first = np.arange(n, 0, -1)
    assert len(run(pairwise.heapsort(n, 10), best_first, 'pair')[1]) == in_order
    counts = [len(run(pairwise.heapsort(n, 10), shuffled(n, s), 'pair')[1]) for s in range(100)]
    assert low < np.mean(counts) < high

  @pytest.mark.parametrize(
    'n, children, mean',
    [(100, 2, 123), (100, 3, 77), (100, 9, 30), (20, 2, 40), (20, 3, 28), (20, 9, 15), (8, 7, 7)],
  )
  def test_setwise_heapsort(self, n, children, mean):
    """The first stage is useful, but noisy."""
    rng = np.random.default_rng(0)
    counts = [
      len(run(setwise.heapsort(n, 10, children), rng.normal(-np.arange(n), n / 4))[1])
      for _ in range(200)
    ]
    assert np.mean(counts) == pytest.approx(mean, abs=1.1)

  @pytest.mark.parametrize('n, pairs, sets', [(100, 995, 340), (20, 109, 41)])
  def test_sorting_all(self, n, pairs, sets):
    rng = np.random.default_rng(0)
    draws = [rng.normal(-np.arange(n), n / 4) for _ in range(100)]
    of_pairs = [len(run(pairwise.heapsort(n, n), r, 'pair')[1]) / 2 for r in draws]
    of_sets = [len(run(setwise.heapsort(n, n, 3), r)[1]) for r in draws]
    assert np.mean(of_pairs) == pytest.approx(pairs, rel=0.01)
    assert np.mean(of_sets) == pytest.approx(sets, rel=0.01)

  @pytest.mark.parametrize(
    'n, children, prompts',
    [(100, 3, 318), (100, 9, 109), (100, 19, 54), (20, 3, 52), (20, 9, 21), (20, 19, 10)],
  )
  def test_setwise_bubblesort(self, n, children, prompts):
    assert len(run(setwise.bubblesort(n, 10, children), shuffled(n))[1]) == prompts

  @pytest.mark.parametrize(
    'n, size, stride, passes, prompts',
    [(100, 20, 10, 1, 9), (95, 20, 10, 1, 9), (50, 20, 10, 1, 4), (25, 20, 10, 1, 2),
     (20, 20, 10, 1, 1), (21, 20, 10, 1, 2), (8, 20, 10, 1, 1), (2, 20, 10, 1, 1),
     (1, 20, 10, 1, 0), (0, 20, 10, 1, 0),
     (100, 4, 2, 5, 245), (20, 4, 2, 5, 45), (8, 4, 2, 5, 15)],
  )  # fmt: skip
  def test_windows(self, n, size, stride, passes, prompts):
    steps = listwise.windows(n, size, stride, passes, listwise.by_logits)
    _, asked = run(steps, shuffled(n))
    assert len(asked) == prompts and all(2 <= len(docs) <= size for docs in asked)


class TestWindows:
  @pytest.mark.parametrize('size, stride', [(20, 10), (20, 5), (4, 2), (5, 1), (3, 3), (2, 1)])
  def test_one_pass_finds_the_best_size_minus_stride(self, size, stride):
    for n in range(1, 60):
      relevance = shuffled(n, n)
      steps = listwise.windows(n, size, stride, 1, listwise.by_logits)
      outcome, _ = run(steps, relevance)
      sure = size - stride if n > size else n
      assert order(outcome)[:sure] == np.argsort(-relevance).tolist()[:sure]

  def test_every_document_is_in_a_window_whatever_the_sizes(self):
    for n, size, stride in itertools.product(range(2, 50), range(2, 9), range(1, 9)):
      if stride <= size:
        seen = {i for start, end in listwise.spans(n, size, stride) for i in range(start, end)}
        assert seen == set(range(n))

  def test_one_window_gives_log_probabilities(self):
    outcome, _ = run(listwise.at_once(3, 20, 10, 1), [1.0, 3.0, 2.0])
    assert np.exp(outcome.scores).sum() == pytest.approx(1)
    assert outcome.scores[1] - outcome.scores[0] == pytest.approx(2)

  def test_several_windows_give_positions(self):
    outcome, _ = run(listwise.at_once(5, 4, 2, 1), [1, 2, 3, 4, 5])
    assert sorted(outcome.scores) == [1, 2, 3, 4, 5]

  def test_a_permutation_is_taken_as_it_is(self):
    steps = listwise.windows(3, 20, 10, 1, listwise.as_decoded)
    assert order(asking.drive(steps, lambda docs: [2, 0, 1])) == [2, 0, 1]


class TestTiesAndConflicts:
  def test_a_model_that_prefers_a_place_ties_all_and_keeps_the_first_stages_order(self):
    outcome = asking.drive(pairwise.allpair(6), always_first)
    assert outcome.counts == {'compared': 15, 'conflicts': 15} and outcome.tied == 15
    assert np.round(outcome.scores, 2).tolist() == [2.5] * 6
    assert order(outcome) == list(range(6)) and len(set(outcome.scores)) == 6

  def test_softly_too(self):
    outcome = asking.drive(pairwise.allpair(6, soft=True), always_first)
    assert outcome.scores.tolist() == pytest.approx([2.5] * 6) and outcome.counts['conflicts'] == 15

  @pytest.mark.parametrize('make', [pairwise.heapsort, pairwise.sliding])
  def test_a_conflict_is_no_win(self, make):
    outcome = asking.drive(make(6, 3), always_first)
    assert outcome.counts['conflicts'] == outcome.counts['compared'] > 0
    assert 0 in order(outcome)[:1]

  def test_equal_odds_are_a_conflict_and_half_a_point(self):
    outcome = asking.drive(pairwise.allpair(2), lambda docs: np.zeros(2))
    assert outcome.counts['conflicts'] == 1 and np.round(outcome.scores, 2).tolist() == [0.5, 0.5]

  def test_points_of_a_cycle(self):
    """a > b > c > a: one win each."""
    wins = {(0, 1), (1, 2), (2, 0)}
    outcome = asking.drive(
      pairwise.allpair(3), lambda docs: np.array([1.0, 0]) if docs in wins else np.array([0, 1.0])
    )
    assert np.round(outcome.scores, 2).tolist() == [1, 1, 1] and outcome.tied == 3
    assert outcome.counts['conflicts'] == 0

  def test_soft_points_are_mean_probabilities(self):
    logits = {(0, 1): 2.0, (1, 0): 1.0}
    outcome = asking.drive(
      pairwise.allpair(2, soft=True), lambda docs: np.array([logits[docs], 0.0])
    )
    first = (1 / (1 + np.exp(-2.0)) + 1 - 1 / (1 + np.exp(-1.0))) / 2
    assert outcome.scores == pytest.approx([first, 1 - first])

  def test_large_odds_do_not_overflow(self):
    outcome = asking.drive(pairwise.allpair(2, soft=True), lambda docs: np.array([1e5, -1e5]))
    assert outcome.scores == pytest.approx([0.5, 0.5])

  def test_equal_labels_keep_their_order(self):
    for steps in (listwise.at_once(4, 20, 10, 1), setwise.heapsort(4, 4, 3)):
      outcome, _ = run(steps, [1.0] * 4)
      assert order(outcome)[0] == 0

  def test_noise_leaves_a_useful_order(self):
    rng = np.random.default_rng(1)
    relevance = np.arange(20, 0, -1.0)[shuffled(20)]

    def noisy(docs):
      apart = relevance[docs[0]] - relevance[docs[1]] + rng.normal(0, 6)
      return np.array([apart, 0.0])

    outcome = asking.drive(pairwise.allpair(20), noisy)
    assert 0 < outcome.counts['conflicts'] < outcome.counts['compared'] / 2
    assert np.corrcoef(outcome.scores, relevance)[0, 1] > 0.8


class TestPointwise:
  def test_formulas(self):
    assert pointwise.difference(np.array([3.0, 1.0])) == 2
    assert pointwise.raw(np.array([3.0])) == 3
    uniform = pointwise.expectation(np.zeros(5))
    assert uniform == pytest.approx(2)
    assert pointwise.expectation(np.array([0, 0, 1e4])) == pytest.approx(2)
    logits = np.array([0.3, -1.0, 2.0])
    assert pointwise.expectation(logits) == pytest.approx(pointwise.expectation(logits + 7))

  def test_large_log_odds_stay_apart(self):
    """A probability in bfloat16 would be 1 for both."""
    rows = [np.array([9.0, 0.0], np.float32), np.array([12.0, 0.0], np.float32)]
    outcome = asking.drive(pointwise.each_alone(2, 'difference'), lambda docs: rows[docs[0]])
    assert order(outcome) == [1, 0] and outcome.tied == 0

  @pytest.mark.parametrize('n', [0, 1, 5])
  def test_asks_each_document_once_all_at_once(self, n):
    steps = pointwise.each_alone(n, 'raw')
    outcome, asked = run(steps, np.arange(n))
    assert asked == [(i,) for i in range(n)] and outcome.scores.tolist() == list(range(n))


class TestRepair:
  @pytest.mark.parametrize(
    'text, expected, fault',
    [
      ('2] > [1] > [3]', [1, 0, 2], ''),
      ('', [0, 1, 2], 'wrong_format'),
      ('I cannot rank them.', [0, 1, 2], 'wrong_format'),
      ('2 > 2 > 9', [1, 0, 2], 'wrong_format'),
      ('1] > [1] > [2] > [3]', [0, 1, 2], 'repetition'),
      ('3]', [2, 0, 1], 'missing'),
      ('3] > [1]. In 2024 there were', [2, 0, 1], 'wrong_format'),
      ('<think>[1] > [2] > [3]', [0, 1, 2], 'wrong_format'),
      ('<think>[1] > [2]</think>[3] > [2] > [1]', [2, 1, 0], ''),
      ('٣] > [2]', [1, 0, 2], 'missing'),
    ],
  )
  def test_of_numbers(self, text, expected, fault):
    counts = collections.Counter()
    read = listwise.by_text(('1', '2', '3', '4'), '[')
    assert read(text, 3, counts) == expected
    assert counts == {'answers': 1, **({fault: 1} if fault else {})}

  @pytest.mark.parametrize(
    'text, expected, fault',
    [
      ('B] > [A] > [C]', [1, 0, 2], ''),
      ('AB] > [C]', [2, 0, 1], 'wrong_format'),
      ('B] > [A] > [D]', [1, 0, 2], 'wrong_format'),
      ('A best passage is [C]', [2, 0, 1], 'missing'),
    ],
  )
  def test_of_letters(self, text, expected, fault):
    counts = collections.Counter()
    assert listwise.by_text(('A', 'B', 'C', 'D'), '[')(text, 3, counts) == expected
    assert counts == {'answers': 1, **({fault: 1} if fault else {})}

  def test_always_gives_a_permutation(self):
    read = listwise.by_text(tuple(map(str, range(1, 21))), '[')
    rng = np.random.default_rng(0)
    for _ in range(300):
      text = ''.join(rng.choice(list('0123456789[]> <think/>x')) for _ in range(30))
      assert sorted(read(text, 7, collections.Counter())) == list(range(7))


def test_the_heap_asks_for_a_parent_with_its_children():
  asked = []

  def choose(docs):
    asked.append(len(docs))
    return docs.index(min(docs))
    yield

  steps = heap.best(11, 3, 4, choose)
  with pytest.raises(StopIteration) as end:
    next(steps)
  assert end.value.value == list(range(11)) and max(asked) == 5


@pytest.mark.parametrize('n', [8, 20, 100])
@pytest.mark.parametrize(
  'name', ['prp_allpair', 'prp_heapsort', 'prp_sliding', 'setwise_heapsort', 'setwise_bubblesort']
)
def test_the_expected_number_of_prompts_is_about_right(name, n):
  method, options = methods.find(name), methods.Options()
  rng = np.random.default_rng(0)
  kind = 'pair' if name.startswith('prp') else 'labels'
  counts = [
    len(run(method.steps(n, options, None), rng.normal(-np.arange(n), n / 4), kind)[1])
    for _ in range(50)
  ]
  assert method.prompts(n, options) == pytest.approx(np.mean(counts), rel=0.25, abs=2)
