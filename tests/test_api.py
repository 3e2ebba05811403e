"""The Python API: `disranker_jax.load`, `rank` and `score`."""

import ast
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

import disranker_jax
from disranker_jax.commands import rerank
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.exporting import formats, parity
from disranker_jax.models import hf, tiny
from disranker_jax.models.load import open_exported, open_model
from disranker_jax.models.network import from_hf
from disranker_jax.models.settings import defaults as model_settings
from disranker_jax.rankers import backends, loaded

QUERY = 'a list of names'
TEXTS = ['len : Return the number of items.', 'dir : an ordered list of names', '', 'zip',
         'word ' * 500, '文字 : Ünï', ' ' * 2_000 + 'dir : an ordered list of names',
         '\u200b\xa0\n' * 2_000 + 'zip']  # fmt: skip


@pytest.fixture(scope='module')
def ranker(model):
  return disranker_jax.load(model)


@pytest.fixture(scope='module')
def on_jax(model):
  return disranker_jax.load(model, 'jax')


class Lengths:
  """A backend whose score is the number of tokens."""

  workers, part_tokens, name = 2, 30, 'lengths'

  def score(self, encoded):
    return np.array([len(e) for e in encoded], np.float32), 0


def test_importing_the_package_loads_no_library():
  code = "import sys, disranker_jax; print({'jax', 'numpy', 'transformers'} & set(sys.modules))"
  out = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert out.stdout == 'set()\n'


def test_scores_are_the_same_where_jax_has_64_bits(model, on_jax):
  code = (
    'import sys, disranker_jax; from tests.test_api import QUERY, TEXTS; '
    "print(disranker_jax.load(sys.argv[1], 'jax').score([(QUERY, t) for t in TEXTS]).tolist())"
  )
  command = [sys.executable, '-c', code, str(model)]
  env = os.environ | {'JAX_ENABLE_X64': '1'}
  root = pathlib.Path(__file__).parents[1]
  out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=root)
  wide = np.array(json.loads(out.stdout.splitlines()[-1]))
  np.testing.assert_allclose(wide, on_jax.score([(QUERY, t) for t in TEXTS]), atol=1e-4)


@pytest.mark.parametrize('file', ['README.md', 'docs/python.md'])
def test_the_snippet_of_the_docs_runs_on_an_exported_student(model, file):
  text = (pathlib.Path(__file__).parents[1] / file).read_text()
  code = re.search(r'```python\n(.*?)```', text, re.S)[1]
  assert "load('runs/quickstart/export/student')" in code
  names = {}
  exec(code.replace('runs/quickstart/export/student', str(model)), names)
  calls = [line for line in ast.parse(code).body if isinstance(line, ast.Expr)]
  ranked = eval(ast.unparse(calls[0]), names)
  assert ranked and all(isinstance(i, int) and isinstance(score, float) for i, score in ranked)


def test_all_public_names_exist():
  assert all(hasattr(disranker_jax, name) for name in disranker_jax.__all__)
  with pytest.raises(AttributeError, match='lod'):
    disranker_jax.lod  # noqa: B018


class TestScore:
  @pytest.mark.parametrize('name', ['ranker', 'on_jax'])
  def test_equals_transformers(self, model, name, request):
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    batch = tokenizer(
      [QUERY] * len(TEXTS), TEXTS, truncation=True, padding=True, return_tensors='pt'
    )
    with torch.no_grad():
      expected = network(**batch).logits[:, 0].numpy()
    scores = request.getfixturevalue(name).score([(QUERY, text) for text in TEXTS])
    assert scores.shape == (len(TEXTS),) and scores.dtype == np.float32 and expected.std() > 0.01
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)

  def test_of_a_document_is_that_of_title_colon_summary(self, ranker):
    forms = ('len : items', ('len', 'items'), {'title': 'len', 'summary': 'items', 'more': 1},
             Document('x', 'len', 'items'))  # fmt: skip
    assert len(set(ranker.score([(QUERY, form) for form in forms]).tolist())) == 1

  def test_takes_any_iterable_of_pairs_with_several_queries(self, ranker):
    queries = [QUERY, 'files', QUERY]
    scores = ranker.score(zip(queries, TEXTS, strict=False))
    alone = [ranker.score([pair])[0] for pair in zip(queries, TEXTS, strict=False)]
    np.testing.assert_allclose(scores, alone, rtol=0, atol=1e-5)

  def test_of_nothing_is_empty(self, ranker):
    assert ranker.score([]).shape == (0,)

  def test_is_the_same_from_several_threads(self, ranker):
    pairs = [(QUERY, f'text {i} ' * (i % 9)) for i in range(60)]
    expected = ranker.score(pairs)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      for scores in pool.map(ranker.score, [pairs] * 8):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)

  def test_that_is_not_finite_is_an_error(self, ranker):
    class Broken(Lengths):
      def score(self, encoded):
        return np.full(len(encoded), np.nan), 0

    with pytest.raises(UserError, match='not finite'):
      loaded.LoadedRanker(ranker.prompt, Broken()).score([(QUERY, 'a')])


