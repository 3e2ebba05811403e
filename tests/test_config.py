"""The settings: mistakes name the key, files in configs/ load, comparing is by key."""

import json
import math
import pathlib
import re
import runpy

import pytest
from ml_collections import ConfigDict

from disranker_jax import config as configs
from disranker_jax.commands import common
from disranker_jax.config import settings
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems

FILES = sorted((pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))
# What has to be named on the command line, because it is the reader's own.
NAMED = {'bright': {'rewriter.init_from': 'runs/rewriting'}}


def refused(config) -> str:
  with pytest.raises(UserError) as caught:
    configs.check(config)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def changed(**changes):
  """The defaults with changes by dotted key, the dots written as two underscores."""
  config = configs.defaults()
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return config


class TestCollections:
  """configs/collections/, whose data is not part of the repository."""

  FILES = sorted((pathlib.Path(__file__).parents[1] / 'configs' / 'collections').glob('*.py'))

  @pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
  def test_without_the_folder_a_config_reads_public_data_or_names_the_source(
    self, file, tmp_path, monkeypatch
  ):
    here = tmp_path / 'clone'
    here.mkdir()
    monkeypatch.chdir(here)
    try:
      config = runpy.run_path(str(file))['get_config']()
    except UserError as error:
      assert re.match(r'\.\./shared/data/\S+: does not exist; fetch .+ and write .+', str(error))
      folder = here / str(error).partition(':')[0]
      folder.mkdir(parents=True)
      config = runpy.run_path(str(file))['get_config']()
      expected = f'trec:../shared/data/{folder.name}'
    else:
      expected = ('ir_datasets:', 'python_docs:')
    configs.check(config)
    for kind in ('judgements', 'candidates', 'test'):
      assert config.data[kind].startswith(expected)

  def test_nfcorpus_reads_its_folder_if_there_is_one(self, tmp_path, monkeypatch):
    (tmp_path / 'shared' / 'data' / 'nfcorpus').mkdir(parents=True)
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    file = next(file for file in self.FILES if file.stem == 'nfcorpus')
    data = runpy.run_path(str(file))['get_config']().data
    assert all(
      data[kind].startswith('trec:../shared/data/nfcorpus')
      for kind in ('judgements', 'candidates', 'test')
    )


class TestCheck:
  def test_the_defaults_pass(self):
    configs.check(configs.defaults())

  @pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
  def test_every_file_in_configs_loads_and_passes(self, file):
    module = runpy.run_path(str(file))
    config = module['get_config']()
    for key, value in NAMED.get(file.stem, {}).items():
      assert f'config.{key}' in refused(config)
      config.update_from_flattened_dict({key: value})
    configs.check(config)
    # The file's docstring says the command that runs it, and the run is named as the file is.
    assert f'--config configs/{file.name}' in module['__doc__']
    assert common.read_config_file(file).name == file.stem

  @pytest.mark.parametrize(
    'file', ['quickstart', 'python_docs', 'own_data', 'own_documents', 'tiny']
  )
  def test_the_configs_that_people_start_from_are_there(self, file):
    assert file in [f.stem for f in FILES]

  @pytest.mark.parametrize('name', ['own_data', 'own_data_small', 'own_documents'])
  def test_what_is_learned_of_data_of_any_size_is_not_cut_by_steps(self, name):
    [file] = (f for f in FILES if f.stem == name)
    config = runpy.run_path(str(file))['get_config']()
    assert not any(config[stage].max_steps for stage in systems.training_stages('disranker'))

  @pytest.mark.parametrize(
    'key, known', [('sft.epoch', 'sft.epochs'), ('data.click', 'data.clicks'), ('sed', 'seed')]
  )
  def test_an_unknown_key_is_named_with_the_nearest_known_one(self, key, known):
    config = configs.defaults().unlock()
    config.update_from_flattened_dict({key: 1})
    message = refused(config)
    assert message.startswith(f'config.{key}: ') and repr(known) in message

  def test_a_section_that_does_not_exist_is_unknown_too(self):
    config = configs.defaults().unlock()
    config.extra = ConfigDict({'thing': 1})
    assert 'config.extra.thing' in refused(config)

  @pytest.mark.parametrize(
    'key, value, allowed',
    [
      ('data__on_bad_row', 'skip', 'quarantine'),
      ('teacher__scorer', 'mean', 'query_likelihood'),
      ('student__precision', 'float16', 'bfloat16_dots'),
      ('teacher__remat', 'all', 'dots'),
      ('sft__loss', 'hing_loss', 'pairwise_hinge'),
      ('student_sft__loss', 'mse', 'info_nce'),
      ('distill__loss', 'mse?beta=1', 'adr_mse'),
      ('distill__schedule', 'cos', 'cosine'),
      ('distill__init_from', 'sft', 'student_sft'),
      ('cpt__predict', 'title', 'query'),
    ],
  )
  def test_a_choice_that_is_none_lists_those_there_are(self, key, value, allowed):
    message = refused(changed(**{key: value}))
    assert message.startswith(f'config.{key.replace("__", ".")}={value!r}: ')
    assert repr(allowed) in message or f'{allowed}' in message

  @pytest.mark.parametrize(
    'key, value, known',
    [
      ('stages', ('prepare', 'pretrain'), 'cpt'),
      ('evaluate__models', ('bm52',), 'bm25'),
      ('export__models', ('studnet',), 'student'),
    ],
  )
  def test_lists_name_what_they_do_not_know(self, key, value, known):
    message = refused(changed(**{key: value}))
    assert message.startswith(f'config.{key.replace("__", ".")}')
    assert repr(value[-1]) in message and known in message

  @pytest.mark.parametrize('side', ['teacher', 'student'])
  def test_a_row_must_hold_the_longest_text(self, side):
    config = configs.defaults()
    config[side].update(max_len=128, row_len=127)
    assert f'config.{side}.row_len' in refused(config)
    config[side].row_len = 128
    configs.check(config)

  @pytest.mark.parametrize(
    'key, value',
    [
      ('sft__batch_rows', 0),
      ('cpt__gradient_accumulation_steps', 0),
      ('student_sft__save_every', -1),
      ('distill__group_size', 1),  # a pair needs two
      ('distill__epochs', -1.0),
      ('score__unit_queries', -1),
    ],
  )
  def test_counts_that_are_too_small_are_refused(self, key, value):
    assert f'config.{key.replace("__", ".")}={value}' in refused(changed(**{key: value}))


