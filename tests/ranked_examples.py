"""Examples with made-up pages for the stages align and ltrgr, and a run that trains on them."""

import numpy as np

from disranker_jax import config as configs
from disranker_jax.data.batches import Packer
from disranker_jax.devices import sharding
from disranker_jax.generative import evidence
from disranker_jax.generative.examples import Example, ExamplePage, Material
from disranker_jax.generative.records import VIEWS, Match, Ngram
from disranker_jax.generative.stages import align, ranking
from disranker_jax.models import load, tree
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import roles
from disranker_jax.training import checkpoint

MESH = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
END, SIZE = 2, 10**9  # of a large collection, so that all n-grams of a random model weigh


def make_run(folder, **changes) -> Run:
  c = configs.defaults('dgr')
  c.stages = ('prepare', 'generate', 'index', 'retrieve', 'score', 'ltrgr', 'align')
  c.retriever.update(model='tiny-decoder', precision='float32', remat='none')
  c.retriever.update(max_len=48, max_query_len=16, row_len=64)
  # By the mean of their tokens the pseudo-queries of a random model weigh nothing.
  c.retrieve.query_form = 'capped'
  c.validation.share = 0.0
  c.tensorboard = False
  for stage in (c.align, c.ltrgr):
    stage.update(batch_rows=8, learning_rate=3e-3, ngrams=3)
  c.update(changes)
  return Run(c, folder, MESH)


def prompt(query: str, view: str) -> list[int]:
  return [1, *(100 + ord(letter) % 64 for letter in query), 200 + VIEWS.index(view)]


def written(query, page, rng) -> list[tuple[str, tuple[int, ...]]]:
  start = 300 + 10 * int(page.doc_id)
  return [
    ('title', (start, start + 1, END)),
    ('body', tuple(range(start + int(rng.integers(3)), start + 5))),
  ]


def page(rng, number: int, target: float, label: int = -1, count: int = 4) -> ExamplePage:
  """A page with n-grams of its own, of every view."""
  matches = []
  for i in range(count):
    tokens = (300 + 10 * number + i, *rng.integers(400, 590, rng.integers(1, 4)).tolist())
    view, lo = VIEWS[i % 3], int(rng.integers(1000))
    gram = Ngram(view, tokens, -6.0, lo, lo + int(rng.integers(1, 9)))
    matches.append(Match(gram, float(evidence.weight(-6.0, gram.count, SIZE)), 1.0 - 0.2 * i))
  return ExamplePage(str(number), target, label, tuple(matches))


def example(seed: int, relevant: int = 2, pages: int = 5) -> Example:
  """A query whose relevant page the teacher puts somewhere in the middle."""
  rng = np.random.default_rng(seed)
  targets = rng.permutation(pages).astype(float).tolist()
  made = (
    page(rng, int(rng.integers(20)), targets[i], int(i == relevant)) for i in range(pages)
  )  # fmt: skip
  return Example(f'query {seed}', tuple(made))


def material(count: int = 12, **changes) -> Material:
  return Material([example(i, **changes) for i in range(count)], SIZE, prompt, written)


def groups_of(run, found: Material, method=align.METHOD):
  encode, draw = method.encoder(run.config, found), method.drawing(run.config, found)
  return [encode(draw(e, np.random.default_rng(i))) for i, e in enumerate(found.examples)]


def packed(groups, shape):
  packer = Packer(shape)
  assert all(packer.add(group) for group in groups)
  return packer.batch()


def opened(run):
  model = load.open_model(run.config.retriever, 'lm')
  return model, roles.trained(run, 'retriever', model, (), trains='')


def trained(run, found, monkeypatch, method=align.METHOD) -> tuple[dict, dict]:
  monkeypatch.setattr(ranking, 'open_material', lambda run, model: found)
  results = method.execute(run)
  folder = run.folder(method.stage) / 'checkpoints'
  return results, tree.flatten(checkpoint.load_params(folder, MESH))
