"""README.md of an exported folder: the model, its use, its results, and the parity checks."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from disranker_jax import escaping
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.exporting import formats, licence, parity
from disranker_jax.exporting.licence import Origin
from disranker_jax.models import hf, load, recorded
from disranker_jax.pipeline import manifest
from disranker_jax.progress import amount
from disranker_jax.report import tables
from disranker_jax.report.results import markdown as markdown_of
from disranker_jax.stages.result_table import Table

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


@dataclasses.dataclass(frozen=True)
class Purpose:
  """What a folder is for.

  does   what the model does, after its kind
  usage  the section on use, with the fields of Family.usage; '': that of the family
  task   the hub's name of it
  score  what its score of a pair is, by which readers are compared; '': its own one
  """

  does: str = 'ranks documents for a query'
  usage: str = ''
  task: str = licence.RANKS
  score: str = ''


RANKING = Purpose()


def write(
  folder: Path, names, rows: list[parity.Row], table: Table, results: dict, made: dict,
  base: Origin,
  teachers: Sequence[Origin] = (), license: str = '', which: str = '', purpose: Purpose = RANKING,
) -> None:  # fmt: skip
  """Writes README.md from parity rows, results in a table, and what the model was made from.

  `made` is the run's record; `base` and `teachers` are the pretrained models; `license` is
  config.export.license; `which` says which model of the run it is.
  """
  config, name = recorded.config(folder), folder.name.removeprefix('.')
  family = hf.family(folder)
  usage = purpose.usage or family.usage_of(hf.open_config(folder))
  facts = load.lengths(folder) | {'name': name, 'query': parity.QUERY}
  parts = [
    licence.metadata(base, license, purpose.task),
    f'# {name}\n',
    f'A {family.title} that {purpose.does}, made by '
    f'disranker_jax {made["versions"]["disranker_jax"]}.\n',
    *([f'It is the {escaping.markdown(which)}.\n'] if which else []),
    '## Use\n',
    usage.format(architecture=config['architectures'][0], **facts),
    *(files(names) if names else ()),
    *([STABLEHLO_USE.format(**facts)] if 'stablehlo' in names else ()),
  ]
  if fusion := recorded.of(config, str(folder)).fusion:
    parts += ['## With the first stage\n', fused(Fusion.from_dict(fusion, str(folder)), name)]
  if results:
    first = next(iter(results.values()))
    parts += [
      '## Results\n',
      f'{amount(first["queries"], "held-out query", "held-out queries")}, '
      + (
        f'{amount(first["pairs"], "pair")} re-ranked'
        if table.reranks
        else 'searched in all documents'
      )
      + '.\n',
      markdown_of(table, results, {}) + '\n',
    ]
  parts += [
    '## Parity\n', parity_table(rows, purpose.score),
    '## Licences\n', licence.described(base, teachers, license),
    '## Made from\n', '```json\n' + json.dumps(made, indent=2) + '\n```\n',
  ]  # fmt: skip
  (folder / 'README.md').write_text('\n'.join(parts), encoding='utf-8')


FUSED_USE = """```python
import disranker_jax

ranker = disranker_jax.load('{name}')
ranker.rank(query, texts, first_{signal}=[...])  # the first stage's, one per text, None: not found
```

On the command line: `disranker rerank --fuse`; over HTTP: the field `first_{signal}` of a request.
"""


def fused(how: Fusion, name: str) -> str:
  """What the recorded weight means, and how it is used."""
  said = escaping.markdown(how.text[0].upper() + how.text[1:])
  about = (
    'The model and the first stage (such as BM25) may be fused: per query, the scores of both are '
    f'scaled to 0..1 (min-max) and added up. {said}.'
  )
  return f'{about}\n\n{FUSED_USE.format(name=name, signal=how.signal)}'


def files(names) -> list[str]:
  """The list of files besides the safetensors."""
  what = {
    'onnx': 'ONNX, fp32',
    'onnx_fp16': 'ONNX, fp16',
    'onnx_int8': 'ONNX, 8-bit kernels, for ONNX Runtime on CPUs',
    'stablehlo': 'StableHLO programs for any machine with jax',
  }
  return [f'- `{formats.ONNX.get(n, "stablehlo/")}`: {what[n]}' for n in names] + ['']


def parity_table(rows: list[parity.Row], score: str = '') -> str:
  """The parity table, and what its columns mean."""
  if not rows:
    return 'Not checked: no other library that reads this model was installed (torch is one).\n'
  lines = [
    [r.reader, r.precision, f'{r.max_difference:.2g}', f'{r.tau:.4f}', f'{r.ndcg_difference:+.4f}']
    for r in rows
  ]
  heads = ('reader', 'precision', 'max difference', 'Kendall tau', f'nDCG@{parity.DEPTH} change')
  about = (
    'Differences from the trained model in fp32, on real pairs and on very short, over-long, '
    'non-Latin and empty texts. Kendall tau and the nDCG change are means over queries.\n'
  )
  about += f'The score of a pair is {score}.\n' if score else ''
  return f'{about}\n{tables.markdown(heads, lines)}\n'


def made(run, stage: str = 'export') -> dict:
  """The part of the stage's manifest that says what the model was made from."""
  value = manifest.read(run.folder(stage)) or {}
  origin = {k: value[k] for k in ('config', 'inputs', 'device') if k in value}
  return origin | {'versions': manifest.versions()}
