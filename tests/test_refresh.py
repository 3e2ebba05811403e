"""Pages that align and ltrgr find again: places, resume, and which variables find them."""

import dataclasses
import shutil
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ranked_examples import (
  example,
  make_run,
  material,
  opened,
  trained,
)
from small_collection import collection

from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.generative.examples import Example, ExamplePage
from disranker_jax.generative.stages import index, refresh
from disranker_jax.stages import held_out


class FoundAgain:
  """Stands for refresh.Finder: what it finds depends on the variables."""

  found: ClassVar[dict[int, list]] = {}  # by step, as on disk
  asked: ClassVar[list[int]] = []

  def __init__(self, run, stage, model, material, learned, usable):
    self.learned = learned

  def find(self, variables, step: int) -> list:
    self.asked.append(step)
    size = sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(variables['params'])) % 1

    def changed(page):
      parts = (dataclasses.replace(m, coverage=m.coverage * size) for m in page.matches)
      return dataclasses.replace(page, matches=tuple(parts))

    self.found[step] = [
      dataclasses.replace(e, pages=tuple(map(changed, e.pages))) for e in self.learned
    ]
    return self.found[step]

  def stored(self, step: int) -> list:
    return self.found[step]


@pytest.mark.parametrize(('saved', 'asked'), [(3, [2, 4, 4]), (4, [2, 4, 4]), (5, [2, 4])])
def test_a_resumed_run_whose_pages_are_found_again_gives_the_same(
  tmp_path, monkeypatch, saved, asked
):
  monkeypatch.setattr(refresh, 'Finder', FoundAgain)
  monkeypatch.setattr(FoundAgain, 'found', {})
  monkeypatch.setattr(FoundAgain, 'asked', [])
  run, found = make_run(tmp_path), material()
  run.config.align.update(max_steps=6, epochs=100.0, save_every=saved, refresh=2)
  first, params = trained(run, found, monkeypatch)
  assert FoundAgain.asked == [2, 4]
  shutil.rmtree(run.folder('align') / 'checkpoints' / '6')
  again, resumed = trained(run, found, monkeypatch)
  assert first == again and FoundAgain.asked == asked
  assert all(np.array_equal(params[path], resumed[path]) for path in params)
  if saved == 3:
    other = make_run(tmp_path / 'never')
    other.config.align.update(max_steps=6, epochs=100.0)
    _, never = trained(other, found, monkeypatch)
    assert not all(np.array_equal(params[path], never[path]) for path in params)


def test_examples_keep_their_places_when_their_pages_are_found_again(tmp_path):
  """A query that finds nothing to rank by keeps its first example."""
  run = make_run(tmp_path)
  groups = [Group(f'q{i}', f'query {i}', ()) for i in range(6)]
  new = {f'q{i}': example(100 + i) for i in range(6)} | {'q3': Example('query 3', ())}
  found = dataclasses.replace(
    material(6), groups=groups, example=lambda group, one: new[one.query_id]
  )
  learned = held_out.Subset(held_out.Subset(found.examples, np.array([1, 3, 5])), np.array([0, 1]))
  run.folder('index').mkdir()
  (run.folder('index') / 'manifest.json').write_text('{"fingerprint": "i"}')
  usable = lambda one: bool(one.pages)  # noqa: E731
  model = index.open_retriever(run.config)
  finder = refresh.Finder(run, 'align', model, found, learned, usable)
  shards = finder._shards(4)
  shards.folder.mkdir(parents=True)
  shards.write(range(0, 1), [('q1', [])])
  with pytest.raises(
    UserError, match='lacks pages that were found at step 4; begin again with --re'
  ):
    finder.stored(4)
  shards.write(range(1, 2), [('q3', [])])
  assert finder.stored(4) == [new['q1'], found.examples[3]]


def test_pages_are_found_by_the_variables_of_the_step(tmp_path):
  run = make_run(tmp_path)
  run.config.data.update(collection(tmp_path))
  run.config.retriever.update(views=('title',), title_length=6)
  run.config.retrieve.update(beams=3, batch_rows=3, depth=2)
  run.folder('index').mkdir()
  (run.folder('index') / 'manifest.json').write_text('{"fingerprint": "i"}')
  index.build(run)
  model, variables = opened(run)

  def of_found(group, one) -> Example:
    return Example(group.query, tuple(ExamplePage(d, matches=p.matches) for d, p in one.pages))

  groups = [Group(f'q{i}', f'how to {verb} a file', ()) for i, verb in enumerate(('sort', 'open'))]
  found = dataclasses.replace(material(2), groups=groups, example=of_found)
  learned = held_out.Subset(found.examples, np.arange(2))
  finder = refresh.Finder(run, 'align', model, found, learned, lambda one: bool(one.pages))
  first = finder.find(variables, 2)
  assert [one.query for one in first] == [group.query for group in groups]
  assert all(len(one.pages) == 2 and page.matches for one in first for page in one.pages)
  other = finder.find(jax.tree.map(lambda x: 0.9 * x, variables), 4)
  assert other != first and finder.stored(2) == first and finder.stored(4) == other
  for step in (4, 5):
    (run.folder('align') / 'checkpoints' / str(step)).mkdir(parents=True)
  run.config.align.refresh = 2
  assert finder.find(variables, 6)
  assert [f.name for f in sorted((run.folder('align') / 'found').iterdir())] == [
    '000000004',
    '000000006',
  ]


@pytest.mark.parametrize(
  ('saved', 'kept'),
  [
    ({3, 6}, [2, 4, 6]),  # step 3 continues with the pages of step 2
    ({6, 9}, [6]),
    ({7, 9}, [6]),
    ({5, 9}, [4, 6]),
    ({1}, [2, 4, 6]),
    ((), [2, 4, 6]),  # a run without a checkpoint begins again, and finds what it stored
  ],
)
def test_pages_that_no_checkpoint_continues_with_are_deleted(tmp_path, saved, kept):
  for step in (2, 4, 6):
    (tmp_path / f'{step:09d}').mkdir()
    (tmp_path / f'{step:09d}' / 'shard').write_text('')
  (tmp_path / 'notes').mkdir()
  refresh.drop(tmp_path, saved, 2)
  assert sorted(int(f.name) for f in tmp_path.iterdir() if f.name != 'notes') == kept
  assert (tmp_path / 'notes').exists()
