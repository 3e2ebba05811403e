"""The retriever learns to rank from labels alone: LTRGR, the baseline of align.

Source: LTRGR (Li et al., 2023, arXiv:2306.15222).
"""

import functools
from collections.abc import Callable

import numpy as np

from disranker_jax.config.settings import Key, at_least
from disranker_jax.generative.examples import Drawn, Example, ExamplePage, picked
from disranker_jax.generative.ngrams import two_margins
from disranker_jax.generative.stages import ranking
from disranker_jax.pipeline.stage import Stage
from disranker_jax.stages import held_out
from disranker_jax.stages.held_out import LOSS
from disranker_jax.training.settings import training

NAME = 'ltrgr'
PAGES = 4


def candidates(example: Example) -> tuple[list[ExamplePage], list[ExamplePage]]:
  """(relevant pages, others) that have a score.

  A relevant page that was not found has none to raise, so its query could only push others down;
  the released code leaves such queries out too.
  """
  scored = [page for page in example.pages if page.has_score]
  return [p for p in scored if p.is_relevant], [p for p in scored if not p.is_relevant]


def usable(c, example: Example) -> bool:
  """Whether a relevant page and another one have a score."""
  return all(candidates(example))


def draw(
  c, written, example: Example, rng: np.random.Generator, size: Callable | None = None
) -> Drawn:
  """The first relevant page, the first other one, and one more of each at random."""
  relevant, others = candidates(example)
  chosen = [(0, relevant[0]), (1, others[0])]
  for place, pages in ((2, relevant), (3, others)):
    if len(pages) > 1:
      chosen.append((place, picked(pages[1:], rng, size)))
  pages = tuple((place, page, float(page.is_relevant)) for place, page in chosen)
  return Drawn(example.query, pages, tuple(written(example.query, relevant[0], rng)))


METHOD = ranking.Method(
  NAME,
  pages=lambda c: PAGES,
  rank=lambda c: functools.partial(two_margins, margin=c.margin, drawn_margin=c.drawn_margin),
  draw=draw,
  usable=usable,
  left_out='no relevant page was found by an n-gram with a weight, or no other one',
  names=(LOSS,),
  without=', or take ltrgr out of config.stages: only its own rows, a baseline, need it',
)


STAGE = Stage(
  NAME, 'the retriever learns the order of pages from labels alone', METHOD.execute,
  settings={
    **training(epochs=3.0, learning_rate=1e-5, warmup_ratio=0.1, schedule='linear'),
    'margin': Key(
      0.3, at_least(0),
      'Between the first relevant page and the first other one. Page scores are divided by the '
      "retriever's mean best score.",
    ),
    'drawn_margin': Key(0.4, at_least(0), 'Between the two pages that are drawn at random.'),
    **ranking.SETTINGS,
  },
  check=lambda config: held_out.check(config, NAME, METHOD.names),
  role=ranking.ROLE, reads_stages=ranking.READS[:-1],
  requires=lambda config: {NAME: ('prepare', 'retrieve')},
  reads_records=lambda config: ('judgements',), head=lambda config: 'lm', task=METHOD.task,
  uses=METHOD.uses,
  check_models=METHOD.check_room, check_records=functools.partial(ranking.check_records, NAME),
)  # fmt: skip