class TestRank:
  @pytest.fixture
  def by_length(self, ranker):
    return loaded.LoadedRanker(ranker.prompt, Lengths())

  def test_is_best_first_with_the_scores_of_score(self, ranker):
    ranked = ranker.rank(QUERY, TEXTS)
    scores = ranker.score([(QUERY, text) for text in TEXTS])
    assert [i for i, _ in ranked] == np.argsort(-scores).tolist()
    assert [score for _, score in ranked] == sorted(scores.tolist(), reverse=True)

  def test_puts_the_lower_index_first_where_scores_are_equal(self, by_length):
    ranked = by_length.rank('q', ['a', 'a b c d', 'b', 'a b c d'])
    assert [i for i, _ in ranked] == [1, 3, 0, 2]

  def test_gives_equal_texts_equal_scores(self, ranker):
    texts = ['zip', 'word ' * 30] * 40
    ranked = ranker.rank(QUERY, texts)
    assert len({score for _, score in ranked}) == 2
    assert [i % 2 for i, _ in ranked] in ([0] * 40 + [1] * 40, [1] * 40 + [0] * 40)

  @pytest.mark.parametrize('top', [0, 2, 99])
  def test_top_keeps_the_best(self, ranker, top):
    assert ranker.rank(QUERY, TEXTS, top=top) == ranker.rank(QUERY, TEXTS)[:top]

  def test_of_no_texts_is_empty(self, ranker):
    assert ranker.rank(QUERY, []) == []


