"""Systems that score (query, texts): our backends, and the libraries that people use instead.

Every system starts from text, as a request does, and uses all cores.
"""

import argparse
import concurrent.futures
import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import disranker_jax
from disranker_jax.commands.common import words
from disranker_jax.devices import runtime
from disranker_jax.exporting import formats
from disranker_jax.models import load

OURS = ('ours onnx-int8', 'ours onnx', 'ours jax')
OTHERS = ('sentence-transformers bf16', 'sentence-transformers fp32', 'onnxruntime fp32')
# For an accelerator: transformers on the GPU, if there is one.
EAGER, COMPILED = 'torch bf16', 'torch bf16 compiled'


def installed() -> list[str]:
  """The systems whose packages are installed."""
  there = importlib.util.find_spec('torch') and importlib.util.find_spec('sentence_transformers')
  return [*OURS, *(n for n in OTHERS if there or not n.startswith('sentence'))]


def checked(names: str) -> list[str]:
  """The systems of a comma-separated list, as an argparse type."""
  known = (*OURS, *OTHERS, EAGER, COMPILED)
  if unknown := [name for name in words(names) if name not in known]:
    raise argparse.ArgumentTypeError(f'{unknown[0]!r} is unknown; there are {", ".join(known)}')
  return words(names)


def open_system(name: str, folder: Path, max_len: int = 0) -> Callable:
  """The function (query, texts) -> scores; `max_len` replaces the model's own limit."""
  if name.startswith('ours'):
    return ours(folder, name.removeprefix('ours '), max_len)
  if name in (EAGER, COMPILED):
    return transformer(folder, name == COMPILED, max_len)
  if name.startswith('sentence'):
    return cross_encoder(folder, name.endswith('bf16'), max_len)
  return plain_onnx(folder, max_len)


class Apart:
  """A system in a process of its own, since the threads of two runtimes slow each other down.

  A call with (query, texts) returns (seconds, scores), timed in that process.
  """

  def __init__(self, name: str, folder: Path, max_len: int = 0):
    self._pool = concurrent.futures.ProcessPoolExecutor(
      1, multiprocessing.get_context('spawn'), _open, (name, folder, max_len)
    )

  def __call__(self, query: str, texts) -> tuple[float, np.ndarray]:
    return self._pool.submit(_timed, query, texts).result()

  def close(self) -> None:
    self._pool.shutdown()


def _open(*arguments) -> None:
  global _system  # one per process
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # systems share the device
  runtime.prepare()
  _system = open_system(*arguments)


def _timed(query: str, texts) -> tuple[float, np.ndarray]:
  begin = time.perf_counter()
  scores = _system(query, texts)
  return time.perf_counter() - begin, np.asarray(scores, np.float64)


def ours(folder: Path, name: str, max_len: int) -> Callable:
  """The Python API with the server's precision."""
  ranker = disranker_jax.load(folder, name, max_len or None, fast=True)
  return lambda query, texts: ranker.score([(query, text) for text in texts])


def cross_encoder(folder: Path, bf16: bool, max_len: int) -> Callable:
  """sentence-transformers, called as its documentation shows."""
  import torch
  from sentence_transformers import CrossEncoder

  dtype = torch.bfloat16 if bf16 else torch.float32
  model = CrossEncoder(
    str(folder), device='cpu', max_length=load.lengths(folder, max_len)['max_len'],
    model_kwargs={'dtype': dtype}, trust_remote_code=False,
  )  # fmt: skip

  def score(query, texts):
    return model.predict([(query, t) for t in texts], show_progress_bar=False)

  return score


def transformer(folder: Path, compiled: bool, max_len: int) -> Callable:
  """transformers in bf16 on the GPU if there is one: a call pads its texts to the longest."""
  import torch
  from transformers import AutoModelForSequenceClassification, AutoTokenizer

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
  model = AutoModelForSequenceClassification.from_pretrained(
    folder, dtype=torch.bfloat16, attn_implementation='sdpa', trust_remote_code=False
  ).to(device).eval()  # fmt: skip
  run = torch.compile(model) if compiled else model
  options = {'truncation': True, 'padding': True, 'return_tensors': 'pt'}
  options['max_length'] = load.lengths(folder, max_len)['max_len']

  @torch.inference_mode()
  def score(query, texts):
    feeds = tokenizer([query] * len(texts), list(texts), **options).to(device)
    return run(**feeds).logits[:, 0].float().cpu().numpy()

  return score


def plain_onnx(folder: Path, max_len: int) -> Callable:
  """ONNX Runtime's defaults on the fp32 file: one call with all texts, padded to the longest."""
  import onnxruntime
  from transformers import AutoTokenizer

  tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
  model = folder / formats.ONNX['onnx']
  session = onnxruntime.InferenceSession(
    formats.checked_onnx(model)
    if model.exists()
    else formats.build_onnx(folder, 'onnx').SerializeToString(),
    providers=['CPUExecutionProvider'],
  )
  options = {'truncation': True, 'padding': True, 'return_tensors': 'np'}
  options |= {'max_length': max_len} if max_len else {}

  def score(query, texts):
    feeds = tokenizer([query] * len(texts), list(texts), **options)
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0][:, 0]

  return score
