"""The teacher scores the unlabeled pairs; what is scored is written about once a minute.

A restart, on any number of processes and devices, scores the queries that no shard holds. An
audit at the end checks that every pair has exactly one finite score.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from disranker_jax.config.settings import Key, at_least, boolean, one_of, share
from disranker_jax.data.records import Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import runs
from disranker_jax.models import eight_bits
from disranker_jax.models.load import HEADS, open_model
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import Progress, say
from disranker_jax.rankers import score_statistics
from disranker_jax.rankers import shards as shards_of
from disranker_jax.rankers.llm import costs
from disranker_jax.rankers.llm.methods import METHODS
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import (
  earlier,
  prepare,
  prompting,
  quantise_gate,
  roles,
  teacher,
)
from disranker_jax.stages.chosen import Chosen

SAMPLE = 200  # queries that the estimate of the work reads
FIRST = 500  # queries whose scores are looked at before the others are scored
# Batches of a unit, see shards.units, and how full they are. Fewer batches lose less when a run is
# killed. What is over the brim would be a batch of its own, almost empty.
UNIT_BATCHES, UNIT_FILL = 5, 0.93


def execute(run: Run) -> dict:
  c, gate = run.config.score, {}
  [use] = uses(run.config)
  made = maker(run, use.open())
  if c.quantize:
    kinds = {kind: open_chosen(run, kind) for kind in gate_kinds(run.config)}
    scorer, gate = quantise_gate.opened(run, made, kinds, functools.partial(open_scorer, run))
  else:
    scorer = open_scorer(run)
  for kind in reads(run.config):
    groups = open_chosen(run, kind)
    shards = open_shards(run, kind, len(groups), made)
    processes.first_alone('folder', lambda s=shards: s.folder.mkdir(parents=True, exist_ok=True))
    look = functools.partial(look_at_first, kind, shards, c)
    score_missing(f'score {kind}', groups, shards, scorer, c, look)
    processes.barrier(f'{kind} are scored')
  say(f'score: {speed(scorer)}')
  by_kind = processes.first_alone('audit', lambda: finish(run)) or {}
  results = {'pairs': sum(s['pairs'] for s in by_kind.values()), 'ms_per_pair': scorer.ms_per_pair}
  results |= prompt_costs(run) if c.method else {}
  results |= {'quantised': {'format': c.quantize, **gate}} if c.quantize else {}
  return results | {'padding': padding(scorer), 'idle': idle(scorer)}


def open_scorer(run, quantize: str = ''):
  """What scores with the teacher's parameters, its kernels in an 8-bit format or not."""
  c = run.config.score
  if c.method:
    todo = prompting.plan(run.config, 'score', c.method)
    todo = todo.fitted(c.group_size) if c.group_size else todo
    return prompting.ranker(run, todo, 'score', prompting.stages(todo), quantize)
  loaded = roles.load(run, 'teacher')
  return roles.scorer(run, *loaded, rows=c.batch_rows, workers=c.workers, quantize=quantize)


def gate_kinds(config) -> list[str]:
  """The kinds of records that the gate before a pass in 8 bits reads: also labels, if any."""
  judged = [kind for kind in prepare.kinds(config) if kind == 'judgements']
  return list(dict.fromkeys((*reads(config), *judged)))


def trained_by(config) -> list[str]:
  """The stages of the run whose parameters score."""
  from disranker_jax.pipeline import systems  # which imports the stages

  read, method = systems.trained_stages(config, 'teacher'), config.score.method
  usable = prompting.stages(prompting.plan(config, 'score', method)) if method else read
  return [stage for stage in read if stage in usable]


def maker(run, teacher) -> dict:
  """What a score depends on apart from the pair: in every shard's note."""
  c, method = run.config.teacher, run.config.score.method
  trained = trained_by(run.config)
  plan = prompting.plan(run.config, 'score', method).to_dict() if method else {}
  start = c.init_from and earlier.fingerprint(run.config, run.workdir, 'teacher')
  tokenizer = teacher.tokenizer.backend_tokenizer.to_str().encode()
  return {
    'model': c.model,
    **inputs.noted(c.model),
    'parameters': [
      *([start] if start else []),
      *(manifest.read(run.folder(stage))['fingerprint'] for stage in trained),
    ],
    'precision': teacher.network.precision,
    'scorer': c.scorer,
    'tokenizer': hashlib.sha256(tokenizer).hexdigest()[:16],
    **({'prompts': manifest.digest(plan)} if plan else {}),
    **({'quantize': run.config.score.quantize} if run.config.score.quantize else {}),
  }


