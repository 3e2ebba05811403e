"""The gate: every reader is asked, an export that differs is refused and says how."""

import dataclasses

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.exporting import card, formats, licence, parity
from disranker_jax.stages.result_rows import TABLE

REAL = Group('q1', 'a list of names', tuple(
  Document(f'd{i}', f'page {i}', 'Return the number of items. ' * i, label=i) for i in range(5)
))  # fmt: skip


@pytest.fixture(scope='module')
def asked(student):
  """(groups, our scores)."""
  groups = parity.chosen([REAL], 5, student.prompt)
  return groups, [student.scores(g) for g in groups]


class TestGate:
  def test_passes_what_every_reader_scores_alike(self, student, exported, asked):
    pytest.importorskip('torch')
    pytest.importorskip('sentence_transformers')
    # Random weights have scores too near each other for 8 bits to order.
    names = ('onnx', 'onnx_fp16', 'stablehlo')
    rows = parity.check(exported, names, *asked, student.prompt, slack=5.0)
    others = ('transformers', 'sentence-transformers')
    assert [r.reader for r in rows] == ['disranker_jax.load', *others, *names]
    exact = [r for r in rows if r.precision == 'float32']
    assert len(exact) == 5 and max(r.max_difference for r in exact) < 1e-4
    assert not any(r.problem for r in rows)

  def test_refuses_onnx_of_other_weights(self, student, asked, tmp_path):
    folder = student.save(tmp_path / 'm')
    formats.write(folder, ('onnx',))
    tensors = load_file(folder / 'model.safetensors')
    tensors['classifier.weight'] = -tensors['classifier.weight']
    save_file(tensors, folder / 'model.safetensors')
    formats.write(folder, ('onnx',))
    with pytest.raises(UserError, match='onnx: largest difference') as caught:
      parity.check(folder, ('onnx',), *asked, student.prompt)
    assert str(folder) in str(caught.value)

  def test_refuses_a_tokenizer_that_reads_otherwise(self, student, asked, tmp_path):
    folder = student.save(tmp_path / 'm')
    formats.write(folder, ('onnx',))
    file = folder / 'tokenizer_config.json'
    file.write_text(file.read_text().replace('"model_max_length": 64', '"model_max_length": 512'))
    with pytest.raises(UserError, match='largest difference'):
      parity.check(folder, ('onnx',), *asked, student.prompt)


class TestCompare:
  groups = (REAL,)
  scores = (np.array([0.0, 1.0, 2.0, 3.0, 4.0]),)

  def row(self, given, precision):
    return parity.compare('r', precision, self.groups, self.scores, [np.array(given)])

  def test_eight_bits_are_judged_by_their_order_alone(self):
    assert not self.row([10.0, 21, 32, 43, 54], 'int8').problem
    assert 'largest difference' in self.row([10.0, 21, 32, 43, 54], 'float32').problem
    assert 'tau' in self.row([4.0, 3, 2, 1, 0], 'int8').problem

  def test_tau_of_one_swapped_pair_of_ten(self):
    assert self.row([0.0, 1, 2, 4, 3], 'int8').tau == pytest.approx(0.8)

  def test_scores_that_are_not_numbers_never_pass(self):
    for precision in parity.TOLERANCES:
      assert self.row([0.0, 1, 2, 3, np.nan], precision).problem

  def test_what_the_reference_has_as_good_as_equal_has_no_order(self):
    near = [np.array([1.0, 1.0 + 1e-9, 5.0])]
    assert parity.order_kept([np.array([2.0, 1.0, 5.0])], near, 1e-6) == 1.0

  def test_ndcg_is_of_labelled_queries_and_has_a_sign(self):
    worse = self.row([0.0, 1, 2, 4, 3], 'int8').ndcg_difference
    assert -0.5 < worse < 0

  @pytest.mark.parametrize(('count', 'swapped', 'refused'), [(8, 1, False), (200, 40, True)])
  def test_a_change_of_ndcg_that_few_queries_have_by_chance_is_no_problem(
    self, count, swapped, refused
  ):
    """One swap in 8 queries moves their mean more than the limit, and says nothing."""
    docs = tuple(Document(f'd{i}', 't', 's', label=int(i == 0)) for i in range(8))
    groups = [Group(str(i), 'q', docs) for i in range(count)]
    right = -np.arange(8.0)
    wrong = np.array([-1.0, 0.0, *right[2:]])
    given = [wrong if i < swapped else right for i in range(count)]
    row = parity.compare('r', 'int8', groups, [right] * count, given)
    assert row.ndcg_difference < -0.02 and row.tau > 0.93
    assert ('nDCG@5' in row.problem) == refused


class TestChosen:
  def test_takes_whole_queries_up_to_the_count_and_the_hard_ones(self, student):
    groups = [dataclasses.replace(REAL, query_id=str(i)) for i in range(9)]
    chosen = parity.chosen(groups, 12, student.prompt)
    assert [len(g.docs) for g in chosen] == [5, 5, 2, len(parity.HARD.docs)]

  def test_passes_over_queries_that_clients_cut_otherwise(self, student):
    long = dataclasses.replace(REAL, query='word ' * 50)
    assert [g.query_id for g in parity.chosen([long, REAL], 5, student.prompt)] == ['q1', 'hard']

  def test_the_hard_ones_are_hard(self, student):
    counts = [len(e) for e in student.prompt.encode(parity.HARD.query, parity.HARD.docs)]
    assert max(counts) == student.prompt.max_len and min(counts) < 20
    assert any(not d.summary for d in parity.HARD.docs)


def test_the_card_has_use_results_parity_and_origin(student, exported, asked):
  rows = [parity.Row('onnx', 'float32', 1e-6, 1.0, 0.0)]
  model = {'pnr': 2.5, 'ndcg@5': 0.7, 'ndcg@10': 0.75, 'mrr@10': 0.6, 'queries': 7, 'pairs': 70}
  made = {'versions': {'disranker_jax': '9.9'}, 'inputs': {'distill': 'abc123'}}
  base = licence.Origin('org/base', True, {'license': 'mit'})
  card.write(exported, formats.FORMATS, rows, TABLE, {'student': model}, made, base)
  text = (exported / 'README.md').read_text()
  found = huggingface_hub.metadata_load(exported / 'README.md')
  assert found['license'] == 'mit' and found['base_model'] == 'org/base'
  assert (
    found['pipeline_tag'] == 'text-ranking' and '- base model: `org/base`, licence `mit`' in text
  )
  assert '| onnx | float32 | 1e-06 | 1.0000 | +0.0000 |' in text
  assert 'distilled student | 2.50 | 0.700' in text and 'abc123' in text
  assert 'at most 64 tokens' in text
