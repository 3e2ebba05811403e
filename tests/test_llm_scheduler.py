"""The scheduler of LLM rankers: shared batches, order, the cache, and ends."""

import numpy as np
import pytest

from disranker_jax.data.records import Document, Group
from disranker_jax.rankers.llm import asking, listwise, pairwise, pointwise, scheduler, setwise


def group(name, n):
  return Group(name, name, tuple(Document(f'{name}{i}', '', 'x' * i) for i in range(n)))


class Oracle:
  """Answers from hidden relevance, in batches of `size` prompts; `log` has what happened."""

  def __init__(self, size):
    self.size, self.log, self._waiting = size, [], []

  def add(self, prompts, docs, keys):
    self._waiting += zip(prompts, keys, strict=True)

  def __len__(self):
    return len(self._waiting)

  @property
  def full(self):
    return len(self._waiting) >= self.size

  def begin(self):
    taken, self._waiting = self._waiting[: self.size], self._waiting[self.size :]
    self.log.append(('begin', len(taken)))
    return taken

  def end(self, batch):
    self.log.append(('end', len(batch)))
    return [(key, answer(*encoded[0])) for encoded, key in batch]


def answer(name, docs):
  relevance = np.random.default_rng(sum(map(ord, name))).normal(size=50)
  return np.array([*relevance[list(docs)], *[0.0] * (20 - len(docs))])


def encode(group, asked):
  """A prompt is (query, documents), of so many tokens as it has documents."""
  return [Encoded([(group.query_id, docs)], len(docs)) for docs in asked]


class Encoded(list):
  cut = False

  def __init__(self, values, size):
    super().__init__(values)
    self._size = size

  def __len__(self):
    return self._size


METHODS = {
  'pointwise': lambda n: pointwise.each_alone(n, 'raw'),
  'allpair': lambda n: pairwise.allpair(n),
  'heapsort': lambda n: pairwise.heapsort(n, 5),
  'sliding': lambda n: pairwise.sliding(n, 3),
  'setwise': lambda n: setwise.bubblesort(n, 4, 3),
  'windows': lambda n: listwise.windows(n, 4, 2, 2, listwise.by_logits),
}
GROUPS = [group(f'q{i}', n) for i, n in enumerate((7, 0, 1, 12, 2, 20, 7, 3))]


def run(make, groups, size=8, live=256, **options):
  oracle = Oracle(size)
  steps = lambda g: make(len(g.docs))  # noqa: E731
  found = list(scheduler.Scheduler(oracle, steps, encode, live, **options)(groups))
  return found, oracle.log


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('size, live', [(1, 1), (3, 2), (8, 256), (1000, 256)])
def test_every_query_gets_what_it_gets_alone_in_order(name, size, live):
  found, _ = run(METHODS[name], GROUPS, size, live)
  assert [query.group for query in found] == GROUPS
  for query in found:
    alone = asking.drive(
      METHODS[name](len(query.group.docs)), lambda docs, q=query: answer(q.group.query_id, docs)
    )
    assert query.outcome.scores.tolist() == alone.scores.tolist()
    assert query.outcome.counts == alone.counts


def test_an_answer_is_asked_for_once():
  found, log = run(METHODS['heapsort'], [group('a', 20)])
  asked = []
  asking.drive(METHODS['heapsort'](20), lambda docs: asked.append(docs) or answer('a', docs))
  assert len(asked) > len(set(asked)) == found[0].counts['prompts']
  assert sum(count for what, count in log if what == 'begin') == len(set(asked))
  assert found[0].counts['tokens'] == 2 * len(set(asked))


def test_queries_share_batches():
  """16 sequential sorts need as many batches as the longest one, not as all."""
  groups = [group(f'q{i}', 12) for i in range(16)]
  alone = [len(run(METHODS['heapsort'], [each], size=32)[1]) // 2 for each in groups]
  _, log = run(METHODS['heapsort'], groups, size=32)
  assert len(log) // 2 <= max(alone) + 5 < sum(alone) / 8


def test_one_batch_is_in_flight_while_the_next_is_made():
  _, log = run(METHODS['allpair'], [group('a', 10)], size=8)
  flying = 0
  seen = []
  for what, _ in log:
    flying += 1 if what == 'begin' else -1
    seen.append(flying)
  assert max(seen) == 2 and min(seen) == 0
  assert [count for what, count in log if what == 'begin'] == [8] * 11 + [2]


def test_queries_are_read_as_they_are_needed():
  read = []

  def source():
    for each in [group(f'q{i}', 10) for i in range(100)]:
      read.append(each)
      yield each

  oracle = Oracle(20)
  run = scheduler.Scheduler(oracle, lambda g: METHODS['pointwise'](10), encode)
  next(run(source()))
  assert len(read) < 10


def test_it_ends_without_the_queries_in_progress():
  found, log = run(METHODS['heapsort'], GROUPS, stopped=iter([False, False, True]).__next__)
  assert len(found) < len(GROUPS) and len(log) <= 3