def prompt_costs(run) -> dict[str, float]:
  """What the prompts of all queries cost, if an LLM ranker scored them.

  Raises: UserError if it ties so many documents that there is little to learn.
  """
  found = costs.summary(
    counts for kind in reads(run.config)
    for counts in open_shards(run, kind, len(open_chosen(run, kind))).counts()
  )  # fmt: skip
  say(f'score: {costs.as_text(found)}')
  c = run.config.score
  if found['tie_rate'] > c.max_tied_share:
    raise UserError(
      f'config.score.method={c.method!r}: gives the same score to {found["tie_rate"]:.0%} of the '
      f'pairs of one query (config.score.max_tied_share={c.max_tied_share:g}); take a larger '
      "model or another method, such as 'prp_allpair_soft'"
    )
  return {k: v for k, v in found.items() if k not in ('queries', 'documents')}


def open_shards(run, kind: str, queries: int, made: dict | None = None) -> Shards:
  return Shards(run.folder('score') / 'shards' / kind, queries, made)


def look_at_first(kind: str, shards: Shards, c) -> None:
  """Raises: UserError if the scores of the first queries have collapsed; later ones would, too."""
  rows = itertools.chain.from_iterable(
    table.to_pylist() for table in (s.read() for s in shards.found() if s.span.start < FIRST)
  )
  queries = [
    [row['score'] for row in of_query]
    for _, of_query in itertools.groupby(rows, key=lambda row: row['query_id'])
  ]
  scores = np.array(list(itertools.chain.from_iterable(queries)), np.float32)
  if len(scores) and np.isfinite(scores).all():  # the audit says which are not
    found = score_statistics.describe(scores, list(map(len, queries)))
    score_statistics.refuse_collapsed(f'first {len(queries):,} queries of {kind}', found, c)


def score_missing(
  label: str, groups: Sequence[Group], shards: Shards, scorer, c, look: Callable | None = None
) -> None:
  """Scores the queries that are missing; each of several processes takes its share of them.

  `scorer` is a PointwiseRanker or an LLMRanker, `c` has `unit_queries` and `shard_seconds`. Of many
  queries the first ones are scored by themselves. Before any other one is scored, `look()` may
  raise a UserError, also where an earlier start has scored the first ones.
  """
  missing = shards_of.agreed(processes.first_alone(f'{label}: look', shards.missing) or [])
  if not missing:
    return
  look = look if len(groups) > 2 * FIRST else None
  if look and missing[0].start >= FIRST:
    processes.first_alone(f'{label}: look at the first ones', look)
  per_query = measured(groups, scorer.tokens_of)
  size = c.unit_queries or max(scorer.least_unit, unit_size(per_query.tokens, scorer.positions))
  todo = sum(map(len, missing))
  say(
    f'{label}: about {todo * per_query.pairs:,.0f} pairs, {todo * per_query.tokens:,.0f} tokens, '
    f'of {todo:,} {f"of {len(groups):,} " if todo < len(groups) else ""}queries'
  )
  listed = shards_of.units(missing, size)
  first = [unit for unit in listed if unit.start < FIRST] if look else []
  turns = [own_share(first), own_share(listed[len(first) :])]
  count = sum(len(unit) for own in turns for unit in own)
  done = len(groups) - count
  with Progress(
    label, len(groups), 'pairs', done, count * per_query.pairs, scorer.work
  ) as progress:
    for number, own in enumerate(turns if first else turns[1:]):
      with shards_of.Writer(shards, c.shard_seconds) as writer:
        parts = ((unit, (groups[i] for i in unit)) for unit in own)
        for unit, group, scores, *counts in scorer.parts(parts):
          writer.add(unit, (group, scores, *counts))
          done += 1
          progress.update(done, len(scores))
      if first and not number:
        processes.barrier(f'{label}: the first ones are scored')
        processes.first_alone(f'{label}: look at the first ones', look)


