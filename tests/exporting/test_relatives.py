"""The relatives of BERT and ModernBERT, with their own tokenizers, in every exported format."""

import json

import jax
import numpy as np
import onnx
import pytest
import students
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import disranker_jax
from disranker_jax.data import records
from disranker_jax.exporting import formats, parity
from disranker_jax.models import hf, load, tiny, tree
from disranker_jax.models.network import from_hf

SPECIAL = {'bos_token': '<s>', 'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
CONFIGS = {
  'roberta': {'pad_token_id': 1, 'type_vocab_size': 1},
  'xlm-roberta': {'pad_token_id': 1, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5},
  'electra': {'pad_token_id': 0, 'type_vocab_size': 2, 'embedding_size': 16},
  'distilbert': {'pad_token_id': 0, 'dim': 32, 'hidden_dim': 64, 'n_layers': 2, 'n_heads': 4},
  # Windows much shorter than the texts. The last layer is global, or local; heads of odd number.
  'modernbert': {'pad_token_id': 1, 'num_hidden_layers': 4, 'local_attention': 10},
  'modernbert-local': {
    'pad_token_id': 1,
    'num_hidden_layers': 3,
    'local_attention': 7,
    'attention_bias': True,
    'classifier_activation': 'relu',
    'hidden_size': 36,
    'num_attention_heads': 3,
  },
  'modernbert-mean': {
    'pad_token_id': 1,
    'num_hidden_layers': 3,
    'local_attention': 6,
    'classifier_pooling': 'mean',
    'hidden_activation': 'gelu_new',
    **dict.fromkeys(('norm_bias', 'attention_bias', 'mlp_bias', 'classifier_bias'), True),
  },
}
# Arrays in the stacks of layers that no file holds.
ABSENT = ('blocks/attn_norm/scale', 'blocks/attn_norm/bias')


def write_tokenizer(folder, kind: str) -> None:
  """XLM-RoBERTa's Unigram with Metaspace, or byte-level BPE, with their pair of texts."""
  texts = [str(getattr(str, name).__doc__) for name in sorted(dir(str))]
  special = {'vocab_size': 300, 'special_tokens': list(SPECIAL.values()), 'show_progress': False}
  if kind != 'xlm-roberta':
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(**special | {'initial_alphabet': alphabet})
  else:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(unk_token='<unk>', **special)
  tokenizer.train_from_iterator(texts, trainer)
  ids = [(token, tokenizer.token_to_id(token)) for token in ('<s>', '</s>')]
  between = '</s>' if kind.startswith('modernbert') else '</s> </s>'
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A </s>', pair=f'<s> $A {between} $B </s>', special_tokens=ids
  )
  tokenizer.save(str(folder / 'tokenizer.json'))
  tokens = SPECIAL | {'cls_token': '<s>', 'sep_token': '</s>'}
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': 512, **tokens}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))


@pytest.fixture(scope='module', params=CONFIGS)
def relative(request, tmp_path_factory):
  """A student of the kind, and its folder with every format."""
  base = tmp_path_factory.mktemp(request.param)
  kind = request.param.partition('-mean')[0].partition('-local')[0]
  sizes = tiny.SIZES | {'vocab_size': tiny.VOCABULARY, 'max_position_embeddings': 80}
  config = {'model_type': kind, 'hidden_act': 'gelu', **sizes, **CONFIGS[request.param]}
  (base / 'config.json').write_text(json.dumps(config))
  if kind in ('electra', 'distilbert'):
    tiny.write_tokenizer(base, bert=True)
  else:
    write_tokenizer(base, kind)
  network = from_hf(base)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: (
      np.asarray(x, np.float32) * 8
      if x.ndim > 1 and x.std() > 0
      else np.asarray(x + rng.normal(0, 0.2, x.shape), np.float32)
    ),
    network.init(jax.random.key(3)),
  )
  tokenizer = load.open_tokenizer(base)
  prompt = network.family.prompt(tokenizer, students.MAX_LEN, students.MAX_QUERY)
  student = students.Student(network, variables, base, prompt)
  folder = student.save(base / 'exported')
  formats.write(folder, formats.FORMATS)
  return student, folder


