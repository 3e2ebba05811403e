"""Tokenises groups ahead of their use, in a thread or in worker processes.

The tokenizer is written in Rust and uses all cores from one thread. Processes help if a fast
accelerator waits for the Python code around the tokenizer.
"""

import atexit
import collections
import concurrent.futures
import dataclasses
import multiprocessing
import os
import queue
import signal
import types
from collections.abc import Iterable, Iterator

from disranker_jax.data.prompts import Encoded
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError

SPAWN = multiprocessing.get_context('spawn')  # fork is unsafe with the threads of JAX
# The attributes of a tokenizer that prompts use.
NEEDED = ('backend_tokenizer', 'bos_token_id', 'eos_token_id', 'cls_token_id', 'sep_token_id')
PAIRS = 256  # per piece of work: enough to make the transfer cheap


class Encoder:
  """Encodes the documents of groups, in order and in advance; a context manager.

  Args:
    prompt: as in data/prompts.py.
    workers: number of processes that tokenise; 0: a thread of this process.
    ahead: number of documents that are tokenised or queued in advance.
  """

  def __init__(self, prompt, workers: int = 0, ahead: int = 1024):
    self._ahead = ahead
    self._workers = [Worker(prompt) for _ in range(workers)]
    self._free = queue.SimpleQueue()
    for encoder in self._workers or [prompt]:
      self._free.put(encoder)
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
    """(key, group, encoded documents) for each (key, group).

    Raises: UserError if a worker died.
    """
    pieces, started, held = _pieces(groups), collections.deque(), 0
    while True:
      while held < self._ahead and (piece := next(pieces, None)):
        started.append((piece, self._threads.submit(self._encode, piece)))
        held += _count(piece)
      if not started:
        return
      piece, future = started.popleft()
      held -= _count(piece)
      for (key, group), docs in zip(piece, future.result(), strict=True):
        yield key, group, docs

  def _encode(self, piece) -> list[list[Encoded]]:
    encoder = self._free.get()
    try:
      return encoder.encode_many([(group.query, group.docs) for _, group in piece])
    finally:
      self._free.put(encoder)


def _pieces(groups) -> Iterator[list]:
  """Splits the groups into lists of at least PAIRS documents."""
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
  """A prompt in its own process, which always ends with this process.

  Not concurrent.futures: its pool waits forever if a worker is killed while it writes a result.
  Here the worker's end of the pipe closes with the worker.
  """

  def __init__(self, prompt):
    self._pipe, theirs = SPAWN.Pipe()
    # Without transformers, because its import takes seconds.
    bare = types.SimpleNamespace(**{k: getattr(prompt.tokenizer, k) for k in NEEDED})
    arguments = theirs, dataclasses.replace(prompt, tokenizer=bare)
    self.process = SPAWN.Process(target=work, args=arguments, daemon=True)
    self.process.start()
    theirs.close()
    atexit.register(self.process.kill)  # multiprocessing itself would wait for its end

  def encode_many(self, groups) -> list[list[Encoded]]:
    """As in data/prompts.py. Raises: UserError if the process has died."""
    try:
      self._pipe.send(
        [(query, [(doc.title, doc.summary) for doc in docs]) for query, docs in groups]
      )
      return self._pipe.recv()
    except (OSError, EOFError) as e:
      raise UserError(
        'a process that tokenises has died: it was killed, perhaps because memory ran out; run the '
        'same command to continue from here, if needed with a lower config.score.workers'
      ) from e

  def kill(self) -> None:
    self.process.kill()
    self.process.join()
    self._pipe.close()
    atexit.unregister(self.process.kill)


def work(pipe, prompt) -> None:
  """A worker process: encodes pieces until the main process closes the pipe or ends."""
  os.setsid()  # Ctrl-C and SIGTERM go to the main process, which ends this one
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # one core per worker
  try:
    while True:
      piece = pipe.recv()
      groups = [(query, [Document('', *texts) for texts in docs]) for query, docs in piece]
      pipe.send(prompt.encode_many(groups))
  except (EOFError, OSError):
    os._exit(0)
