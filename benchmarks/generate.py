"""Tokens per second of generation, beside transformers' `generate` on the same prompts, in turn.

Prompts are random ids of different lengths, and no row ends early. transformers gets them as one
left-padded batch.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks import _compare, _figures, _side, _worker
from disranker_jax.commands.common import Parser, positive
from disranker_jax.devices import runtime
from disranker_jax.models import weights
from disranker_jax.report import tables


def parse_args(argv) -> argparse.Namespace:
  parser = Parser('bench generate', __doc__, '--model smollm2-135m')
  add = parser.add_argument_group('generate').add_argument
  add('--model', default='smollm2-135m', help='a decoder: a folder or a name')
  add('--prompts', type=positive, default=64, help='rows that are generated at a time')
  add('--prompt-len', type=positive, default=64, help='the longest prompt; half of it the shortest')
  add('--new', type=positive, default=64, help='tokens that each row gets')
  add('--samples', type=positive, default=1, help='rows for each prompt')
  add('--temperature', type=float, default=0.0, help='0: greedy')
  add('--top-p', type=float, default=1.0, help='mass of the tokens that are drawn from')
  add('--precision', default='auto', help='ours: auto, float32, bfloat16_dots or bfloat16')
  add('--rounds', type=positive, default=3, help='turns of each side, whose median is shown')
  _compare.add_peers(add, _compare.TORCH)
  add('--json', action='store_true', help='also print the answer as one last line of JSON')
  return parser.parse_args(argv)


def prompts(args: argparse.Namespace, vocabulary: int) -> list[list[int]]:
  """Random ids: neither side looks at what they mean."""
  rng = np.random.default_rng(0)
  longest = args.prompt_len
  lengths = rng.integers(-(-longest // 2), longest + 1, args.prompts)
  return [rng.integers(3, vocabulary, n).tolist() for n in lengths]


class Side(_side.Side):
  """A side's turns: `generate` makes args.new tokens for each row."""

  def first(self) -> None:
    self.generate()

  def turn(self) -> dict:
    begin, cpu = time.perf_counter(), time.process_time()
    self.generate()
    tokens = self.args.prompts * self.args.samples * self.args.new
    return {
      'seconds': time.perf_counter() - begin, 'cpu_s': time.process_time() - cpu,
      'tokens': tokens, 'places': tokens, 'steps': self.args.new,
    }  # fmt: skip


class Ours(Side):
  """`models.generate`, with the parameters on the device."""

  def open(self) -> None:
    import jax

    from disranker_jax.models import hf, load, network

    precision = load.precision(self.args.precision)
    self.network = network.from_hf(self.folder, head='lm', precision=precision)
    self.variables = jax.device_put(hf.load(self.folder, self.network, jax.random.key(0)))
    self.prompts = prompts(self.args, self.network.config.vocab)

  def generate(self) -> None:
    from disranker_jax.models.generate import generate

    rows = generate(
      self.network, self.variables, self.prompts, max_new=self.args.new, eos_id=-1,
      samples=self.args.samples, temperature=self.args.temperature, top_p=self.args.top_p,
    )  # fmt: skip
    assert {len(row) for row in rows} == {self.args.new}


class Torch(Side):
  """transformers' `generate`."""

  def __init__(self, args: argparse.Namespace, dtype: str):
    super().__init__(args)
    self.dtype = dtype

  def open(self) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.model = AutoModelForCausalLM.from_pretrained(
      self.folder, dtype=getattr(torch, self.dtype), attn_implementation='sdpa'
    ).to(self.device)
    rows = prompts(self.args, self.model.config.vocab_size)
    longest = max(map(len, rows))
    self.ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows]).to(self.device)
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    self.mask = torch.tensor(mask).to(self.device)

  def generate(self) -> None:
    import torch

    sample = {}
    if self.args.temperature:
      sample = {'temperature': self.args.temperature, 'top_p': self.args.top_p, 'top_k': 0}
    with torch.inference_mode():
      out = self.model.generate(
        self.ids, attention_mask=self.mask, max_new_tokens=self.args.new, eos_token_id=None,
        min_new_tokens=None, pad_token_id=0, do_sample=bool(sample),
        num_return_sequences=self.args.samples, **sample,
      )  # fmt: skip
    assert out.shape[1] == self.ids.shape[1] + self.args.new


def open_side(name: str, argv: list[str], folder: Path) -> Side:
  args = parse_args(argv)
  if name == 'ours':
    return Ours(args)
  return Torch(args, {'torch_fp32': 'float32', 'torch_bf16': 'bfloat16'}[name])


def main(argv) -> None:
  args = parse_args(argv)
  runtime.prepare()
  weights.find(args.model)  # here, because it may print progress
  sides = ['ours', *_compare.peers(args, _compare.TORCH)]
  turns, facts = _worker.in_turn('generate', sides, argv, Path('.'), args.rounds, apart=False)
  answer = _figures.answer(turns, facts)
  heads = ['side', 'tokens/s', 's per token', 'CPU s per token', 'first call s', 'memory GB']
  heads += ['ours is faster', 'in CPU time']
  rows = []
  for name, side in answer['sides'].items():
    ratios = [side.get(key) for key in ('first_is_faster', 'first_is_cheaper')]
    rows.append([
      name, f'{side["tokens_per_s"]:,.0f}', f'{side["step_s"]:.3f}', f'{side["cpu_s"]:.3f}',
      f'{side["first_s"]:.1f}', f'{side["memory_bytes"] / 1e9:.2f}',
      *('{median:.2f} ({low:.2f} to {high:.2f})'.format(**r) if r else '' for r in ratios),
    ])  # fmt: skip
  how = f'temperature {args.temperature}, top_p {args.top_p}' if args.temperature else 'greedy'
  print(
    f'generate with {args.model}: {args.prompts} prompts of up to {args.prompt_len} tokens, '
    f'{args.samples} rows each, {args.new} new tokens, {how}; medians of {args.rounds} turns'
  )
  print(tables.markdown(heads, rows))
  for name in sides:
    if 'failed' in facts[name]:
      print(f'{name} failed: {facts[name]["failed"]}')
  if args.json:
    print(json.dumps(_figures.short(answer)))