def own_share(units: Sequence[range]) -> list[range]:
  """The units of this process. Neighbours go to one process, which writes them as one shard."""
  shares = np.array_split(range(len(units)), jax.process_count())
  return [units[i] for i in shares[jax.process_index()]]


class PerQuery(NamedTuple):
  """Mean work of a query."""

  pairs: float
  tokens: float


def measured(groups: Sequence[Group], tokens_of: Callable[[Group], float]) -> PerQuery:
  """The mean of SAMPLE queries, the same ones whenever it is called."""
  picks = np.unique(np.linspace(0, len(groups) - 1, min(SAMPLE, len(groups))).astype(int)).tolist()
  sample = [groups[i] for i in picks]
  tokens = sum(map(tokens_of, sample))
  return PerQuery(sum(len(g.docs) for g in sample) / len(sample), tokens / len(sample))


def unit_size(tokens: float, positions: int) -> int:
  """Queries of `tokens` tokens that fill UNIT_BATCHES batches, the last one almost."""
  return max(1, int(UNIT_BATCHES * UNIT_FILL * positions / max(tokens, 1)))


def kept(run) -> str:
  """How many queries have scores on disk."""
  kinds = [(kind, len(prepare.records(run, kind))) for kind in reads(run.config)]
  done = sum(open_shards(run, kind, count).kept() for kind, count in kinds)
  return f'{done:,} of {sum(count for _, count in kinds):,} queries are scored' if done else ''


def padding(scorer) -> float:
  """The share of positions in batches without a token."""
  return 1 - scorer.tokens / scorer.places if scorer.places else 0.0


def idle(scorer) -> float:
  """The share of time that the device waited for its next batch."""
  total = scorer.seconds + scorer.idle
  return scorer.idle / total if total else 0.0


def speed(scorer) -> str:
  if not scorer.seconds:
    return 'all scores were there'
  rate = scorer.tokens / (scorer.seconds + scorer.idle)
  return (
    f'{rate:,.0f} tokens/s, {padding(scorer):.1%} padding, '
    f'{idle(scorer):.1%} of the time the device waited for data'
  )


def open_chosen(run, kind: str) -> Chosen:
  return Chosen(prepare.records(run, kind), run.config.score)


def finish(run) -> dict[str, dict]:
  """Audits every kind, writes stats.json and the teacher's run; returns the statistics per kind.

  Raises: UserError if the audit fails or the scores have collapsed.
  """
  by_kind = {}
  for kind in reads(run.config):
    groups = open_chosen(run, kind)
    shards = open_shards(run, kind, len(groups))
    sizes, labels = [], []

    def pairs_of(i, groups=groups, sizes=sizes, labels=labels):
      group = groups[i]
      sizes.append(len(group.docs))
      labels.extend(d.label for d in group.docs)
      return group.query_id, [d.doc_id for d in group.docs]

    scores = shards.audit(pairs_of)
    known = np.array(labels) if kind == 'judgements' else None
    by_kind[kind] = score_statistics.describe(scores, sizes, known)
  manifest.write_json(run.folder('score') / 'stats.json', by_kind)
  write_run(run)
  for kind, of_kind in by_kind.items():
    score_statistics.refuse_collapsed(f'{kind} (score/stats.json)', of_kind, run.config.score)
  return by_kind


def write_run(run) -> None:
  """The teacher's ranking of the candidates as a TREC run, `teacher.run.gz`."""
  kinds = [kind for kind in reads(run.config) if kind != 'judgements']
  rows = (open_shards(run, kind, len(prepare.records(run, kind))).rows() for kind in kinds)
  queries = itertools.groupby(itertools.chain.from_iterable(rows), key=lambda row: row[0])
  scored = ((query, {doc: score for _, doc, score in rows}) for query, rows in queries)
  runs.write_run(run.folder('score') / 'teacher.run.gz', scored, 'teacher')


