"""The peer: transformers with torch, on the same sequences, used as a careful user would.

Sequences of a step are sorted by length and padded in parts, attention is sdpa, the head reads only
the positions that matter, AdamW is fused. bf16 is autocast with fp32 parameters for training (bf16
for frozen ones) and bf16 parameters for scoring. Making the batches is not in its time.
"""

import dataclasses
import functools
import itertools
import re
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks import _work
from benchmarks._work import Sequence, Work
from disranker_jax.errors import UserError
from disranker_jax.models import families

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class Lora(nn.Module):
  """A frozen linear layer and its low-rank update."""

  def __init__(self, base: nn.Linear, rank: int, alpha: float):
    super().__init__()
    self.base, self.scale = base, alpha / rank
    where = {'device': base.weight.device, 'dtype': torch.float32}
    self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, **where))
    self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, **where))
    nn.init.kaiming_uniform_(self.lora_a)

  def forward(self, x):
    return self.base(x) + F.linear(F.linear(x, self.lora_a) * self.scale, self.lora_b)


class Network(nn.Module):
  """A decoder or a BERT with a ranking head."""

  def __init__(self, work: Work, dtype):
    super().__init__()
    folder, settings = work.model_folder(), work.settings
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    self.causal = families.find(config.model_type).causal
    kind = AutoModelForCausalLM if self.causal else AutoModelForSequenceClassification
    # Ours has no dropout either.
    config.update(
      {'num_labels': 1, 'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
    )
    load = functools.partial(kind.from_pretrained, folder, trust_remote_code=False)
    options = {'config': config, 'dtype': dtype, 'attn_implementation': 'sdpa'}
    with torch.device(DEVICE):
      make = kind.from_config if work.tokens else load
      self.model = make(**options).to(DEVICE)
      scored = self.causal and 'score_head' in work.scorer
      self.score = nn.Linear(config.hidden_size, 1, bias=False) if scored else None
    holder = getattr(self.model.base_model, 'encoder', self.model.base_model)
    name = 'layers' if hasattr(holder, 'layers') else 'layer'
    if settings.layers:
      kept = [getattr(holder, name)[i] for i in settings.layers]
      setattr(holder, name, nn.ModuleList(kept))
      config.num_hidden_layers = len(kept)
    self.blocks = getattr(holder, name)
    if settings.remat != 'none':
      self.model.gradient_checkpointing_enable({'use_reentrant': False})

  def adapt(self, rank: int, alpha: float) -> None:
    """Freezes all parameters and adds an adapter to every matrix of the blocks."""
    self.requires_grad_(False)
    for block in self.blocks:
      for module in list(block.modules()):
        for name, child in list(module.named_children()):
          if isinstance(child, nn.Linear):
            setattr(module, name, Lora(child, rank, alpha))

  def scores(self, part: 'Part', scorer: str):
    """One score per sequence."""
    if not self.causal:
      return self.model(part.ids, attention_mask=part.mask, token_type_ids=part.types).logits[:, 0]
    hidden, total = self.hidden(part), 0.0
    if 'query_likelihood' in scorer:
      logprobs = self._logprobs(hidden, part)
      sums = torch.zeros(len(part.ids), device=DEVICE).index_add(0, part.rows, logprobs)
      counts = torch.bincount(part.rows, minlength=len(part.ids))
      total = total + sums / counts.clamp(min=1)
    if 'score_head' in scorer:
      last = hidden[torch.arange(len(hidden), device=DEVICE), part.anchors]
      total = total + self.score(last.to(self.score.weight.dtype))[:, 0].float()
    return total

  def logprobs(self, part: 'Part'):
    """The log-probabilities of all predicted tokens."""
    return self._logprobs(self.hidden(part), part)

  def hidden(self, part: 'Part'):
    # Causal attention never sees the padding after a sequence, and is faster without a mask.
    return self.model.model(part.ids, use_cache=False).last_hidden_state

  def _logprobs(self, hidden, part: 'Part'):
    logits = self.model.lm_head(hidden[part.rows, part.columns]).float()
    return -F.cross_entropy(logits, part.targets, reduction='none')


@dataclasses.dataclass(frozen=True)
class Part:
  """Sequences of similar length, padded to the longest of them."""

  ids: torch.Tensor
  types: torch.Tensor
  mask: torch.Tensor | None  # None: there is no padding
  anchors: torch.Tensor
  rows: torch.Tensor  # of each predicted token: its sequence; then the position before it; its id
  columns: torch.Tensor
  targets: torch.Tensor


def parts(sequences: list[Sequence], size: int) -> tuple[list[Part], np.ndarray]:
  """(parts of `size`, order of the sequences in them), shortest sequences first."""
  order = np.argsort([len(s.ids) for s in sequences], kind='stable')
  cut = [[sequences[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
  return [padded(some) for some in cut], order


def padded(some: list[Sequence]) -> Part:
  length = max(len(s.ids) for s in some)
  ids, types, mask = np.zeros((3, len(some), length), np.int64)
  for i, s in enumerate(some):
    ids[i, : len(s.ids)], types[i, : len(s.ids)], mask[i, : len(s.ids)] = s.ids, s.types, 1
  put = lambda x: torch.as_tensor(np.asarray(x, np.int64)).to(DEVICE)  # noqa: E731
  rows = np.repeat(np.arange(len(some)), [len(s.targets) for s in some])
  return Part(
    put(ids), put(types), None if mask.all() else put(mask), put([s.anchor for s in some]),
    put(rows), put(np.concatenate([s.at for s in some])),
    put(np.concatenate([s.targets for s in some])),
  )  # fmt: skip


class Timed:
  """What both torch sides share: their facts, and the fastest part size."""

  def __init__(self, work: Work, steps: int, bf16: bool, sizes: list[int], compiled: bool):
    self._work, self._steps, self._bf16 = work, steps, bf16
    self._sizes, self._compiled_model, self._size = sizes, compiled, sizes[0]

  def _tune(self, step: Callable[[int], None]) -> dict:
    """Keeps the part size with the fastest step; each is tried once after a warm-up."""
    took = {}
    for size in self._sizes:
      step(size)
      took[size] = timed(lambda size=size: step(size))['seconds']
    self._size = min(took, key=took.get)
    return {'part': self._size, 'device': kind(), 'threads': torch.get_num_threads()}

  def end(self) -> dict:
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device = torch.cuda.max_memory_allocated() if DEVICE == 'cuda' else None
    return {'memory_bytes': device or process, 'device_bytes': device, 'process_bytes': process}


class Train(Timed):
  """Steps of a training stage."""

  def start(self) -> dict:
    c, side = self._work.config[self._work.stage], self._work.settings
    _, feed = self._work.job(self._work.open_side())
    self._todo, self._settings = _work.steps(feed), c
    self._lora = bool(side.lora_rank)
    self._network = trainable(self._work, self._bf16)
    if self._compiled_model:
      self._network.model = torch.compile(self._network.model, dynamic=True)
    self._trained = [p for p in self._network.parameters() if p.requires_grad]
    make = {
      'adamw': functools.partial(torch.optim.AdamW, betas=(0.9, c.adam_b2), fused=True),
      'adafactor': torch.optim.Adafactor,
    }[c.optimizer]
    self._optimizer = make(self._trained, lr=c.learning_rate, weight_decay=c.weight_decay)
    first = next(self._todo)
    with torch.no_grad():  # the first loss, before any update, as ours reports it
      loss = float(self._loss(first, *parts(first, self._sizes[0]), backward=False))
    return self._tune(lambda size: self._step(first, *parts(first, size))) | {'first_loss': loss}

  def warm(self) -> dict:
    sequences = next(self._todo)
    self._step(sequences, *parts(sequences, self._size))
    return {}

  def turn(self) -> dict:
    todo = [next(self._todo) for _ in range(self._steps)]
    ready = [(sequences, *parts(sequences, self._size)) for sequences in todo]
    row, done = repeated(self._steps, lambda i: self._step(*ready[i % len(ready)]))
    ran = [ready[i % len(ready)] for i in range(done)]
    row |= counted(itertools.chain(*(s for s, _, _ in ran)), [p for _, ps, _ in ran for p in ps])
    return row | {'steps': done}

  def _step(self, sequences, some, order) -> None:
    self._optimizer.zero_grad(set_to_none=True)
    self._loss(sequences, some, order)
    if self._settings.max_grad_norm:
      nn.utils.clip_grad_norm_(self._trained, self._settings.max_grad_norm)
    self._optimizer.step()

  def _loss(self, sequences, some: list[Part], order, backward: bool = True):
    """The step's loss; gradients accumulate part by part if the loss is a sum over parts."""
    with torch.autocast(DEVICE, torch.bfloat16, enabled=self._bf16):
      if self._work.stage == 'cpt':
        count, total = sum(len(p.targets) for p in some), 0.0
        for part in some:
          loss = -self._network.logprobs(part).sum() / count
          if backward:
            loss.backward()
          total += loss.detach()
        return total
      scores = torch.cat([self._network.scores(p, self._work.scorer) for p in some]).float()
    back = torch.as_tensor(np.argsort(order)).to(DEVICE)
    loss = ranking_loss(self._work.stage, self._settings, scores[back], sequences)
    if backward:
      loss.backward()
    return loss.detach()


class Score(Timed):
  """Scores token ids that are tokenised in advance and sorted over the whole turn."""

  def start(self) -> dict:
    side, stage = self._work.open_side(), self._work.stage
    self._prompt, self._groups = side.prompt(), self._work.groups()
    settings = self._work.settings
    places = self._steps * self._work.config[stage].batch_rows * settings.row_len
    self._queries = self._groups.queries(self._prompt, places)
    dtype = torch.bfloat16 if self._bf16 else torch.float32
    self._network = Network(self._work, dtype).eval()
    if self._compiled_model:
      self._network.model = torch.compile(self._network.model, dynamic=True)
    first = self._encoded([self._groups[i] for i in range(max(1, self._queries // self._steps))])
    return self._tune(lambda size: self._run(parts(first, size)[0]))

  def _encoded(self, groups) -> list[Sequence]:
    return [encoded(doc) for g in groups for doc in self._prompt.encode(g.query, g.docs)]

  def warm(self) -> dict:
    sequences = self._encoded(self._groups.take(max(1, self._queries // self._steps)))
    self._run(parts(sequences, self._size)[0])
    return {}

  def turn(self) -> dict:
    sequences = self._encoded(self._groups.take(self._queries))
    some, _ = parts(sequences, self._size)
    row, done = repeated(1, lambda _: self._run(some))
    row |= {k: n * done for k, n in counted(sequences, some).items()}
    return row | {'steps': self._steps * done, 'pairs': len(sequences) * done}

  @torch.inference_mode()
  def _run(self, some: list[Part]) -> list[torch.Tensor]:
    scores = [self._network.scores(part, self._work.scorer).float() for part in some]
    return [x.cpu() for x in scores]  # at the end, so that the GPU does not wait for each part


def encoded(doc) -> Sequence:
  """A prompt's output as a Sequence."""
  at = np.arange(*doc.predict)
  return Sequence(doc.ids, doc.types, doc.anchor, at - 1, doc.ids[at], 0, 0.0, 0.0)


def trainable(work: Work, bf16: bool) -> Network:
  """The network, in which only the parameters that the stage trains require gradients."""
  side, pattern = work.settings, work.config[work.stage].trainable
  whole = bool(re.search(pattern, 'params/blocks/q/kernel'))
  if not whole and not side.lora_rank:
    raise UserError(
      f'trainable={pattern!r}: torch trains all parameters or the adapters; pass --peers none'
    )
  low = not whole and (bf16 or side.param_dtype == 'bfloat16')  # what is trained is fp32
  network = Network(work, torch.bfloat16 if low else torch.float32)
  if side.lora_rank:
    network.adapt(side.lora_rank, side.lora_alpha)
    network.requires_grad_(True) if whole else None
    if network.score is not None and re.search(pattern, 'params/score/kernel'):
      network.score.requires_grad_(True)
  return network.train()


def ranking_loss(stage: str, c, scores, sequences: list[Sequence]):
  """The paper's losses, whatever the config names: their cost is negligible."""
  groups = sorted({s.group for s in sequences})
  place = {g: i for i, g in enumerate(groups)}
  column, rows, columns = {}, [], []
  for s in sequences:
    rows.append(place[s.group])
    columns.append(column.setdefault(s.group, 0))
    column[s.group] += 1
  shape, at = (len(groups), max(column.values())), (torch.tensor(rows), torch.tensor(columns))

  def spread(values):
    values = torch.as_tensor(values, device=DEVICE, dtype=torch.float32)
    return torch.zeros(shape, device=DEVICE).index_put(tuple(x.to(DEVICE) for x in at), values)

  scores, labels = spread(scores), spread([s.label for s in sequences])
  mask = spread([1.0] * len(sequences)) > 0
  if stage in ('sft', 'student_sft'):
    loss, valid = hinge(scores, labels, mask, c.margin)
    return loss.sum() / valid.sum().clamp(min=1)
  loss = hybrid(scores, spread([s.teacher for s in sequences]), mask, c.beta)
  if c.hard_label_weight:
    loss = (
      loss
      + c.hard_label_weight * hinge(scores, labels, mask & (labels >= 0), c.hard_label_margin)[0]
    )
  return loss.sum() / len(groups)


def hinge(scores, labels, mask, margin: float):
  """(mean loss over each query's pairs with unequal labels, whether the query has any)."""
  better = (labels[:, :, None] > labels[:, None, :]) & mask[:, :, None] & mask[:, None, :]
  losses = F.relu(margin - (scores[:, :, None] - scores[:, None, :])) * better
  count = better.sum((1, 2))
  return losses.sum((1, 2)) / count.clamp(min=1), count > 0


def hybrid(scores, teacher, mask, beta: float):
  """Point-MSE + beta * Margin-MSE per query."""
  off = (scores - teacher) * mask
  point = 2 * off.square().sum(1) / mask.sum(1).clamp(min=1)
  pairs = (mask[:, :, None] & mask[:, None, :]).triu(1)
  margins = (off[:, :, None] - off[:, None, :]).square() * pairs
  return point + beta * margins.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def counted(sequences, some: list[Part]) -> dict:
  return {'tokens': sum(len(s.ids) for s in sequences), 'places': sum(p.ids.numel() for p in some)}


def timed(work: Callable) -> dict[str, float]:
  """Seconds until the device has finished `work`, and seconds of CPU time."""
  begin, cpu = time.perf_counter(), time.process_time()
  work()
  if DEVICE == 'cuda':
    torch.cuda.synchronize()
  return {'seconds': time.perf_counter() - begin, 'cpu_s': time.process_time() - cpu}


def repeated(steps: int, work: Callable[[int], None]) -> tuple[dict[str, float], int]:
  """(`timed`, how often) of work that is repeated as long as a turn lasts."""
  window, done = _work.Window(steps, DEVICE == 'cuda'), 0

  def run():
    nonlocal done
    while window(done):
      work(done)
      done += 1

  return timed(run), done


def kind() -> str:
  return torch.cuda.get_device_name() if DEVICE == 'cuda' else 'cpu'
