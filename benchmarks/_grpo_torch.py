"""The peer of `bench rewrite`: a step of GRPO by transformers and torch, with TRL's loss.

As in TRL's trainer without vLLM (huggingface/trl, trl/trainer/grpo_trainer.py): every sample has
its own row with the prompt, `generate` draws them, log-probabilities are those of the completion's
positions alone, and the reference is a frozen copy of the model. AdamW is fused. bf16 is autocast
with fp32 parameters, and a reference in bf16.
"""

import contextlib
import copy

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks._torch import DEVICE
from benchmarks.rewrite import Clock, Prompts, Side, Work, section


class Torch(Side):
  """Steps on the same queries, with the same reward."""

  def __init__(self, args, bf16: bool):
    super().__init__(args)
    self._bf16 = bf16

  def open(self) -> None:
    load = AutoModelForCausalLM.from_pretrained
    self._model = load(self.folder, dtype=torch.float32, attn_implementation='sdpa').to(DEVICE)
    self._c, self._reference = section(self.args), None
    if self._c.beta:
      self._reference = copy.deepcopy(self._model).eval().requires_grad_(False)
      if self._bf16:
        self._reference.to(torch.bfloat16)
    c = self._c
    self._optimizer = torch.optim.AdamW(
      self._model.parameters(), lr=c.learning_rate, betas=(0.9, c.adam_b2),
      weight_decay=c.weight_decay, fused=True,
    )  # fmt: skip
    work = Work(self.args, self._model.config.vocab_size)
    self._queries, self._score, self._at = work.queries, work.reward(), 0

  def _autocast(self):
    return torch.autocast(DEVICE, torch.bfloat16) if self._bf16 else contextlib.nullcontext()

  def step(self, clock: Clock) -> None:
    count = self._c.prompts
    places = [(self._at + i) % len(self._queries) for i in range(count)]
    self._at += count
    asked = [self._queries[i] for i in places]
    prompts_BT = self._ids(asked)
    whole_BT = clock.timed('decode', self._generate)(prompts_BT, self.args.new)
    new_BN = whole_BT[:, prompts_BT.shape[1] :].cpu()
    texts = Prompts().texts(new_BN.tolist())
    each = [texts[i : i + self._c.samples] for i in range(0, len(texts), self._c.samples)]
    found = clock.timed('reward', self._score)(asked, each)
    advantages_B = torch.tensor(advantages(found.rewards_GS).reshape(-1), device=DEVICE)
    reference_BN = clock.timed('reference', self._of_reference)(whole_BT)
    clock.timed('update', self._update)(whole_BT, advantages_B, reference_BN)

  def _ids(self, asked) -> torch.Tensor:
    prompt = Prompts()
    return torch.tensor([prompt(query.text) for query in asked], device=DEVICE)

  def first_tokens(self) -> None:
    self._generate(self._ids(self._queries[: self._c.prompts]), 1)

  def _generate(self, prompts_BT, new: int) -> torch.Tensor:
    self._model.eval()
    with torch.no_grad(), self._autocast():
      out = self._model.generate(
        prompts_BT, attention_mask=torch.ones_like(prompts_BT), max_new_tokens=new,
        eos_token_id=None, pad_token_id=0, do_sample=True, top_k=0, top_p=1.0,
        temperature=self._c.temperature, num_return_sequences=self._c.samples,
      )  # fmt: skip
    assert out.shape[1] == prompts_BT.shape[1] + new
    return wait(out)

  def _logprobs(self, model, whole_BT) -> torch.Tensor:
    new = self.args.new
    logits = model(whole_BT, use_cache=False, logits_to_keep=new + 1).logits[:, :-1]
    logs = (logits.float() / self._c.temperature).log_softmax(-1)
    return logs.gather(2, whole_BT[:, -new:, None])[..., 0]

  def _of_reference(self, whole_BT) -> torch.Tensor | None:
    if self._reference is None:
      return None
    with torch.no_grad():
      return wait(self._logprobs(self._reference, whole_BT))

  def _update(self, whole_BT, advantages_B, reference_BN) -> None:
    self._model.train()
    self._optimizer.zero_grad(set_to_none=True)
    with self._autocast():
      logprobs_BN = self._logprobs(self._model, whole_BT)
    c, mask_BN = self._c, torch.ones_like(logprobs_BN)
    old_BN = logprobs_BN.detach()
    loss = trl_loss(
      logprobs_BN, old_BN, reference_BN, advantages_B, mask_BN, c.beta, c.epsilon, c.epsilon_high
    )
    loss.backward()
    nn.utils.clip_grad_norm_(self._model.parameters(), c.max_grad_norm)
    self._optimizer.step()
    wait(loss)


def advantages(rewards_GS: np.ndarray) -> np.ndarray:
  """TRL's, of groups of samples: standard deviation with n - 1, plus 1e-4."""
  rewards_GS = np.asarray(rewards_GS, np.float32)
  mean_G1 = rewards_GS.mean(1, keepdims=True)
  ddof = min(1, rewards_GS.shape[1] - 1)
  return (rewards_GS - mean_G1) / (rewards_GS.std(1, ddof=ddof, keepdims=True) + 1e-4)


def trl_loss(logprobs, old, reference, advantages_B, mask, beta: float, low: float, high: float):
  """TRL's loss, the mean over all tokens (loss_type 'dapo' of one batch).

  Args:
    logprobs, old, reference, mask: [samples, tokens]; `reference` is None at beta 0.
    low, high: epsilon and epsilon_high.
  """
  ratio = torch.exp(logprobs - old)
  clipped = torch.clamp(ratio, 1 - low, 1 + high)
  per_token = -torch.min(ratio * advantages_B[:, None], clipped * advantages_B[:, None])
  if beta:
    difference = reference - logprobs
    per_token = per_token + beta * (torch.exp(difference) - difference - 1)
  return (per_token * mask).sum() / mask.sum().clamp(min=1.0)


def wait(x: torch.Tensor) -> torch.Tensor:
  """The tensor, when the device has computed it."""
  if DEVICE == 'cuda':
    torch.cuda.synchronize()
  return x