GROUP = records.Group('q', 'join the strings', tuple(
  records.Document(f'd{i}', title, summary, label=i % 2)
  for i, (title, summary) in enumerate((
    ('str.join', 'Concatenate any number of strings.'), ('', ''), ('len', 'Size of a container.'),
    ('long', 'Return a copy of the string, and then another one of it. ' * 20),
  ))
))  # fmt: skip


def test_every_reader_and_format_gives_the_networks_scores(relative):
  student, folder = relative
  groups = [GROUP, parity.HARD]
  reference = [student.scores(group) for group in groups]
  assert np.concatenate(reference).std() > 0.01
  # 8 bits of random weights keep the order less well than those of a trained model.
  rows = parity.check(folder, formats.FORMATS, groups, reference, student.prompt, 5.0)
  read = {row.reader: row for row in rows}
  assert {'disranker_jax.load', *formats.FORMATS} <= read.keys()
  scale = np.abs(np.concatenate(reference)).max()
  for row in rows:
    if row.precision == 'float32':
      assert row.max_difference < 1e-4 * max(scale, 1), row


def test_the_kernels_of_all_layers_are_8_bits(relative):
  student, folder = relative
  model = onnx.load(folder / formats.ONNX['onnx_int8'])
  kinds = {c.name: c.data_type for c in model.graph.initializer}
  kernels = [n for n, t in kinds.items() if t == onnx.TensorProto.UINT8 and 'kernel8' in n]
  # The last layer's queries are apart where only `[CLS]` is computed.
  first_only = getattr(student.network.config, 'pooling', 'cls') == 'cls'
  assert len(kernels) == 4 * student.network.config.layers + first_only


def test_a_pair_is_framed_as_the_tokenizer_frames_it(relative):
  student, _ = relative
  [ours] = student.prompt.encode_texts('join', ['the strings'])
  theirs = student.prompt.tokenizer('join', 'the strings', return_token_type_ids=True)
  assert ours.ids.tolist() == theirs['input_ids']
  assert ours.types.tolist() == theirs['token_type_ids']


def test_transformers_reads_names_of_special_tokens_in_a_text_as_we_do(relative):
  student, folder = relative
  # The Unigram of XLM-RoBERTa has `</s>` in its own vocabulary, where transformers finds it.
  names = {'roberta': '</s> <mask>', 'xlm-roberta': 'none'}
  text = f'a {names.get(student.network.config.model_type, "[SEP] [CLS]")} b'
  ours, theirs = (
    load.open_tokenizer(folder),
    transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
  )
  [pair] = student.network.family.prompt(ours, 64, 32).encode_texts(text, [text])
  assert pair.ids.tolist() == theirs(text, text)['input_ids']


def test_special_tokens_in_a_text_that_is_cut_stay(relative):
  student, _ = relative
  [ours] = student.prompt.encode_texts('a ' * 100, ['b ' * 500])
  last = student.prompt.tokenizer('a', 'b')['input_ids'][-1]
  assert len(ours.ids) == students.MAX_LEN and ours.ids[-1] == last and ours.cut


def test_both_backends_of_the_exported_folder_rank_alike(relative):
  _, folder = relative
  texts = [(doc.title, doc.summary) for doc in GROUP.docs]
  onnx, xla = (
    disranker_jax.load(folder, backend=name).rank(GROUP.query, texts) for name in ('onnx', 'jax')
  )
  assert [i for i, _ in onnx] == [i for i, _ in xla]
  np.testing.assert_allclose([s for _, s in onnx], [s for _, s in xla], atol=1e-4)


def test_a_saved_folder_is_read_as_the_same_network(relative):
  student, folder = relative
  again = from_hf(folder)
  assert again.config == student.network.config
  loaded = hf.load(folder, again, jax.random.key(0))
  ours, theirs = (tree.flatten(variables['params']) for variables in (loaded, student.variables))
  assert ours.keys() == theirs.keys()
  for path, value in ours.items():
    kept = slice(1, None) if path in ABSENT and 'modernbert' in again.config.model_type else ...
    np.testing.assert_array_equal(value[kept], theirs[path][kept])
