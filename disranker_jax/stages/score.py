"""The teacher scores the unlabeled pairs; what is scored is written about once a minute.

A restart, on any number of processes and devices, scores the queries that no shard holds. An
audit at the end checks that every pair has exactly one finite score.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np

from disranker_jax.config.settings import Key, at_least, boolean, one_of, share
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import runs
from disranker_jax.models import eight_bits
from disranker_jax.models.load import HEADS, open_model
from disranker_jax.pipeline import manifest, systems
from disranker_jax.pipeline.stage import Run, Stage, Use
from disranker_jax.progress import amount, part_of, say
from disranker_jax.rankers import filling, score_statistics
from disranker_jax.rankers.llm import costs
from disranker_jax.rankers.llm.methods import METHODS
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import (
  prepare,
  prompting,
  quantise_gate,
  roles,
  teacher,
)
from disranker_jax.stages.chosen import Chosen


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
    filling.score_missing(
      f'score {kind}', groups, shards, scorer, shard_seconds=c.shard_seconds,
      unit_queries=c.unit_queries, look=functools.partial(look_at_first, kind, shards, c),
    )  # fmt: skip
  work = scorer.work.of_all()
  say(f'score: {work.as_text()}')
  by_kind = processes.first_alone('audit', lambda: finish(run)) or {}
  results = {'pairs': sum(s['pairs'] for s in by_kind.values()), 'ms_per_pair': work.ms_per_pair}
  results |= prompt_costs(run) if c.method else {}
  results |= {'quantised': {'format': c.quantize, **gate}} if c.quantize else {}
  return results | {'padding': work.padding, 'idle': work.idle_share}


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
  read, method = systems.trained_stages(config, 'teacher'), config.score.method
  usable = prompting.stages(prompting.plan(config, 'score', method)) if method else read
  return [stage for stage in read if stage in usable]


def maker(run, teacher) -> dict:
  """What a score depends on apart from the pair: in every shard's note."""
  c = run.config.score
  plan = prompting.plan(run.config, 'score', c.method).to_dict() if c.method else {}
  return {
    **roles.made_by(run, 'teacher', teacher, trained_by(run.config)),
    'scorer': run.config.teacher.scorer,
    **({'prompts': manifest.digest(plan)} if plan else {}),
    **({'quantize': c.quantize} if c.quantize else {}),
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
  first = (shard for shard in shards.found() if shard.span.start < filling.FIRST)
  rows = itertools.chain.from_iterable(shard.read().to_pylist() for shard in first)
  queries = [
    [row['score'] for row in of_query]
    for _, of_query in itertools.groupby(rows, key=lambda row: row['query_id'])
  ]
  scores = np.array(list(itertools.chain.from_iterable(queries)), np.float32)
  if len(scores) and np.isfinite(scores).all():  # the audit says which are not
    found = score_statistics.describe(scores, list(map(len, queries)))
    score_statistics.refuse_collapsed(
      f'first {amount(len(queries), "query", "queries")} of {kind}', found, c
    )


def kept(run) -> str:
  """How many queries have scores on disk."""
  kinds = [(kind, len(prepare.records(run, kind))) for kind in reads(run.config)]
  done = sum(open_shards(run, kind, count).kept() for kind, count in kinds)
  said = part_of(done, sum(count for _, count in kinds), 'query', 'queries', 'is', 'are')
  return f'{said} scored' if done else ''


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
  shards = (open_shards(run, kind, len(prepare.records(run, kind))) for kind in kinds)
  scored = itertools.chain.from_iterable(each.rankings() for each in shards)
  runs.write_run(run.folder('score') / 'teacher.run.gz', scored, 'teacher')


SETTINGS = {
  'batch_rows': Key(
    64, at_least(1), 'Rows of teacher.row_len tokens per batch.', affects_results=False,
  ),  # as the mesh: which documents share a batch is seen in a score's last bits alone
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
    'batch is not full, so fewer queries take longer. 0: as many as fill '
    f'{filling.UNIT_BATCHES} batches.', affects_results=False,
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
  is_reusable=quantise_gate.is_alone, scores_records=True, paper_rows=46_814_775,
)  # fmt: skip
