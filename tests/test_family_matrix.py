"""Every family with every feature: which test has it, or why there is none; and README's table.

A family that is added appears here as a missing cell until its kind is in the parameters of these
tests.
"""

import importlib
import itertools
import re
import sys
from pathlib import Path

import hf_reference as reference
import pytest

from disranker_jax.models import families, flops
from disranker_jax.models.families import FAMILIES
from disranker_jax.models.network import Network

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tests' / 'exporting'))

# {feature: tests whose parameters name families, or module.CONSTANT; 'test=family' if the test has
# one family only}.
TESTS = {
  'forward': (
    'test_decoder.test_hidden_states_and_logits_match_transformers',
    'test_encoder.test_hidden_states_and_scores_match_transformers',
    'test_modernbert.test_states_of_all_layers_and_scores_match_transformers=modernbert',
  ),
  'packed': (
    'test_decoder_parity.test_segments_of_a_packed_row_are_what_transformers_computes_for_each_alone',
    'test_encoder.test_packed_rows_equal_separate_rows_in_both_directions',
    'test_modernbert.test_texts_packed_into_a_row_score_as_alone=modernbert',
  ),
  'gradient': (
    'test_decoder_parity.test_scores_and_gradients_of_a_rank_loss_match_transformers',
    'test_encoder.test_gradients_match_transformers',
    'test_modernbert.test_gradients_match_transformers=modernbert',
  ),
  # A folder of transformers is read there.
  'load': (
    'test_decoder.test_hidden_states_and_logits_match_transformers',
    'test_encoder.test_hidden_states_and_scores_match_transformers',
    'test_modernbert.test_states_of_all_layers_and_scores_match_transformers=modernbert',
  ),
  # transformers reads ours, with adapters merged into it.
  'save, LoRA': (
    'test_hf.test_torch_loads_what_we_save_and_gives_our_scores',
    'test_modernbert.test_transformers_loads_what_we_save_and_gives_our_scores=modernbert',
  ),
  'generate': ('test_generate.test_greedy_with_cache_is_the_argmax_of_the_full_forward_repeated',),
  'ONNX, int8, StableHLO': ('test_relatives.CONFIGS', 'test_formats=bert'),
  'serve': ('test_relatives.CONFIGS', 'test_formats=bert'),
  'scoring in 8 bits': (
    'test_eight_bits.'
    'test_a_network_in_8_bits_scores_nearly_as_before_packed_or_alone_scanned_or_not',
  ),
}
ENCODERS = [name for name, family in FAMILIES.items() if family.served]
DECODERS = [name for name, family in FAMILIES.items() if not family.served]
# {(feature, family): why there is no test}.
EXPLAINED = {
  **{
    (feature, name): 'a decoder is a teacher; ONNX and the server are for students'
    for feature in ('ONNX, int8, StableHLO', 'serve')
    for name in DECODERS
  },
  **{('generate', name): 'an encoder has no next-token logits' for name in ENCODERS},
}


def parameters(test: str) -> set[str]:
  """The types of the families that a test of TESTS names."""
  test, _, single = test.partition('=')
  module, _, name = test.partition('.')
  found = importlib.import_module(module)
  found = getattr(found, name) if name else found
  if single:
    return {single}
  values = found
  if callable(found):
    marks = [m.args[1] for m in found.pytestmark if m.name == 'parametrize' and 'kind' in m.args[0]]
    values = itertools.chain(*marks)
  kinds = {value if isinstance(value, str) else value[0] for value in values}
  return {reference.TYPES.get(kind, kind) for kind in kinds}


@pytest.mark.parametrize('feature', TESTS)
def test_every_family_has_the_feature_or_a_reason(feature):
  tested = set().union(*map(parameters, TESTS[feature]))
  explained = {name for (what, name) in EXPLAINED if what == feature}
  assert set(FAMILIES) - tested - explained == set()
  assert explained & tested == set()  # a reason that is no longer true


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_can_be_counted_for_a_plan(name):
  kinds = {reference.TYPES.get(kind, kind): kind for kind in reference.DECODERS}
  config = reference.config(kinds[name]) if name in kinds else modernbert()
  network = Network(families.from_hf(config.to_dict()))
  batch = reference.rows([[1, 2, 3]]) | {'index_AX': [[0]]}
  count = flops.count(network, {k: reference.np.asarray(v) for k, v in batch.items()})
  assert count.model > 2 * 3 * network.config.layers * network.config.width**2


def modernbert():
  import transformers

  return transformers.ModernBertConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
  )


def test_the_table_of_the_readme_is_what_the_families_do():
  section = (ROOT / 'README.md').read_text(encoding='utf-8').partition('## Models')[2]
  rows = {}
  for line in section.partition('\n## ')[0].splitlines():
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    for name in (
      re.findall(r'`([\w-]+)`', cells[0])
      if line.startswith('| `') and 'model_type' not in line
      else ()
    ):
      rows[name] = cells[2:]
  assert set(rows) == set(FAMILIES)
  formats = {'onnx': 'ONNX', 'onnx_int8': '8 bits', 'stablehlo': 'StableHLO'}
  for name, (teacher, student, ready, exports) in rows.items():
    family = FAMILIES[name]
    assert (teacher, ready) == ('yes', 'yes'), name
    assert student == ('yes' if family.served else 'no'), name
    wanted = ['safetensors', *(word for key, word in formats.items() if key in family.formats)]
    assert exports == ', '.join(wanted), name