KEYS = settings.flatten(configs.sections('disranker'))
# Values that no key of a type allows, by type: the wrong type, sign or range.
NONSENSE = {
  bool: ['yes', 1, None],
  int: ['two', -5, 0.5, True, None],
  float: ['much', -3.0, math.nan, math.inf, None],  # ConfigDict makes 1.0 of True
  str: ['no such value (', 7, None, 'two\nlines'],
  dict: ['production', 3, {'a b': 'trec:a.run'}, {'a': 'no such scheme'}, {'a': 3}, None],
  tuple: ['prepare', 3, ('no such value',), (-5,), (None,)],
}
# What may be any text, any number, or negative, with the values above that are fine for it.
FREE = {
  'name': ['no such value ('],
  'teacher.model': ['no such value ('], 'student.model': ['no such value ('],
  'teacher.init_from': ['no such value ('], 'student.init_from': ['no such value ('],
  'generate.model': ['no such value ('], 'cpt.mask_token': ['no such value ('],
  'distill.earlier_runs': [('no such value',)],
  'export.vocabulary': ['no such value ('],
  'score.prompts.instruction': ['no such value ('],
  'evaluate.prompts.instruction': ['no such value ('],
  'sft.margin': [-3.0], 'student_sft.margin': [-3.0], 'distill.hard_label_margin': [-3.0],
  'data.negatives.margin': [-3.0],
}  # fmt: skip


def with_value(path: str, value):
  config = configs.defaults().unlock()
  *sections, last = path.split('.')
  section = config
  for name in sections:
    section = section[name]
  with section.ignore_type():
    section[last] = value
  return config


