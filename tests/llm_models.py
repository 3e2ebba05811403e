"""Small chat models with random weights, whose tokenizer has every label as one token."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from disranker_jax.data import named_contracts
from disranker_jax.models import hf, tiny
from disranker_jax.models.network import from_hf

SPECIAL = ('<unk>', '<s>', '</s>', '<|im_start|>', '<|im_end|>')
# In Qwen3's tokenizer these are added, but not special.
ADDED = ('<think>', '</think>')
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LABELS = (*named_contracts.AFTER_SPACE, ' Yes', ' No', ' yes', ' no', 'yes', 'no', 'Yes', 'No')
WORDS = 'the passage query document relevance of a list with names and files in order open read'


def tokenizer(*, metaspace: bool = False) -> Tokenizer:
  """BPE on bytes, or on text with '▁' for blanks."""
  made = Tokenizer(models.BPE(unk_token='<unk>'))
  if metaspace:
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=True)
    made.decoder = decoders.Metaspace(prepend_scheme='first')
    alphabet = [chr(i) for i in range(32, 127)] + ['\n', '▁']
  else:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=590, special_tokens=list(SPECIAL), show_progress=False, initial_alphabet=alphabet
  )
  corpus = [label for label in LABELS for _ in range(500)] + [WORDS] * 50
  made.train_from_iterator(corpus, trainer)
  made.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
  return made


def write(folder: Path, seed: int = 0, scale: float = 6.0, metaspace: bool = False, **config):
  """A model folder; matrices are `scale` times as large as at the start of training."""
  import jax
  import numpy as np

  settings = without_weights(folder, metaspace, **config)
  network = from_hf(folder, head='lm')
  variables = jax.tree.map(np.asarray, network.init(jax.random.key(seed)))
  variables = jax.tree.map(lambda x: x * np.float32(scale) if x.ndim > 1 else x, variables)
  hf.save(folder, network, variables)
  (folder / 'config.json').write_text(json.dumps(settings))
  return folder


def without_weights(folder: Path, metaspace: bool = False, **config) -> dict:
  """A folder with config.json, whose content is returned, and the tokenizer."""
  folder.mkdir(parents=True, exist_ok=True)
  settings = tiny.CONFIGS['tiny-decoder'] | {'max_position_embeddings': 4096, **config}
  (folder / 'config.json').write_text(json.dumps(settings))
  tokenizer(metaspace=metaspace).save(str(folder / 'tokenizer.json'))
  names = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '</s>'}
  (folder / 'tokenizer_config.json').write_text(
    json.dumps(names | {'unk_token': '<unk>', 'chat_template': CHATML})
  )
  return settings
