"""README.md of an exported folder: what the model is, its use, its results, what was checked."""

import json
from pathlib import Path

from disranker_jax.exporting import formats, parity
from disranker_jax.pipeline import manifest
from disranker_jax.report import tables
from disranker_jax.report.results import markdown as result_table

ENCODER_USE = """```python
from sentence_transformers import CrossEncoder

model = CrossEncoder('{name}')
model.predict([('{query}', 'open : Open file and return a stream.')])
```

`disranker serve --model {name}` serves it; transformers
(`AutoModelForSequenceClassification`) and servers of cross-encoders load it too. The document is
`title : summary`. Scores are raw: any real number, larger is better. The model was trained on pairs
of at most {max_len} tokens, of which at most {max_query_len} are the query's.
"""
STABLEHLO_USE = """```python
import jax
from safetensors.flax import load_file

prepare, score = (
  jax.export.deserialize(bytearray(open(f'{name}/stablehlo/{{part}}', 'rb').read())).call
  for part in ('prepare', 'score')
)
params = prepare(load_file('{name}/model.safetensors'))
score(params, input_ids, attention_mask, token_type_ids)  # int32 [batch, length] each
```
"""
DECODER_USE = """It scores text as `disranker_jax.template` in `config.json` has it; `transformers`
loads it as `{architecture}`. Scores are raw: any real number, larger is better.
"""


def write(folder: Path, names, rows: list[parity.Row], results: dict, made: dict) -> None:
  """Writes README.md from parity rows, the result table and what the model was made from."""
  config, name = formats.config(folder), folder.name.removeprefix('.')
  encoder = config['model_type'] == 'bert'
  facts = formats.lengths(folder) | {'name': name, 'query': parity.QUERY}
  use = ENCODER_USE if encoder else DECODER_USE
  parts = [
    '---\nlibrary_name: transformers\npipeline_tag: text-ranking\n'
    'tags:\n- cross-encoder\n- reranker\n- disranker\n---\n',
    f'# {name}\n',
    f'A {"BERT cross-encoder" if encoder else "decoder"} that ranks documents for a query, made by '
    f'disranker_jax {made["versions"]["disranker_jax"]}.\n',
    '## Use\n',
    use.format(architecture=config['architectures'][0], **facts),
    *(files(names) if names else ()),
    *([STABLEHLO_USE.format(**facts)] if 'stablehlo' in names else ()),
  ]
  if results:
    first = next(iter(results.values()))
    parts += [
      '## Results\n',
      f'{first["queries"]} held-out queries, {first["pairs"]} pairs re-ranked.\n',
      result_table(results) + '\n',
    ]
  parts += [
    '## Parity\n', said(rows),
    '## Made from\n', '```json\n' + json.dumps(made, indent=2) + '\n```\n',
  ]  # fmt: skip
  (folder / 'README.md').write_text('\n'.join(parts), encoding='utf-8')


def files(names) -> list[str]:
  """What lies beside the safetensors."""
  what = {
    'onnx': 'ONNX, fp32',
    'onnx_fp16': 'ONNX, fp16',
    'onnx_int8': 'ONNX, 8-bit kernels, for ONNX Runtime on CPUs',
    'stablehlo': 'StableHLO programs for any machine with jax',
  }
  return [f'- `{formats.ONNX.get(n, "stablehlo/")}`: {what[n]}' for n in names] + ['']


def said(rows: list[parity.Row]) -> str:
  """The parity table and what its columns are."""
  if not rows:
    return 'Not checked: no other reader of this model is installed here (torch is one).\n'
  lines = [
    [r.reader, r.precision, f'{r.max_difference:.2g}', f'{r.tau:.4f}', f'{r.ndcg_difference:+.4f}']
    for r in rows
  ]
  heads = (
    'reader',
    'precision',
    'max difference',
    'Kendall tau',
    f'nDCG@{parity.DEPTH} change',
  )
  about = (
    'Against the trained model in fp32, on real pairs and on very short, over-long, non-Latin and '
    'empty texts; tau and the change in nDCG are means over queries.\n'
  )
  return f'{about}\n{tables.markdown(heads, lines)}\n'


def made(run, stage: str = 'export') -> dict:
  """The part of the stage's manifest that says what the model was made from."""
  value = manifest.read(run.folder(stage)) or {}
  found = {k: value[k] for k in ('config', 'inputs', 'device') if k in value}
  return found | {'versions': manifest.versions()}
