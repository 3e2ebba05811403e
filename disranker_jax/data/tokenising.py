"""Tokenises texts as texts, and groups ahead of their use, in a thread or in worker processes.

The tokenizer is written in Rust and uses all cores from one thread. Processes help if a fast
accelerator waits for the Python code around the tokenizer.

A tokenizer's control tokens, such as `[SEP]`, `</s>` and `<|im_end|>`, stand for the parts of an
input. A query or a document that contains the name of one must not become such a part.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import queue
import re
import secrets
import signal
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Tokenizer

from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError, reason

if TYPE_CHECKING:
  from disranker_jax.data.encoded import Encoded

SPAWN = multiprocessing.get_context('spawn')  # fork is unsafe with the threads of JAX
# The attributes of a tokenizer that prompts use.
NEEDED = ('backend_tokenizer', 'bos_token_id', 'eos_token_id')
PAIRS = 256  # per piece of work: enough to make the transfer cheap
# Added tokens that a tokenizer does not declare as special are control tokens too if they have one
# of these characters, as `<think>` and `|||EMAIL|||`. The others are words and runs of blanks.
MARKS = frozenset('<>[]{}|')
KEY = secrets.token_bytes(32)
LETTERS = str.maketrans('0123456789abcdef', 'ghijklmnopqrstuv')


class Plain(NamedTuple):
  """A tokenizer that finds no control token in a text, and the names by which it knows them."""

  backend: Tokenizer
  names: dict[str, str]  # {control token: its name in `backend`}


@functools.lru_cache(maxsize=4)  # a large one takes seconds
def plain(backend: Tokenizer) -> Plain:
  """A copy of a Rust tokenizer in which control tokens have names that no text contains.

  Their ids stay, and every other text has the same tokens. `encode_special_tokens` of the library
  is not enough. It skips special tokens only, not added ones such as `<think>`. And a model whose
  own vocabulary has `</s>`, such as a Unigram, still finds it.
  """
  raw = json.loads(backend.to_str())
  model = raw['model']
  control = [t for t in raw['added_tokens'] if t['special'] or _is_marked(t['content'])]
  names = {token['content']: _secret(token['content']) for token in control}
  for token in control:
    token['content'] = names[token['content']]
  vocab = model.get('vocab', {})
  if isinstance(vocab, dict):
    model['vocab'] = {names.get(token, token): i for token, i in vocab.items()}
  else:
    model['vocab'] = [[names.get(token, token), score] for token, score in vocab]
  if 'merges' in model:
    pairs = (m.split(' ', 1) if isinstance(m, str) else m for m in model['merges'])
    model['merges'] = [(a, b) for a, b in pairs if names.keys().isdisjoint((a, b, a + b))]
  if model.get('unk_token') in names:
    model['unk_token'] = names[model['unk_token']]
  copy = Tokenizer.from_str(json.dumps(raw | {'truncation': None, 'padding': None}))
  return Plain(copy, names)


def _is_marked(token: str) -> bool:
  return len(token) > 1 and not MARKS.isdisjoint(token)


def _secret(token: str) -> str:
  """32 letters that cannot be guessed, the same for all copies that this process makes.

  Letters, because no normaliser makes anything else of them.
  """
  digest = hashlib.blake2b(token.encode('utf-8', 'surrogatepass'), key=KEY, digest_size=16)
  return digest.hexdigest().translate(LETTERS)


def text_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Token ids of each text, without special tokens; names of control tokens are text.

  `tokenizer` is one of transformers. Thread-safe. Raises: UserError if it gives up.
  """
  with panics():
    rows = plain(tokenizer.backend_tokenizer).backend.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
  return [row.ids for row in rows]


@functools.lru_cache(maxsize=64)
def marked(backend: Tokenizer, literal: str) -> str:
  """A text of the program's own, in which control tokens are meant, for `plain(backend)`."""
  names = plain(backend).names
  longest_first = sorted(names, key=len, reverse=True)
  pattern = '|'.join(map(re.escape, longest_first)) or '(?!)'
  return re.sub(pattern, lambda match: names[match[0]], literal)


def name_control_tokens(tokenizer, texts: Sequence[str]) -> list[bool]:
  """Whether programs that read every text by `tokenizer` itself find control tokens in it."""
  with panics():
    rows = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
  return [row.ids != ids for row, ids in zip(rows, text_ids(tokenizer, texts), strict=True)]


@contextlib.contextmanager
def panics() -> Iterator[None]:
  """Turns a panic of the tokenizer, which is no Exception, into a UserError.

  Its search for a pattern gives up after a fraction of a second if the pattern suits no text.
  """
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != 'PanicException':
      raise
    what = f'the tokenizer gives up ({reason(error)}); use a model with another one'
    raise UserError(what) from error


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
