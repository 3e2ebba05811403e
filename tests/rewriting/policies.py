"""A decoder with a vocabulary of sixteen numbers, and a reward that counts one of them.

`python policies.py SPEC` trains it in a process of its own; SPEC is a JSON object with the
arguments of `main`.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from disranker_jax.config.settings import build
from disranker_jax.data.records import Document
from disranker_jax.devices import processes, sharding
from disranker_jax.models.families.decoder_network import DecoderConfig
from disranker_jax.models.network import Network
from disranker_jax.rewriting import packed
from disranker_jax.rewriting.policy import PolicyLoss
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.rewards import RewardResult
from disranker_jax.rewriting.rollouts import Rollouts, draws
from disranker_jax.rewriting.sampling import Sampler
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.training import optimizer, train

VOCAB, END, WANTED = 16, 0, 5  # the end token is the one that pads batches too
SIZES = dict(
  vocab=VOCAB, width=32, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=16, eos_id=END, pad_id=END
)
QUERIES = [Query(f'q{i}', f'{i}', (Document(f'd{i}', 't', 's'),)) for i in range(24)]
LONGEST = 6
ONE = {'data': 1, 'fsdp': 1, 'model': 1}


class Numbers:
  """A prompt of some numbers for each query; a completion's text is its numbers."""

  longest = LONGEST

  def __call__(self, query: str) -> list[int]:
    rng = np.random.default_rng(int(query))
    return rng.integers(1, VOCAB, rng.integers(2, LONGEST + 1)).tolist()

  def texts(self, rows, think: bool = False) -> list[str]:
    return [' '.join(str(i) for i in row if i != END) for row in rows]


def share_of_wanted(queries, rewrites) -> RewardResult:
  """The share of one number in the rewrite, -1 for an empty one."""

  def share(text: str) -> float:
    words = text.split()
    return words.count(str(WANTED)) / len(words) if words else -1.0

  rewards_GS = np.array([[share(text) for text in each] for each in rewrites], np.float32)
  failed_GS = rewards_GS < 0
  return RewardResult(rewards_GS, {'embedding': np.where(failed_GS, 0, rewards_GS)}, failed_GS)


def of_process_0(queries, rewrites) -> RewardResult:
  """`share_of_wanted` in process 0; in the others it is not computed."""
  assert processes.is_first(), 'the reward is computed in another process too'
  return share_of_wanted(queries, rewrites)


def network(**changes) -> Network:
  return Network(DecoderConfig(**SIZES), head='lm', **changes)


def section(**changes):
  """The section `rewrite` of a config."""
  settings = {'prompts': 4, 'samples': 6, 'max_new': 5, 'learning_rate': 0.02, 'warmup_ratio': 0.0}
  c = build(rewrite.SETTINGS)
  c.update(settings | {'beta': 0.0, 'save_every': 1000} | changes)
  return c


def sampler(net, c, mesh, **changes) -> Sampler:
  settings = dict(
    stops={END}, rows=c.prompts, longest=LONGEST, max_new=c.max_new, samples=draws(c),
    temperature=c.temperature, top_p=c.top_p, seed=0, top_k=c.top_k,
  )  # fmt: skip
  return Sampler(net, mesh, **settings | changes)


def setup(c, folder, steps, net=None, reward=share_of_wanted, sizes=ONE, row_len=64, parts=1):
  """(job, feed, task, mesh) of GRPO on the numbers, in rows for so many parts of a batch."""
  net = net or network()
  mesh = sharding.make_mesh(sizes)
  shape = packed.shape_of(c, net, LONGEST, row_len, mesh).on(parts)
  loss, options = PolicyLoss(net, c, shape.facts), {}
  if packed.has_reference(c):
    options['more'] = lambda variables: optimizer.start(variables, c.trainable)
  task = train.Task(loss, shape, **options)
  feed = Rollouts(c, QUERIES, Numbers(), reward, sampler(net, c, mesh), shape, mesh, seed=0)
  return train.Job('rewrite', folder, loss, c, steps, 'samples', lower='x'), feed, task, mesh


def fit(variables, *arguments, **options):
  """Trains; returns the variables."""
  job, feed, task, mesh = setup(*arguments, **options)
  # A copy, since training takes the memory of what it starts from.
  variables = {k: sharding.put(v, mesh) for k, v in variables.items()}
  return train.fit(job, feed, variables | task.more(variables), mesh)


def start() -> dict:
  """The variables that every training here starts from."""
  return jax.tree.map(np.asarray, network().init(jax.random.key(0)))


def logged(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def main(folder: str, runs: dict, steps: int) -> None:
  """Trains once for each {name: [mesh sizes, changed settings]}, into FOLDER/name."""
  processes.start()
  for name, (sizes, changes) in runs.items():
    fit(
      start(), section(**changes), Path(folder) / name, steps, reward=of_process_0, sizes=sizes
    )  # fmt: skip


if __name__ == '__main__':
  main(**json.loads(sys.argv[1]))
