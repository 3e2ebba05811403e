"""Tokenises groups ahead of their use: in a thread of this process, or in processes of its own.

The tokenizer itself is written in Rust and uses all cores from the one thread; processes pay where
the Python around it is what a fast accelerator waits for.
"""

import collections
import concurrent.futures
import dataclasses
import os
import pickle
import queue
import signal
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator

from disranker_jax.data.prompts import Encoded
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError

# What prompts use of a tokenizer.
NEEDED = ('backend_tokenizer', 'bos_token_id', 'eos_token_id', 'cls_token_id', 'sep_token_id')
PAIRS = 256  # in a piece of work: what it costs to hand one over is little beside the work


class Encoder:
  """Encodes the documents of groups, in order, some way ahead of whoever takes them.

  prompt   as in data/prompts.py
  workers  processes that tokenise; 0: a thread of this one does
  ahead    documents that may be tokenised, or wait for it, before they are taken

  A context manager: the thread, or the processes, end with it.
  """

  def __init__(self, prompt, workers: int = 0, ahead: int = 1024):
    self._ahead = ahead
    self._workers = [Worker(prompt) for _ in range(workers)]
    self._free = queue.SimpleQueue()
    for one in self._workers or [prompt]:
      self._free.put(one)
    self._threads = concurrent.futures.ThreadPoolExecutor(max(workers, 1))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for worker in self._workers:
      worker.kill()
    self._threads.shutdown(cancel_futures=True)

  def __call__(
    self, groups: Iterable[tuple[object, Group]]
  ) -> Iterator[tuple[object, Group, list[Encoded]]]:
    """(key, group, its documents encoded) of each (key, group); UserError where a worker died."""
    pieces, begun, held = _pieces(groups), collections.deque(), 0
    while True:
      while held < self._ahead and (piece := next(pieces, None)):
        begun.append((piece, self._threads.submit(self._encode, piece)))
        held += _count(piece)
      if not begun:
        return
      piece, future = begun.popleft()
      held -= _count(piece)
      for (key, group), docs in zip(piece, future.result(), strict=True):
        yield key, group, docs

  def _encode(self, piece) -> list[list[Encoded]]:
    one = self._free.get()
    try:
      return one.encode_many([(group.query, group.docs) for _, group in piece])
    finally:
      self._free.put(one)


def _pieces(groups) -> Iterator[list]:
  """The groups in lists of PAIRS documents or a little more."""
  piece, count = [], 0
  for key, group in groups:
    piece.append((key, group))
    count += len(group.docs)
    if count >= PAIRS:
      yield piece
      piece, count = [], 0
  if piece:
    yield piece


def _count(piece) -> int:
  return sum(len(group.docs) for _, group in piece)


class Worker:
  """A prompt in a process of its own, which ends when this one does, however that ends.

  Not of `multiprocessing`: that imports the main program anew, its fork does not go with the
  threads of JAX, and its pools may wait for ever for one that was killed as it answered.
  """

  def __init__(self, prompt):
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # A core each, and a session: Ctrl-C at the keyboard concerns the main process alone.
    env = os.environ | {'PYTHONPATH': paths, 'TOKENIZERS_PARALLELISM': 'false'}
    self.process = subprocess.Popen(
      [sys.executable, '-m', __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
      start_new_session=True,
    )  # fmt: skip
    # Without transformers, which takes seconds to import. Sent with the first work, when all of
    # the workers have begun to start.
    bare = {k: getattr(prompt.tokenizer, k) for k in NEEDED}
    self._prompt = dataclasses.replace(prompt, tokenizer=types.SimpleNamespace(**bare))

  def encode_many(self, groups) -> list[list[Encoded]]:
    """As the prompt's; raises UserError if the process has died."""
    texts = [(query, [(doc.title, doc.summary) for doc in docs]) for query, docs in groups]
    try:
      if self._prompt is not None:
        pickle.dump(self._prompt, self.process.stdin)
        self._prompt = None
      pickle.dump(texts, self.process.stdin)
      self.process.stdin.flush()
      return pickle.load(self.process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as e:
      raise UserError(
        'a process that tokenises has died: it was killed, or memory was short; the same command '
        'goes on from here, with fewer such processes if config.score.workers is lower'
      ) from e

  def kill(self) -> None:
    self.process.kill()
    self.process.wait()


def work() -> None:
  """A worker: a prompt comes first, then pieces of work until there are no more."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ctrl-C; it ends when the main process has
  tasks, results = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what a library prints is no result
  try:
    prompt = pickle.load(tasks)
    while True:
      groups = [
        (query, [Document('', *texts) for texts in docs]) for query, docs in pickle.load(tasks)
      ]
      pickle.dump(prompt.encode_many(groups), results)
      results.flush()
  except (EOFError, BrokenPipeError):
    os._exit(0)


if __name__ == '__main__':
  work()
