"""A feed whose examples the retriever finds again every few steps, as it is by then.

The released codes of LTRGR and DGR never do: the n-grams of a page stay those of the first
retriever, while another one is trained.
"""

import dataclasses
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import jax
import numpy as np

from disranker_jax.data import streams
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.generative import retrieved
from disranker_jax.generative.examples import Example, Material
from disranker_jax.generative.retriever import Retriever
from disranker_jax.generative.stages import index, retrieve
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline.stage import saved_steps
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import held_out
from disranker_jax.training.feed import OfflineFeed

FOUND = 'found'  # the folder of all searches, in that of the stage


class RefreshedFeed(OfflineFeed):
  """Batches of examples that are replaced every `every` steps.

  What is in use follows from the number of steps, and what was found is on disk. So a resumed run
  gives the same result.

  Args:
    feed: the batches of the first steps.
    data_of: examples -> their batches, in the same order for any examples.
    find: (variables, step) -> examples, which it stores.
    stored: step -> the examples that were found at this step.
  """

  def __init__(
    self,
    feed: OfflineFeed,
    mesh: jax.sharding.Mesh,
    every: int,
    data_of: Callable[[Sequence[Example]], streams.Training],
    find: Callable[[dict, int], Sequence[Example]],
    stored: Callable[[int], Sequence[Example]],
  ):
    super().__init__(feed.data, mesh, feed.accumulate)
    self._every, self._data_of, self._find, self._stored = every, data_of, find, stored
    self._steps = 0  # whose batches were taken

  def next(self, variables: dict) -> tuple[list[dict], list[str]]:
    """See training.feed.Feed."""
    if self._steps and self._steps % self._every == 0:
      self._use(self._find(variables, self._steps))
    self._steps += 1
    return super().next(variables)

  def positions(self) -> jax.Array:
    """How many queries each block has used, and the number of steps, [A, 2]."""
    own = np.array([(stream.position, self._steps) for stream in self._streams], np.int32)
    return sharding.put_batch({'positions_A': own}, self._mesh, self.blocks)['positions_A']

  def seek(self, positions_A: jax.Array) -> None:
    own = sharding.own_part(positions_A, self._mesh, self.blocks)
    self._steps = int(own[0, 1])
    last = self._steps - self._steps % self._every
    if 0 < last < self._steps:  # at `last` itself, `next` finds them
      self._use(self._stored(last))
    self._seek(own[:, 0].tolist())

  def _use(self, examples: Sequence[Example]) -> None:
    """Continues at the same place of other examples."""
    places = [stream.position for stream in self._streams]
    self.data = self._data_of(examples)
    del self._streams
    self._seek(places)

  def _seek(self, places: list[int]) -> None:
    for stream, place in zip(self._streams, places, strict=True):
      stream.seek(place)


class Finder:
  """Finds the pages of a stage's queries again, and stores them in a folder per step.

  Args:
    learned: the examples of the first steps; where a query finds nothing to rank by, its example
      stays.
    usable: example -> whether there is something to rank.
  """

  def __init__(
    self,
    run,
    stage: str,
    model: TextModel,
    material: Material,
    learned: held_out.Subset,
    usable: Callable[[Example], bool],
  ):
    self._run, self._stage, self._model, self._usable = run, stage, model, usable
    self._learned, self._groups = learned, learned.of(material.groups)
    self._example = material.example

  def find(self, variables: dict, step: int) -> list[Example]:
    """What the retriever with these variables finds. Raises: Stopped as retrieve does."""
    run = self._run
    pages, suffixes = index.load(run)

    def opened() -> Retriever:
      c, watchdog_s = run.config.retrieve, run.config.watchdog_s
      return Retriever(self._model, variables, pages, suffixes, c, run.mesh, c.depth, watchdog_s)

    label = f'{self._stage}: pages at step {step}'
    retrieve.fill(run, self._groups, self._shards(step), opened, label)
    processes.first_alone(f'{label}: earlier ones are deleted', self._drop)
    return self.stored(step)

  def _drop(self) -> None:
    folder = self._run.folder(self._stage)
    saved = saved_steps(folder / 'checkpoints')
    drop(folder / FOUND, saved, self._run.config[self._stage].refresh)

  def stored(self, step: int) -> list[Example]:
    """What was found at a step. Raises: UserError if it is not on disk."""
    shards = self._shards(step)
    if shards.kept() < len(self._groups):
      raise UserError(
        f'{shards.folder}: lacks pages that were found at step {step}; begin again with '
        f'--rerun={self._stage}'
      )
    found = map(self._example, self._groups, retrieved.read(shards))
    pairs = zip(found, self._learned, strict=True)
    return [new if self._usable(new) else old for new, old in pairs]

  def _shards(self, step: int) -> Shards:
    folder = self._run.folder(self._stage) / FOUND / f'{step:09d}'
    made = retrieve.maker(self._run, self._model) | {'stage': self._stage, 'step': step}
    form = dataclasses.replace(retrieved.FORMAT, stage=self._stage)  # which is to be repeated
    return Shards(folder, len(self._groups), made, form)


def drop(found: Path, saved: Collection[int], every: int) -> None:
  """Deletes what was found before the step from whose pages the oldest checkpoint continues.

  Args:
    found: the folder of all searches.
    saved: the steps of the checkpoints. Without any, training may begin again and everything stays.
    every: the steps between two searches.
  """
  if not saved:
    return
  first = min(saved) - min(saved) % every
  for folder in found.iterdir():
    if folder.name.isdigit() and int(folder.name) < first:
      shutil.rmtree(folder, ignore_errors=True)