class TestEveryKey:
  @pytest.mark.parametrize('path', KEYS)
  def test_refuses_the_wrong_type_sign_and_range_in_one_line(self, path):
    for value in NONSENSE[type(KEYS[path].default)]:
      if value in FREE.get(path, ()):
        continue
      message = refused(with_value(path, value))
      assert message.startswith(f'config.{path}'), (value, message)

  @pytest.mark.parametrize('path', KEYS)
  def test_has_a_comment_that_is_a_sentence(self, path):
    assert KEYS[path].comment.rstrip().endswith('.')

  @pytest.mark.parametrize(
    'key, value, allowed',
    [
      ('distill__normalize_scores', 'batch', 'query'),
      ('distill__trainable', 'studnt/(', 'regular expression'),
      ('teacher__scorer', 'query_likelihood', 'must end in {query}'),
      ('teacher__zero_shot_template', 'nothing', 'each exactly once'),
      ('teacher__zero_shot_template', '{query} : {title} : {summary}', 'must end in {query}'),
      ('cpt__predict', 'query', 'must end in {query}'),
      ('sft__learning_rate', -1.0, 'above 0'),
      ('sft__warmup_ratio', 7.0, 'from 0 to 1'),
      ('sft__adam_b2', 2.0, 'below 1'),
      ('distill__beta', -3.0, '0 or more'),
      ('data__negatives__min_rank', 500, 'min_rank'),
      ('score__max_tied_share', 9.0, 'from 0 to 1'),
      ('export__tolerance_factor', -1.0, 'above 0'),
      ('cpt__samples', -5, '0 or more'),
      ('sft__epochs', math.nan, '0 or more'),
      ('sft__loss', 'pairwise_hinge?no=1', 'no'),
    ],
  )
  def test_values_that_used_to_fail_after_the_teacher_was_trained(self, key, value, allowed):
    message = refused(changed(**{key: value}))
    assert message.startswith('config.') and allowed in message


class TestExplain:
  def test_every_key_is_shown_with_its_value_and_comment(self):
    lines = configs.explain(changed(sft__epochs=2.5)).splitlines()
    assert 'sft.epochs = 2.5  (default 1.0)' in lines
    assert sum(' = ' in line and not line.startswith(' ') for line in lines) == len(KEYS)

  def test_one_section(self):
    lines = configs.explain(configs.defaults(), 'distill').splitlines()
    assert all(line.startswith(('distill.', '    ')) for line in lines) and len(lines) > 30

  def test_a_section_that_does_not_exist_is_named(self):
    with pytest.raises(UserError, match='--explain distil: there is no such section'):
      configs.explain(configs.defaults(), 'distil')


class TestDefaults:
  def test_are_locked_so_a_misspelt_key_fails_where_it_is_written(self):
    with pytest.raises((AttributeError, KeyError), match='epochs'):
      configs.defaults().sft.epoch = 2

  @pytest.mark.parametrize(
    'key, value', [('sft__epochs', 'two'), ('seed', 0.5), ('teacher__model', 7)]
  )
  def test_keep_their_types(self, key, value):
    with pytest.raises(TypeError, match=key.rpartition('__')[2]):
      changed(**{key: value})

  def test_are_new_each_time(self):
    configs.defaults().sft.epochs = 7.0
    assert configs.defaults().sft.epochs != 7.0

  def test_have_the_settings_that_the_paper_gives(self):
    config = configs.defaults()
    assert (config.sft.margin, config.distill.beta, config.teacher.max_len) == (0.1, 0.4, 256)
    assert not config.student.layers  # all: the paper's run names six

  def test_training_stages_are_those_with_steps(self):
    config = configs.defaults()
    with_steps = [k for k, v in config.items() if isinstance(v, ConfigDict) and 'epochs' in v]
    assert sorted(with_steps) == sorted(systems.training_stages('disranker'))


class TestSaveAndCompare:
  def test_config_json_has_every_value(self, tmp_path):
    config = changed(sft__epochs=2.5, student__layers=(0, 3))
    configs.save(config, tmp_path / 'config.json')
    again = ConfigDict(json.loads((tmp_path / 'config.json').read_text()))
    assert configs.flatten(again) == configs.flatten(config)
    assert again.sft.epochs == 2.5 and list(again.student.layers) == [0, 3]

  def test_flatten_gives_dotted_keys_and_lists(self):
    config = ConfigDict({'a': 1, 'b': ConfigDict({'c': (1, 2), 'd': ConfigDict({'e': 'x'})})})
    assert configs.flatten(config) == {'a': 1, 'b.c': [1, 2], 'b.d.e': 'x'}

  def test_differing_tells_what_was_and_what_is(self):
    a, b = {'seed': 0, 'x': [1], 'gone': 1}, {'seed': 0, 'x': [2], 'new': 'n'}
    assert list(configs.differing(a, b)) == [
      'gone: was 1, is now not set', "new: was not set, is now 'n'", 'x: was [1], is now [2]',
    ]  # fmt: skip
    assert not list(configs.differing(a, dict(a)))
