"""Weights under the names and in the files of other programs: read whole, or refused as a whole."""

import json

import hf_reference as reference
import jax
import numpy as np
import pytest
from hf_reference import assert_equal, edit, saved
from safetensors.numpy import load_file, save_file

from disranker_jax.errors import UserError
from disranker_jax.models import families, hf, network, tree
from disranker_jax.models.network import Network

KEY = jax.random.key(0)


WRAPPED = {
  'bert': ('model.', 'module.', 'model.module.'),
  'roberta': ('model.', 'module.'),
  'distilbert': ('model.',),
  'electra': ('base_model.', 'base_model.model.'),
  'mistral': ('language_model.', 'module.'),
  'qwen3': ('language_model.', 'model.language_model.'),
  'llama': ('language_model.', 'base_model.model.'),
}


@pytest.mark.parametrize('kind, prefix', [(k, p) for k, ps in WRAPPED.items() for p in ps])
def test_the_names_of_a_model_that_is_part_of_another_are_understood(kind, prefix, tmp_path):
  head = 'lm' if kind in ('mistral', 'llama') else 'rank'
  model, variables = saved(tmp_path, kind, head=head)
  edit(tmp_path, lambda t: {f'{prefix}{name}': value for name, value in t.items()})
  assert_equal(hf.load(tmp_path, model, KEY), variables)


@pytest.mark.parametrize('kind', ['bert', 'roberta', 'electra', 'distilbert', 'llama', 'qwen2'])
@pytest.mark.parametrize('wrapper', ['', 'model.', 'language_model.', 'model.language_model.'])
def test_bare_names_are_understood(kind, wrapper, tmp_path):
  """Of a base model alone; the wrapper stands where the family's own prefix is elsewhere."""
  model, variables = saved(tmp_path, kind)
  prefix = f'{model.family.prefix}.'

  def bare(tensors):
    return {
      f'{wrapper}{name.removeprefix(prefix)}' if name.startswith(prefix) else name: value
      for name, value in tensors.items()
    }

  edit(tmp_path, bare)
  assert_equal(hf.load(tmp_path, model, KEY), variables)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('present', [True, False])
@pytest.mark.parametrize('head', ['lm', 'rank'])
def test_a_head_of_words_is_read_where_it_is_not_the_embeddings(tied, present, head, tmp_path):
  config = reference.config('llama', tie_word_embeddings=False).to_dict()
  full = Network(families.from_hf(config), head='both')
  variables = jax.jit(full.init)(KEY)
  tensors = dict(hf._tensors(full, tree.flatten(variables['params']), 'float32'))
  if not present:
    del tensors['lm_head.weight']
  (tmp_path / 'config.json').write_text(json.dumps(config | {'tie_word_embeddings': tied}))
  save_file(tensors, tmp_path / 'model.safetensors')
  model = network.from_hf(tmp_path, head=head)
  if head == 'lm' and not tied and not present:
    with pytest.raises(
      UserError, match=r'1 tensor does not fit the model: missing: lm_head\.weight'
    ):
      hf.load(tmp_path, model, KEY)
    return
  loaded = hf.load(tmp_path, model, KEY)['params']
  assert ('lm_head' in loaded) == (head == 'lm' and not tied)
  for name in loaded:
    assert_equal(loaded[name], jax.tree.map(np.asarray, variables['params'][name]))


@pytest.mark.parametrize('kind', ['bert', 'roberta', 'electra', 'distilbert', 'qwen3'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_in_several_files_is_read(kind, dtype, tmp_path):
  model, variables = saved(tmp_path, kind)
  tensors = load_file(tmp_path / 'model.safetensors')
  (tmp_path / 'model.safetensors').unlink()
  index = {name: f'model-{i % 3}.safetensors' for i, name in enumerate(tensors)}
  for file in set(index.values()):
    part = {n: t.astype(dtype) for n, t in tensors.items() if index[n] == file}
    save_file(part, tmp_path / file)
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), variables)
  assert_equal(hf.load(tmp_path, model, KEY), rounded)


def test_a_whole_file_counts_more_than_the_index_of_several(tmp_path):
  model, variables = saved(tmp_path)
  (tmp_path / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': {'bert.pooler.dense.bias': 'model-1-of-2.safetensors'}})
  )
  assert_equal(hf.load(tmp_path, model, KEY), variables)  # as transformers does


def test_every_missing_file_is_named(tmp_path):
  model, _ = saved(tmp_path)
  names = [f'model-{i}-of-3.safetensors' for i in (1, 2, 3)]
  (tmp_path / 'model.safetensors').rename(tmp_path / names[1])
  with pytest.raises(UserError, match=r'model\.safetensors is missing.*index\.json among them'):
    hf.load(tmp_path, model, KEY)
  (tmp_path / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': {str(i): name for i, name in enumerate(names)}})
  )
  with pytest.raises(UserError, match=r'model-1-of-3\.\w+ is missing, and model-3-of-3\.\w+:'):
    hf.load(tmp_path, model, KEY)