SETTINGS = {
  'batch_rows': Key(64, at_least(1), 'Rows of teacher.row_len tokens per batch.'),
  'method': Key(
    '', one_of('', *METHODS),
    "The teacher's scores: '' is teacher.scorer; else its language model ranks by prompts, such as "
    "'prp_allpair_soft' (docs/llm_rankers.md says which losses fit).", affects_results=False,
  ),  # an input of the stage tells method and prompts, see pipeline/inputs.py
  'prompts': prompting.PROMPTS,
  'group_size': Key(0, at_least(0), 'Documents per query that are scored; 0: all.'),
  'ranks': Key(
    'spread', one_of('spread', 'top'),
    "Which documents: 'spread' takes geometrically spaced ranks (of 100 with group_size 8: 1, 2, "
    "4, 7, 14, 27, 52, 100); 'top' the first stage's best.",
  ),
  'shard_seconds': Key(
    60.0, at_least(0), 'Finished scores are written so often, each time as one shard.',
    affects_results=False,
  ),
  'unit_queries': Key(
    0, at_least(0),
    'Queries whose documents share batches; what is finished of them is written together. The last '
    f'batch is not full, so fewer queries take longer. 0: as many as fill {UNIT_BATCHES} batches.',
  ),
  'workers': Key(
    0, at_least(0),
    'Processes that tokenize; 0: a thread of this process (docs/data.md has measurements).',
    affects_results=False,
  ),
  'quantize': Key(
    '', one_of(*eight_bits.NAMES),
    "Multiply in 8 bits: 'int8', or 'fp8' where the device has it (docs/scale.md says which to "
    "take); '': in teacher.precision. A gate compares the two first.", affects_results=False,
  ),  # an input of the stage tells it, see pipeline/inputs.py
  'quantize_gate': quantise_gate.SETTINGS,
  'min_std': Key(
    1e-3, at_least(0),
    'A smaller standard deviation of all scores is an error: they collapsed. Tested with the first '
    'queries, too.', affects_results=False,
  ),
  'max_tied_share': Key(
    0.5, share(), 'A larger share of tied pairs within queries is an error.',
    affects_results=False,
  ),
  'judgements': Key(
    True, boolean(),
    'Score the judged queries too: distillation learns from their scores and, by its hard-label '
    'term, from their labels.',
  ),
}  # fmt: skip


def reads(config) -> tuple[str, ...]:
  """The kinds of records that are scored, in the order of distillation; what a retriever found."""
  if 'retrieve' in config.stages:
    return (prepare.RETRIEVED,)
  return (
    *(('candidates',) if config.data.candidates != prepare.GENERATED_ADDRESS else ()),
    *((prepare.GENERATED,) if 'generate' in config.stages else ()),
    *(('judgements',) if config.score.judgements else ()),
  )


def check(config) -> None:
  if config.data.teachers:
    raise UserError(
      'config.stages: lists score, but config.data.teachers gives the scores; take one of the two '
      'out'
    )
  teacher.check_scorer(config)
  prompting.check_scores(config)


def uses(config) -> tuple[Use, ...]:
  """The teacher as it scores."""
  c = config.score
  if c.method:
    use = prompting.use(config, 'score', c.method, 'teacher')
  else:
    open_it = functools.partial(open_model, config.teacher, HEADS[config.teacher.scorer])
    use = Use('teacher', 'teacher', open_it, c.batch_rows)

  def checked():
    eight_bits.check_device('config.score.quantize', c.quantize, jax.local_devices()[0])
    model = use.open()
    roles.check_scored_head(config, 'teacher', model)
    return model

  return (dataclasses.replace(use, open=checked, quantize=c.quantize),)


def outside(config, workdir) -> dict[str, str]:
  """Prompts, with the text of the contract, which may be in a file; the 8-bit format."""
  c, found = config.score, {'score.quantize': config.score.quantize}
  if c.method:
    found['score.method'] = manifest.digest(prompting.plan(config, 'score', c.method).to_dict())
  return {key: value for key, value in found.items() if value}


STAGE = Stage(
  'score', 'the teacher scores unlabeled pairs', execute, SETTINGS, check=check, role='teacher',
  reads_stages=('prepare', 'cpt', 'sft', 'generate', 'retrieve'), reads_records=reads,
  head=lambda config: HEADS[config.teacher.scorer], kept=kept, uses=uses, outside=outside,
  scores_records=True, paper_rows=46_814_775,
)  # fmt: skip
