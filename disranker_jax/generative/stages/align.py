"""Distillation of a ranking teacher into the retriever: DGR.

The retriever's own pages for the training queries are put into the teacher's order. Each step takes
a relevant page, the best other one, and others at random; these are drawn again in every epoch,
where the released code draws them once.

Source: DGR (Li et al., 2024, arXiv:2402.10769).
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from disranker_jax import losses
from disranker_jax.config.settings import Key, between, boolean, text
from disranker_jax.generative.examples import Drawn, Example, ExamplePage, picked, shuffled
from disranker_jax.generative.stages import ranking
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import held_out
from disranker_jax.stages.held_out import LOSS, TAU
from disranker_jax.training.settings import training

NAME = 'align'


def candidates(c, example: Example) -> tuple[list[ExamplePage], list[ExamplePage]]:
  """(relevant pages, others) that the loss can order."""
  relevant = [
    page for page in example.pages
    if page.is_relevant and (page.has_score if c.positives_first else math.isfinite(page.target))
  ]  # fmt: skip
  others = [p for p in example.pages if not p.is_relevant and math.isfinite(p.target)]
  return relevant, others


def usable(c, example: Example) -> bool:
  """Whether some pair of pages has an order."""
  relevant, others = candidates(c, example)
  if c.positives_first:
    return bool(relevant and others) or len({page.target for page in others}) > 1
  return len({page.target for page in (*relevant, *others)}) > 1


def draw(
  c, written, example: Example, rng: np.random.Generator, size: Callable | None = None
) -> Drawn:
  """A relevant page, the best other one and random ones, no two with the same target."""
  relevant, others = candidates(c, example)
  chosen: list[tuple[ExamplePage, float]] = []
  first = picked(relevant, rng, size) if relevant else None
  if first and not c.positives_first:
    chosen.append((first, first.target))
  for page in [*others[:1], *shuffled(others[1:], rng, size)]:
    if len(chosen) == c.documents - bool(first and c.positives_first):
      break
    if all(page.target != target for _, target in chosen):
      chosen.append((page, page.target))
  if first and c.positives_first:
    best = max((target for _, target in chosen), default=0.0)
    chosen.insert(0, (first, best + 1.0))
  pages = tuple((place, page, target) for place, (page, target) in enumerate(chosen))
  # The texts are learned also where the teacher has no score of the page.
  page = first or next((page for page in example.pages if page.is_relevant), None)
  return Drawn(example.query, pages, tuple(written(example.query, page, rng)) if page else ())


METHOD = ranking.Method(
  NAME,
  pages=lambda c: c.documents,
  rank=lambda c: losses.choose(losses.ON_SCORES, c.loss, f'{NAME}.loss'),
  draw=draw,
  usable=usable,
  left_out='no two pages with different teacher scores',
  names=(LOSS, TAU),
)


def check(config) -> None:
  METHOD.rank(config[NAME])
  held_out.check(config, NAME, METHOD.names)


STAGE = Stage(
  NAME, "the retriever learns the teacher's order of the pages that it found", METHOD.execute,
  settings={
    **training(epochs=3.0, learning_rate=1e-5, warmup_ratio=0.1, schedule='linear'),
    'loss': Key(
      'distilled_ranknet', text('a loss on scores'),
      "A loss on the teacher's scores; see losses/. Page scores are divided by the mean best score "
      'of the retriever, so a margin of 0.3 means the same in every collection.',
    ),
    'documents': Key(6, between(2, 1000), 'Pages of a query in a step, at most.'),
    'positives_first': Key(
      False, boolean(),
      "Put a relevant page above all others, as the code of DGR does; else the teacher's order "
      'holds for all.',
    ),
    **ranking.SETTINGS,
  },
  check=check, role=ranking.ROLE, reads_stages=ranking.READS,
  requires=lambda config: {NAME: ('prepare', 'retrieve', 'score')},
  reads_records=lambda config: ('judgements',), head=lambda config: 'lm', task=METHOD.task,
  uses=METHOD.uses,
  check_models=METHOD.check_room, check_records=functools.partial(ranking.check_records, NAME),
)  # fmt: skip