class TestMistakes:
  @pytest.mark.parametrize('query, texts, message', [
    (7, ['a'], 'query must be a string, not int'),
    ('q', 'a', 'not one str'),
    ('q', {'title': 'a', 'summary': 'b'}, 'not one dict'),
    ('q', ['a', None], 'text 1: .* not NoneType'),
    ('q', [{'title': 'a'}], 'text 0: .* not dict'),
    ('q', [('a', 'b', 'c')], 'text 0: .* not tuple'),
  ])  # fmt: skip
  def test_wrong_types_are_named(self, ranker, query, texts, message):
    with pytest.raises(TypeError, match=message):
      ranker.rank(query, texts)

  @pytest.mark.parametrize('pair', ['ab', ('q',), ('q', 'a', 'b'), 7])
  def test_a_pair_must_have_two_parts(self, ranker, pair):
    with pytest.raises(TypeError, match='pair 1: must be'):
      ranker.score([('q', 'a'), pair])

  def test_a_negative_top_is_refused(self, ranker):
    with pytest.raises(UserError, match='top -1'):
      ranker.rank(QUERY, TEXTS, top=-1)

  @pytest.mark.parametrize('lost, message', [
    ('config.json', 'has no config.json'), ('tokenizer.json', 'has no tokenizer.json'),
    ('model.safetensors', 'model.safetensors is missing'),
  ])  # fmt: skip
  def test_a_missing_file_is_named(self, model, tmp_path, lost, message):
    folder = shutil.copytree(model, tmp_path / 'm')
    (folder / lost).unlink()
    with pytest.raises(UserError, match=message) as caught:
      disranker_jax.load(str(folder))
    assert str(folder) in str(caught.value)

  @pytest.mark.parametrize('name', ['tiny-encoder', 'tiny-decoder'])
  def test_a_base_model_is_refused(self, tmp_path, name):
    tiny.make(name, tmp_path / 'm')
    with pytest.raises(UserError, match='not a sequence classifier with one label'):
      disranker_jax.load(tmp_path / 'm')

  def test_an_unreadable_onnx_file_is_named(self, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / 'm')
    (folder / 'onnx').mkdir()
    (folder / 'onnx' / 'model.onnx').write_bytes(b'no model')
    with pytest.raises(UserError, match=r'model\.onnx'):
      disranker_jax.load(folder)

  @pytest.mark.parametrize('opened', [
    lambda folder: disranker_jax.load(folder, 'onnx'),
    lambda folder: disranker_jax.load(folder, 'jax'),
    lambda folder: open_model(model_settings(model=str(folder))),
    lambda folder: rerank.main(['--model', str(folder), '--query', 'list']),
  ], ids=['load', 'load on jax', 'stages', 'rerank'])  # fmt: skip
  def test_a_tokenizer_with_more_tokens_than_the_table_is_refused(self, model, tmp_path, opened):
    folder = shutil.copytree(model, tmp_path / 'm')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = hf.open_config(folder).vocab
    tokenizer.add_tokens([f'<x{i}>' for i in range(rows + 1 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=f'{rows + 1} tokens, the embedding table only {rows}'):
      opened(folder)

  @pytest.mark.parametrize('options, message', [
    ({'backend': 'tpu'}, 'onnx-int8, onnx, jax'), ({'max_len': 4}, 'from 5 to 512'),
    ({'max_len': 513}, 'from 5 to 512'),
  ])  # fmt: skip
  def test_an_argument_that_does_not_fit_is_refused(self, model, options, message):
    with pytest.raises(UserError, match=message):
      disranker_jax.load(model, **options)


class TestBackends:
  def test_max_len_replaces_the_folders_own(self, model, ranker):
    longer = disranker_jax.load(model, max_len=200)
    pairs = [(QUERY, TEXTS[3]), (QUERY, 'number of items ' * 30)]
    differences = np.abs(longer.score(pairs) - ranker.score(pairs))
    assert differences[0] < 1e-5 < 1e-3 < differences[1]

  def test_jax_compiles_while_loading_only(self, on_jax):
    before = on_jax.backend._step._cache_size()
    for count in (1, 3, 9, 40, 170):
      on_jax.score([(QUERY, f'{i} ' * (i % 50)) for i in range(count)])
    assert on_jax.backend._step._cache_size() == before

  def test_fast_jax_is_close_to_exact(self, model, on_jax):
    fast = backends.Jax(open_exported(model, precision='bfloat16'), part_tokens=512)
    pairs = on_jax.prompt.encode_texts(QUERY, [f'names {i} ' * (i % 20) for i in range(70)])
    exact = on_jax.backend.score(pairs)[0]
    np.testing.assert_allclose(fast.score(pairs)[0], exact, rtol=0, atol=0.2 * exact.std())

  def test_auto_uses_eight_bits_only_if_fast_and_exported(self, model, tmp_path):
    assert backends.choose(model, fast=True) == 'onnx'
    folder = shutil.copytree(model, tmp_path / 'm')
    (folder / 'onnx').mkdir()
    (folder / formats.ONNX['onnx_int8']).touch()
    assert backends.choose(folder, fast=True) == 'onnx-int8'
    assert backends.choose(folder, fast=False) == 'onnx'

  @pytest.mark.parametrize('lengths', [[], [5], [1] * 100, [7, 300, 2, 2, 90, 41]])
  def test_divide_gives_every_sequence_once_longest_first(self, lengths):
    parts = backends.divide(lengths, Lengths())
    flat = [i for part in parts for i in part]
    assert sorted(flat) == list(range(len(lengths))) and all(parts)
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    assert len(lengths) < 2 or len(parts) % Lengths.workers == 0


class TestDecoder:
  DOCS = (Document('a', 'len', 'Return the number of items.'), Document('b', 'dir', 'names ' * 40),
          Document('c', '', 'zip'))  # fmt: skip

  @pytest.mark.parametrize('scorer, head', [('score_head', 'rank'), ('query_likelihood', 'lm')])
  def test_scores_equal_transformers_on_the_exported_template(self, tmp_path, scorer, head):
    pytest.importorskip('torch')
    tiny.make('tiny-decoder', tmp_path / 'base')
    network = from_hf(tmp_path / 'base', head=head)
    variables = jax.tree.map(lambda x: np.asarray(x) * 3, network.init(jax.random.key(1)))
    extra = {'max_len': 64, 'max_query_len': 16, 'scorer': scorer,
             'template': '{title} / {summary} / {query}'}  # fmt: skip
    folder = tmp_path / 'teacher'
    hf.save(folder, network, variables, tmp_path / 'base', {'disranker_jax': extra})
    assert backends.choose(folder, fast=False) == 'jax'
    opened = open_exported(folder, precision='float32')
    ranker = loaded.LoadedRanker(opened.prompt(), backends.Jax(opened, part_tokens=256))
    expected = parity.transformers_tokens(folder, ranker.prompt)(Group('q', QUERY, self.DOCS))
    scores = ranker.score([(QUERY, doc) for doc in self.DOCS])
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert ranker.score([(QUERY, 'zip')])[0] == pytest.approx(scores[2], abs=1e-5)


class TestFirstStage:
  """Ranking by the model and the first stage together."""

  @pytest.fixture
  def by_length(self, ranker):
    """A ranker whose scores are lengths in tokens, with a recorded weight of .75."""
    how = Fusion(0.75, 'scores', 30, 0.7, 0.6, 0.5)
    return loaded.LoadedRanker(ranker.prompt, Lengths(), how)

  def test_scores_are_the_weighted_sum_of_both_sides(self, by_length):
    texts = ['len', 'len len', 'len len len']
    lengths = dict(by_length.rank('len', texts))
    step = lengths[1] - lengths[0]
    assert lengths[2] - lengths[1] == step > 0  # so they are scaled to 0, .5, 1
    found = dict(by_length.rank('len', texts, first_scores=[20.0, 0.0, 10.0]))
    assert found == pytest.approx({0: 0.25, 1: 0.375, 2: 0.75 + 0.125})
    found = dict(by_length.rank('len', texts, first_scores=[20.0, 0.0, 10.0], fuse=0.5))
    assert found == pytest.approx({0: 0.5, 1: 0.25, 2: 0.75})
    # None is a text that the first stage did not find: it counts as its last one.
    found = dict(by_length.rank('len', texts, first_scores=np.array([20.0, 0.0, 0.0]), fuse=0.5))
    assert dict(by_length.rank('len', texts, first_scores=[20, 0, None], fuse=0.5)) == found

  @pytest.mark.parametrize(('signal', 'other'), [('scores', 'ranks'), ('ranks', 'scores')])
  def test_a_recorded_weight_counts_for_its_own_signal_only(self, by_length, signal, other):
    by_length.fusion = Fusion(0.75, signal, 30, 0.7, 0.6, 0.5)
    texts, values = ['len', 'len len', 'len len len'], [1, 2, 3]
    own, wrong = {f'first_{signal}': values}, {f'first_{other}': values}
    assert by_length.rank('len', texts, **own) == by_length.rank('len', texts, **own, fuse=0.75)
    with pytest.raises(UserError) as caught:
      by_length.rank('len', texts, **wrong)
    assert str(caught.value) == (
      f'fuse: the weight that the model folder records is for first_{signal}; give these in the '
      f'place of first_{other}, or a weight'
    )
    by_length.rank('len', texts, **wrong, fuse=0.75)

  def test_ranks_are_scaled_as_reciprocals(self, by_length):
    found = by_length.rank('len', ['len', 'len len', 'x ' * 9], 2, first_ranks=[1, 2, 3], fuse=0)
    middle = (1 / 62 - 1 / 63) / (1 / 61 - 1 / 63)
    assert [i for i, _ in found] == [0, 1]
    assert [score for _, score in found] == pytest.approx([1.0, middle])

  def test_weight_1_is_the_order_of_the_model(self, ranker):
    plain = [i for i, _ in ranker.rank(QUERY, TEXTS[:5])]
    first = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert [i for i, _ in ranker.rank(QUERY, TEXTS[:5], first_scores=first, fuse=1)] == plain

  @pytest.mark.parametrize(
    ('arguments', 'what'),
    [
      ({'first_scores': [1.0]}, 'first_scores: has 1 value for 2 texts'),
      ({'first_ranks': [0, 1]}, r'first_ranks\[0\]: must be an integer of 1 or more'),
      ({'first_scores': [1.0, float('inf')]}, r'first_scores\[1\]: must be a finite number'),
      ({'first_scores': [1, 2], 'first_ranks': [1, 2]}, 'cannot be used with first_ranks'),
      ({'first_scores': [1, 2], 'fuse': 1.5}, 'fuse: must be a number from 0'),
      ({'fuse': 0.5}, 'fuse: there is nothing to fuse with'),
      ({'first_scores': [1, 2]}, 'fuse: the model folder records no weight'),
    ],
  )
  def test_wrong_arguments_are_named(self, ranker, arguments, what):
    with pytest.raises(UserError, match=what):
      ranker.rank(QUERY, TEXTS[:2], **arguments)

  def test_the_weight_is_read_from_the_folder(self, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / 'student')
    config = json.loads((folder / 'config.json').read_text())
    how = Fusion(0.65, 'scores', 24, 0.7, 0.6, 0.5)
    for recorded in (how.to_dict(), {'weight': 'much'}):
      config['disranker_jax']['fusion'] = recorded
      (folder / 'config.json').write_text(json.dumps(config))
      if recorded['weight'] == 0.65:
        assert loaded.load(folder).fusion == how
      else:
        with pytest.raises(UserError, match=r'config\.json: fusion is damaged'):
          loaded.load(folder)
