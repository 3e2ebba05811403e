"""The settings of a model, teacher or student: which network, and what text it reads."""

from ml_collections import ConfigDict

from disranker_jax.config.settings import (
  Key,
  Section,
  above,
  at_least,
  boolean,
  build,
  integers,
  one_of,
  text,
  with_defaults,
)
from disranker_jax.models.pooling import POOLINGS

SETTINGS: Section = {
  'seed': Key(
    0, at_least(0), "Added to config.seed in this model's stages: another student of one teacher."
  ),
  'model': Key(
    '', text('a local folder, a Hugging Face name, or a .gguf file of a decoder'),
    'The pretrained model (docs/models.md).',
  ),
  'init_from': Key(
    '', text('a workdir'),
    'Workdir of an earlier run of the same model, whose trained parameters it starts from '
    "(docs/retrain.md); '': the pretrained ones.", affects_results=False,
  ),
  'layers': Key((), integers(0), 'Take only these layers, in this order; (): all.'),
  'precision': Key(
    'auto', one_of('auto', 'float32', 'bfloat16', 'bfloat16_dots'),
    "'bfloat16_dots' has bf16 operands, fp32 sums and activations. 'auto' is bfloat16 on an "
    'accelerator, bfloat16_dots on a CPU that is faster with it, else float32.',
  ),
  'remat': Key(
    'none', one_of('none', 'dots', 'full'),
    "What the backward pass recomputes: 'none'; 'dots': all but dot products; 'full': layers.",
    affects_results=False,
  ),
  'scan_layers': Key(
    True, boolean(),
    'Compile one layer and loop over it; False unrolls the layers, which compiles longer and is '
    'as fast on a CPU (docs/performance.md).', affects_results=False,
  ),
  'param_dtype': Key(
    'float32', one_of('float32', 'bfloat16'),
    "Type of the parameters that a stage reads and does not train; 'bfloat16' halves them. Those "
    "that it trains are float32 in it, since bfloat16's 8 bits would lose small updates; later "
    'stages round of them only matrices of layers and embeddings, also in an exported model.',
  ),
  'attention': Key(
    'auto', one_of('auto', 'xla', 'splash', 'cudnn'),
    "Attention kernel: 'splash' is for TPUs, 'cudnn' for NVIDIA GPUs, both in bfloat16; 'auto' is "
    "the one of this device, 'xla' where it does not run (models/attention_choice.py).",
    affects_results=False,
  ),
  'bidirectional': Key(
    False, boolean(),
    "Every position of a decoder attends to the whole text, as in LLM2Vec; cpt with objective="
    "'masked' teaches it to (docs/llm_rankers.md).",
  ),
  'pooling': Key(
    '', one_of('', *POOLINGS),
    "What a decoder's score is computed from: 'token', the last token; 'mean' of all tokens; '': "
    'as its folder says, else the last token.',
  ),
  'shard_sequence': Key(
    False, boolean(),
    'Shard the positions of a row over mesh.model between layers: for long rows on a model axis.',
    affects_results=False,
  ),
  'share_prefixes': Key(
    True, boolean(),
    'While a decoder scores, the documents of a query share the first tokens of their prompts in a '
    'row, where that saves 5 % of the tokens (docs/performance.md).', affects_results=False,
  ),
  'lora_rank': Key(
    0, at_least(0),
    'Rank of LoRA adapters; 0: none. They save memory with a trainable of the stage that trains '
    "them and not the parameters beside them, such as 'lora/.*'.",
  ),
  'lora_alpha': Key(32.0, above(0), 'Adapters are scaled by lora_alpha / lora_rank.'),
  'max_len': Key(256, at_least(8), 'Tokens of a query with one document, special tokens included.'),
  'max_query_len': Key(64, at_least(1), 'Longer queries are cut at the end.'),
  'row_len': Key(
    256, at_least(8),
    'Tokens of a packed row, at least max_len. A multiple of max_len with proportionally fewer '
    'batch_rows wastes less of each row (docs/data.md).',
  ),
}  # fmt: skip


def model(**defaults) -> Section:
  """The section with other defaults."""
  return with_defaults(SETTINGS, **defaults)


def defaults(**changes) -> ConfigDict:
  """A model section as a ConfigDict, for code that opens a model without the pipeline."""
  return build(SETTINGS, **changes)
