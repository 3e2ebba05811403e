"""What each system exports: which model, what it needs, and in which folder."""

import json
import types

import pytest

from disranker_jax.config import check, defaults
from disranker_jax.errors import UserError
from disranker_jax.exporting import licence
from disranker_jax.generative import export as retriever
from disranker_jax.models.load import open_model
from disranker_jax.pipeline import systems
from disranker_jax.rewriting import export as rewriter
from disranker_jax.stages import export


def config(system: str, **changes):
  c = defaults(system)
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c


@pytest.mark.parametrize('system', systems.every())
def test_every_system_exports_a_model_that_it_trains(system):
  c, stages = defaults(system), systems.get(system).stages
  stage = systems.find(c, 'export')
  assert not stage.optional and stage.requires(c) == {}
  [use] = stage.uses(c)
  assert use.role in stage.models and use.pairs == c.export.parity_pairs
  # The card has the result table, and the report may name the folder.
  assert systems.get(system).table.stage in stage.reads_stages
  assert 'export' in stages[-1].reads_stages


@pytest.mark.parametrize(
  ('exports', 'stages', 'start', 'row'),
  [
    (rewriter.EXPORTS, ('cpt', 'rewrite'), '', 'rewrite'),
    (rewriter.EXPORTS, ('cpt',), '', 'cpt'),
    (rewriter.EXPORTS, (), 'runs/earlier', 'rewrite'),
    (rewriter.EXPORTS, (), '', None),
    (retriever.EXPORTS, ('memorise', 'ltrgr', 'align'), '', 'aligned'),
    (retriever.EXPORTS, ('memorise', 'ltrgr'), '', 'ltrgr'),
    (retriever.EXPORTS, (), '', None),
  ],
)
def test_the_model_as_the_run_has_trained_it_is_that_of_the_last_stage(exports, stages, start, row):
  role = exports.folder
  system = {'rewriter': 'query_rewriting', 'retriever': 'dgr'}[role]
  c = config(system, stages=('prepare', *stages, 'export'), **{f'{role}__init_from': start})
  needed = export.requires(exports, c)
  if row is None:
    assert needed == {f'export of {exports.what}': (exports.needs,)}
    return
  assert needed == {}
  run = types.SimpleNamespace(config=c)
  assert exports.chosen(run, exports.automatic).row == row
  assert exports.chosen(run, exports.rows[0]).row == exports.rows[0]


def test_a_row_whose_stage_is_not_listed_and_a_name_twice_are_refused():
  c = config('dgr', stages=('prepare', 'memorise', 'export'), export__models=('aligned',))
  assert export.requires(retriever.EXPORTS, c) == {'export of aligned': ('align',)}
  with pytest.raises(UserError, match=r"config\.export\.models=\['student'\]: must be .*'retriev"):
    check(config('dgr', export__models=('student',)))


def test_the_teacher_of_a_retriever_is_one_that_taught_it():
  teachers = retriever.EXPORTS.teachers
  assert teachers(config('dgr', teacher__model='x'), 'memorised') == ('x',)
  without = config('dgr', teacher__model='x', retriever__views=('title', 'body'))
  assert teachers(without, 'ltrgr') == () and teachers(without, 'aligned') == ('x',)
  other = config('dgr', teacher__model='x', generate__model='y')
  assert teachers(other, 'ltrgr') == ('y',) and teachers(other, 'aligned') == ('x', 'y')


def test_what_the_rewriters_folder_records_makes_it_stale():
  stage = systems.find(config('query_rewriting'), 'export')
  before = stage.outside(config('query_rewriting'), None)
  for key, value in (('search__engine', 'query_bm25'), ('rewrite__repeat', 3)):
    after = stage.outside(config('query_rewriting', **{key: value}), None)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {key.replace('__', '.')}


def test_a_card_of_a_writer_is_no_card_of_a_ranker():
  base = licence.Origin('org/base', True, {'license': 'mit'})
  text = licence.metadata(base, '', rewriter.EXPORTS.purpose.task)
  assert 'pipeline_tag: text-generation' in text and 'reranker' not in text
  assert 'reranker' in licence.metadata(base)


def test_the_titles_by_which_readers_are_compared_follow_the_retrievers_prompt():
  settings = defaults('dgr').retriever
  settings.update(model='tiny-decoder', max_len=64, row_len=64, title_template='{query} {a}:')
  model = open_model(settings, 'lm')
  from disranker_jax.data.records import Document
  from disranker_jax.generative.prompts import Prompts

  [encoded] = retriever.title_prompt(model).encode('sort a list', [Document('1', 'io', 'x')])
  before = Prompts(model)('sort a list', 'title')
  start, _ = encoded.predict
  assert encoded.ids[:start].tolist() == before
  [title] = Prompts(model).texts(['io'])
  assert encoded.ids[start : start + len(title)].tolist() == title.tolist()


def test_transformers_gets_the_ends_of_a_text(tmp_path):
  settings = defaults('query_rewriting').rewriter
  settings.update(model='tiny-decoder', max_len=64, row_len=64)
  export.write_generation(tmp_path, open_model(settings, 'lm'), {7, 2}, 12)
  written = json.loads((tmp_path / 'generation_config.json').read_text())
  assert written['eos_token_id'] == [2, 7] and written['max_new_tokens'] == 12
