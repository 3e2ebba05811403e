"""What the models of a run do not read of its texts: ends that are cut, and unknown tokens.

Both are silent in training: a model that reads a third of each page, or `[UNK]` for each word,
still learns something. So a sample is tokenised before the first model computes anything.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from disranker_jax.data.records import Click, Document
from disranker_jax.data.survey import MULTILINGUAL, UNKNOWN, Lengths
from disranker_jax.pipeline.estimate import Records
from disranker_jax.pipeline.opening import Opened
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import say
from disranker_jax.stages import prepare

SAMPLE, DOCUMENTS = 64, 4  # records of a kind that are read, and documents of each
CUT = 0.2  # a larger share of cut texts or queries gets a line
CHARS = 32  # of a token and more; what is behind max_len of these is cut anyway


def say_losses(run: Run, opened: Sequence[Opened], records: Records) -> None:
  """Two lines at most for each model: what is unknown to it, and what is cut of its texts.

  Cuts are counted for models that read title and summary of a record through their prompt, and for
  one that writes from documents. A model with `Use.tokens` puts its own inputs together, from
  pieces of them.
  """
  by_role: dict[str, list[Opened]] = {}
  for one in opened:
    if not one.step.texts and hasattr(one.model.prompt(), 'lengths'):
      by_role.setdefault(one.use.role, []).append(one)
  for role, models in by_role.items():
    prompted = [one for one in models if not one.use.tokens]
    models = prompted or models
    made, to_come = measured(run, models, records)
    c = run.config[role]
    tokens = made.tokens + to_come.tokens
    if tokens and (unknown := (made.unknown + to_come.unknown) / tokens) > UNKNOWN:
      say(
        f'warning: {role}: {unknown:.0%} of the tokens are unknown to config.{role}.model='
        f'{c.model!r}; take a model of this language, such as {MULTILINGUAL}'
      )
    if prompted:
      say_cut(role, c, made, to_come)
  for one in opened:
    if one.step.texts and one.use.kinds:
      section = one.stage.section
      say_cut(section, run.config[section], *measured(run, [one], records))


def say_cut(section: str, c: ConfigDict, made: Lengths, to_come: Lengths) -> None:
  """A line if many texts or queries are longer than the keys of a section allow."""
  pairs = made.pairs + to_come.pairs
  texts = sum(each.cut[name] for each in (made, to_come) for name in ('summary', 'title'))
  found = {'max_len': ('texts', texts, pairs)}
  if 'max_query_len' in c:
    found['max_query_len'] = 'queries', made.cut['query'], made.pairs
  cut = {key: (what, n / of) for key, (what, n, of) in found.items() if of and n > CUT * of}
  if cut:
    shares = ' and '.join(f'{share:.0%} of the {what}' for what, share in cut.values())
    keys = ' and '.join(f'{key}={c[key]}' for key in cut)
    say(f'{section}: {shares} are cut; if that matters, raise config.{section}.{keys}')


def measured(run: Run, models: Sequence[Opened], records_of: Records) -> tuple[Lengths, Lengths]:
  """Lengths of the records that there are, and of documents whose queries are yet to be written."""
  prompt, kinds = models[0].model.prompt(), {}
  for one in models:
    kinds |= dict.fromkeys(one.use.kinds or one.stage.reads_records(run.config))
  made, to_come = Lengths(prompt), Lengths(prompt)
  for kind in kinds:
    records = records_of(kind)
    into = to_come if prepare.is_to_come(run, kind) else made
    picks = np.unique(np.linspace(0, len(records) - 1, min(SAMPLE, len(records))).astype(int))
    for record in (records[i] for i in picks.tolist()):
      docs = [record] if isinstance(record, Click) else record.docs[:DOCUMENTS]
      into.add(record.query, [shortened(doc, prompt.max_len * CHARS) for doc in docs])
  return made, to_come


def shortened(doc: Document | Click, chars: int) -> Document:
  return Document('', doc.title[:chars], doc.summary[:chars])
