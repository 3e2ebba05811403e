"""Tokenising in advance: the same tokens in order, in a thread or in processes, and their end."""

import collections
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from transformers import AutoTokenizer

from disranker_jax.data import tokenising
from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.data.records import Document, Group
from disranker_jax.data.tokenising import Encoder
from disranker_jax.errors import UserError
from disranker_jax.models import weights

LAST = '{title}: {summary}\n\nSummary: {query}'
ENDS_S = 30  # enough for a process to end on any machine


@pytest.fixture(scope='module')
def prompts():
  tokenizers = (AutoTokenizer.from_pretrained(weights.find(f'tiny-{s}coder')) for s in ('de', 'en'))
  decoder, bert = tokenizers
  return TextPrompt(decoder, 24, 8, LAST, 'query'), PairPrompt(bert, 24, 8)


@pytest.fixture(params=[0, 2])
def workers(request):
  return request.param


def groups(count=40, seed=0) -> list[Group]:
  """Of 0 to 90 documents, so that a piece of work is one of them or many."""
  rng = np.random.default_rng(seed)
  words = ['return', 'the', 'value', 'of', 'ümlaut', '日本', '😀']

  def text(most):
    return ' '.join(rng.choice(words, rng.integers(0, most)))

  sizes = rng.choice([0, 1, 3, 90], count)
  return [
    Group(f'q{i}', text(20), tuple(Document(str(n), text(4), text(30)) for n in range(size)))
    for i, size in enumerate(sizes)
  ]


def same(ours, theirs) -> bool:
  keys = 'anchor', 'predict', 'cut'
  return (
    np.array_equal(ours.ids, theirs.ids)
    and np.array_equal(ours.types, theirs.types)
    and all(getattr(ours, k) == getattr(theirs, k) for k in keys)
  )


def test_groups_come_in_order_with_the_encoding_of_their_prompt(prompts, workers):
  given = groups()
  for prompt in prompts:
    with Encoder(prompt, workers, ahead=300) as encode:
      found = list(encode(enumerate(given)))
    assert [key for key, _, _ in found] == list(range(len(given)))
    for (_, group, docs), wanted in zip(found, given, strict=True):
      assert group is wanted
      expected = prompt.encode(wanted.query, wanted.docs)
      assert len(docs) == len(expected) and all(map(same, docs, expected))


def test_no_groups_give_nothing(prompts, workers):
  with Encoder(prompts[0], workers) as encode:
    assert list(encode([])) == []
    [(key, group, docs)] = encode([('k', Group('q', 'text', ()))])
    assert (key, group.query_id, docs) == ('k', 'q', [])


def test_at_most_ahead_documents_are_read_in_advance(prompts):
  read = 0

  def watched():
    nonlocal read
    for group in groups(400):
      read += len(group.docs)
      yield 0, group

  taken, ahead = 0, 500
  with Encoder(prompts[1], ahead=ahead) as encode:
    for _, _, docs in encode(watched()):
      taken += len(docs)
      # A piece may start just below the limit, while another one is being taken.
      assert read - taken <= ahead + 2 * (tokenising.PAIRS + 90)


def test_an_error_of_the_source_is_raised(prompts, workers):
  def broken():
    yield 0, groups()[3]
    raise UserError('this row is bad')

  with Encoder(prompts[0], workers) as encode, pytest.raises(UserError, match='this row is bad'):
    list(encode(broken()))


@pytest.mark.parametrize('when', ['before it starts', 'while it works'])
def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do(prompts, when):
  with Encoder(prompts[0], 2, ahead=300) as encode:
    found = encode(itertools.cycle(enumerate(groups(40))))
    if when == 'while it works':
      next(found)
    encode._workers[1].process.kill()
    with pytest.raises(UserError, match=r'tokenises has died.*config\.score\.workers'):
      collections.deque(found, maxlen=0)
  assert not any(w.process.is_alive() for w in encode._workers)


def test_processes_end_with_the_encoder_also_when_groups_are_left(prompts):
  with Encoder(prompts[0], 2, ahead=300) as encode:
    next(encode(enumerate(groups(200))))
  assert not any(w.process.is_alive() for w in encode._workers)


def test_ctrl_c_and_sigterm_do_not_stop_a_worker(prompts):
  given = list(enumerate(groups(100)))
  with Encoder(prompts[0], 1, ahead=300) as encode:
    found = encode(iter(given))
    keys = [next(found)[0]]
    process = encode._workers[0].process
    # What a terminal sends goes to its foreground group, and the worker has a group of its own.
    assert os.getpgid(process.pid) != os.getpgid(0)
    os.kill(process.pid, signal.SIGTERM)
    assert keys + [key for key, _, _ in found] == list(range(len(given)))


ORPHANS = """
import sys
sys.path.insert(0, 'tests')
import test_tokenising as t
from transformers import AutoTokenizer
from disranker_jax.models import weights
prompt = t.PairPrompt(AutoTokenizer.from_pretrained(weights.find('tiny-encoder')), 24, 8)
encode = t.Encoder(prompt, 2)
next(encode(enumerate(t.groups(200))))
print(*(w.process.pid for w in encode._workers), flush=True)
input()
"""


def alive(pid: int) -> bool:
  """Whether the process exists and has not ended (an orphan may stay a zombie for a while)."""
  try:
    with open(f'/proc/{pid}/stat') as stat:
      return stat.read().rpartition(')')[2].split()[0] not in 'ZX'
  except (FileNotFoundError, ProcessLookupError):
    return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc, which only Linux has')
def test_workers_end_when_the_main_process_is_killed():
  with subprocess.Popen(
    [sys.executable, '-c', ORPHANS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  ) as main:
    pids = [int(pid) for pid in main.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    main.kill()
  limit = time.monotonic() + ENDS_S
  while any(map(alive, pids)) and time.monotonic() < limit:
    time.sleep(0.01)
  assert not any(map(alive, pids))


def test_several_threads_can_use_one_prompt(prompts):
  given, wrong = groups(60), []
  texts = [(group.query, group.docs) for group in given]
  expected = [[prompt.encode(*text) for text in texts] for prompt in prompts]

  def ask(i):
    for _ in range(3):
      for docs, wanted in zip(prompts[i].encode_many(texts), expected[i], strict=True):
        wrong.extend(1 for a, b in zip(docs, wanted, strict=True) if not same(a, b))

  threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
