"""Checks that an exported folder gives our scores in every library that may load it.

The reference is the trained model in fp32, not the written files. Each reader gets the texts in the
form in which its own users pass them.
"""

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import disranker_jax
from disranker_jax.data import tokenising
from disranker_jax.data.prompts import document_text
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics
from disranker_jax.exporting import formats
from disranker_jax.models import hf, recorded

DEPTH = 5  # of nDCG
ROWS = 16  # of a StableHLO call
NEAR = 1e-3  # of the scores' standard deviation: closer scores count as equal
QUERY = 'read a file'
# Texts that are rare in real data and that programs often get wrong.
HARD = Group('hard', QUERY, tuple(
  Document(f'hard{i}', title, summary)
  for i, (title, summary) in enumerate((
    ('a', 'b'),
    ('', ''),
    ('only a title', ''),
    ('', 'Only a summary, without any title.'),
    ('over-long', 'Read the file, then the next line of it. ' * 400),
    ('one endless word', 'x' * 5000),
    ('文件读取', '逐行读取文本文件直到文件结束。'),
    ('Чтение файла', 'Построчное чтение текстового файла до конца.'),
    ('قراءة ملف', 'قراءة ملف نصي سطرا سطرا.'),
    ('फ़ाइल पढ़ना', 'पाठ फ़ाइल को पंक्ति दर पंक्ति पढ़ें।'),
    ('👩‍👩‍👧‍👦 emoji', 'naïve café — ﬁle \u200b zero\u00a0width'),
  ))
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tolerance:
  """The limits for a reader: largest score difference, Kendall's tau, change of nDCG."""

  score: float
  tau: float
  ndcg: float

  def times(self, slack: float) -> 'Tolerance':
    """Limits that are `slack` times as wide."""
    return Tolerance(self.score * slack, 1 - slack * (1 - self.tau), self.ndcg * slack)


# For trained models. The quickstart's student differs by 1e-3 with tau 1 in fp16; in int8 its tau
# is .988 and its nDCG@5 over 295 queries is .002 lower.
TOLERANCES = {
  'float32': Tolerance(1e-3, 0.999, 0.001),
  'float16': Tolerance(2e-2, 0.98, 0.01),
  'bfloat16': Tolerance(2e-1, 0.95, 0.02),
  'int8': Tolerance(math.inf, 0.93, 0.02),  # 8 bits keep only the order
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One reader's differences from our scores, over all pairs or as a mean over queries."""

  reader: str
  precision: str
  max_difference: float
  tau: float
  ndcg_difference: float
  problem: str = ''


def chosen(groups: Iterable[Group], pairs: int, prompt) -> list[Group]:
  """The first groups with up to `pairs` pairs in all, and the hard ones.

  Too long queries are skipped: we cut the query before the document, other libraries after it.
  Texts with the name of a special token are skipped too: it is text here, a special token there.
  """
  # RoBERTa has the most special tokens around a pair, four.
  limit = min(prompt.max_query_len, (prompt.max_len - 4) // 2)
  taken, count = [], 0
  for group in groups:
    tokenizer = prompt.tokenizer
    if len(tokenising.text_ids(tokenizer, [group.query])[0]) > limit:
      continue
    docs = group.docs[: max(2, pairs - count)]
    named = tokenising.name_control_tokens(tokenizer, [group.query, *map(document_text, docs)])
    docs = tuple(doc for doc, skip in zip(docs, named[1:], strict=True) if not skip)
    if named[0] or not docs:
      continue
    taken.append(dataclasses.replace(group, docs=docs))
    count += len(taken[-1].docs)
    if count >= pairs:
      break
  return [*taken, HARD]


def check(
  folder: Path, names, groups: list[Group], reference: list, prompt, slack: float = 1.0
) -> list[Row]:
  """A row for each installed reader.

  `names` are the folder's formats besides safetensors, `reference` our scores of each group,
  `prompt` how the model reads text.

  Raises: UserError if a reader exceeds its tolerance times `slack`.
  """
  from transformers.utils import logging

  logging.disable_progress_bar()
  rows = []
  dtype = recorded.config(folder)['dtype']
  for reader in readers(folder, names):
    computed = {'onnx_fp16': 'float16', 'onnx_int8': 'int8'}.get(reader.name, dtype)
    precision = max(computed, dtype, key=lambda p: TOLERANCES[p].score)
    score = reader.open(folder, prompt)
    given = [np.asarray(score(group), np.float64) for group in groups]
    rows.append(compare(reader.name, precision, groups, reference, given, slack))
  if bad := [row for row in rows if row.problem]:
    problems = '; '.join(f'{row.reader}: {row.problem}' for row in bad)
    remedy = (
      'remove the format from config.export.formats'
      if any(row.reader in names for row in bad)
      else 'if the differences are small, raise config.export.tolerance_factor'
    )
    raise UserError(
      f'{folder}: the exported model does not give the scores of the trained model ({problems}); '
      + remedy
    )
  return rows


def compare(reader: str, precision: str, groups, reference, given, slack: float = 1.0) -> Row:
  """Largest difference of all pairs; mean tau and nDCG of the queries with an order or labels."""
  tolerance = TOLERANCES[precision].times(slack)
  gaps = [np.abs(a - b).max() for a, b in zip(reference, given, strict=True)]
  runs = [
    {g.query_id: dict(zip((d.doc_id for d in g.docs), s, strict=True)) for g, s in rows}
    for rows in (list(zip(groups, reference, strict=True)), list(zip(groups, given, strict=True)))
  ]
  spread = float(np.concatenate(reference).std())
  tau = order_kept(given, reference, NEAR * spread)
  changes = ndcg_changes(*runs, groups)
  gap, change = float(np.max(gaps)), float(np.mean(changes)) if len(changes) else 0.0
  problem = ''
  # A comparison with nan is false, so the test is whether the difference is not below its limit.
  if not gap <= tolerance.score * max(1.0, spread):
    problem = f'largest difference {gap:.2g}'
  elif not all(np.isfinite(s).all() for s in given):
    problem = 'scores that are not finite'
  elif tau < tolerance.tau:
    problem = f'Kendall tau {tau:.3f}, below {tolerance.tau}'
  elif abs(change) - noise(changes) > tolerance.ndcg:
    problem = f'nDCG@{DEPTH} changes by {change:.3f}, more than {tolerance.ndcg}'
  return Row(reader, precision, gap, tau, change, problem)


def order_kept(given, reference, near: float) -> float:
  """Mean Kendall tau over the queries, of documents whose reference scores differ by over `near`.

  The order of closer ones depends on the order of floating-point sums.
  """
  values = []
  for ours, theirs in zip(given, reference, strict=True):
    gaps = np.subtract.outer(theirs, theirs)
    apart = gaps > near
    if apart.any():
      values.append(np.sign(np.subtract.outer(ours, ours)[apart]).mean())
  return float(np.mean(values)) if values else 1.0


def ndcg_changes(reference: metrics.Run, given: metrics.Run, groups: list[Group]) -> np.ndarray:
  """By how much nDCG is higher with the given scores: one value per group with a label above 0."""
  return np.array([
    metrics.ndcg(given[g.query_id], g.grades, DEPTH)
    - metrics.ndcg(reference[g.query_id], g.grades, DEPTH)
    for g in groups
    if any(g.grades.values())
  ])  # fmt: skip


def noise(changes: np.ndarray) -> float:
  """Two standard errors of the mean: of few queries, one swapped pair is a large change."""
  return 2 * changes.std(ddof=1) / math.sqrt(len(changes)) if len(changes) > 1 else math.inf


# Readers


@dataclasses.dataclass(frozen=True)
class Reader:
  """A way to load the folder."""

  name: str
  open: Callable  # (folder, prompt) -> (group) -> scores
  packages: tuple[str, ...] = ()  # that it needs


def readers(folder: Path, names) -> list[Reader]:
  """The family's readers whose packages are installed, and one for each format."""
  names_here = [
    name
    for name in hf.family(folder).readers_of(hf.open_config(folder))
    if all(importlib.util.find_spec(package) for package in READERS[name].packages)
  ]
  kinds = {'stablehlo': stablehlo} | {n: onnx_runtime(n) for n in formats.ONNX}
  return [READERS[name] for name in names_here] + [Reader(name, kinds[name]) for name in names]


def pairs(group: Group) -> list[tuple[str, str]]:
  return [(group.query, document_text(doc)) for doc in group.docs]


def python_api(folder: Path, prompt) -> Callable:
  ranker = disranker_jax.load(folder)
  return lambda group: ranker.score(pairs(group))


def python_api_documents(folder: Path, prompt) -> Callable:
  """The same with titles and summaries, which a decoder's template has apart."""
  ranker = disranker_jax.load(folder)
  return lambda group: ranker.score([(group.query, doc) for doc in group.docs])


def tokenised(folder: Path, tensors: str) -> Callable:
  """(group) -> its pairs, encoded by the folder's own tokenizer as its users call it."""
  from transformers import AutoTokenizer

  tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

  def encode(group, padding='longest'):
    queries, texts = zip(*pairs(group), strict=True)
    return tokenizer(
      list(queries), list(texts), truncation=True, padding=padding, return_tensors=tensors
    )

  return encode


def transformers(folder: Path, prompt) -> Callable:
  import torch
  from transformers import AutoModelForSequenceClassification

  encode = tokenised(folder, 'pt')
  model = AutoModelForSequenceClassification.from_pretrained(
    folder, dtype='auto', trust_remote_code=False
  ).eval()

  @torch.inference_mode()
  def score(group):
    return model(**encode(group)).logits[:, 0].float().numpy()

  return score


def transformers_tokens(folder: Path, prompt) -> Callable:
  """transformers on our own tokens, since a decoder's users fill in its template themselves."""
  import torch
  from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

  causal = 'CausalLM' in recorded.config(folder)['architectures'][0]
  kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
  model = kind.from_pretrained(folder, dtype='auto', trust_remote_code=False).eval()

  @torch.inference_mode()
  def score(group):
    out = []
    for doc in prompt.encode(group.query, group.docs):
      ids = torch.tensor(doc.ids[None].astype(np.int64))
      logits = model(ids).logits.float()[0]
      if causal:
        start, stop = doc.predict
        logs = logits.log_softmax(-1)[start - 1 : stop - 1]
        out.append(float(logs.gather(1, ids[0, start:stop, None]).mean()) if stop > start else 0.0)
      else:
        out.append(float(logits[0]))
    return out

  return score


def sentence_transformers(folder: Path, prompt) -> Callable:
  from sentence_transformers import CrossEncoder

  model = CrossEncoder(str(folder), device='cpu')
  return lambda group: model.predict(pairs(group), show_progress_bar=False)


# Other libraries, by the names that families use.
READERS = {
  'disranker_jax.load': Reader('disranker_jax.load', python_api),
  'disranker_jax.load-documents': Reader('disranker_jax.load', python_api_documents),
  'transformers': Reader('transformers', transformers, ('torch',)),
  'transformers-tokens': Reader('transformers', transformers_tokens, ('torch',)),
  'sentence-transformers': Reader(
    'sentence-transformers', sentence_transformers, ('torch', 'sentence_transformers')
  ),
}


def onnx_runtime(name: str) -> Callable:
  def open_(folder: Path, prompt) -> Callable:
    import onnxruntime

    encode = tokenised(folder, 'np')
    file = str(folder / formats.ONNX[name])
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    wanted = [i.name for i in session.get_inputs()]
    return lambda group: session.run(None, {k: encode(group)[k] for k in wanted})[0][:, 0]

  return open_


def stablehlo(folder: Path, prompt) -> Callable:
  from safetensors.flax import load_file

  from disranker_jax.exporting import stablehlo as programs

  encode = tokenised(folder, 'np')
  names = programs.inputs(hf.family(folder))
  prepare, score = programs.load(folder)
  params = prepare(load_file(folder / 'model.safetensors'))

  def score_group(group):
    # Each new shape is compiled, so there is only one.
    encoded, out = encode(group, padding='max_length'), []
    for at in range(0, len(group.docs), ROWS):
      rows = [encoded[name][at : at + ROWS].astype(np.int32) for name in names]
      filled = [np.pad(r, ((0, ROWS - len(r)), (0, 0)), mode='edge') for r in rows]
      out.extend(np.asarray(score(params, *filled))[: len(rows[0])])
    return out

  return score_group


def reference(scorer, groups: list[Group], first: bool) -> list[np.ndarray]:
  """Our scores of the groups; all processes take part, and the first one has the groups."""
  return [scores for _, scores in scorer(itertools.islice(groups, len(groups) if first else 0))]
