"""Reads the four sources, checks every row, and writes them as ArrayRecord for the other stages."""

import json

from disranker_jax.data import clicks, preparing, sources, store
from disranker_jax.data.holdout import Holdout
from disranker_jax.data.negatives import Negatives
from disranker_jax.data.teacher_scores import Teachers
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.progress import say

# Which stages read which records; a config without those stages need not name a source for them.
READERS = {
  'clicks': ('cpt',),
  'judgements': ('sft', 'score', 'student_sft', 'distill'),
  'candidates': ('score', 'distill'),
  'test': ('evaluate',),
}


def kinds(config, stages=None) -> list[str]:
  """The kinds of records that some stages (None: all of the config's) read."""
  readers = set(config.stages if stages is None else stages)
  labels = set(readers)
  if not config.score.judgements:
    labels -= {'score', 'distill'}  # scores of judged pairs are for the hard-label term alone
  elif config.data.teachers and not config.distill.hard_label_weight:
    labels -= {'distill'}  # it has all that it needs in the candidates
  return [k for k, r in READERS.items() if (labels if k == 'judgements' else readers) & set(r)]


def run(run) -> dict:
  """Writes data/<kind> and returns rows and a fingerprint for each; one process does it."""
  return processes.first_alone('prepare', lambda: prepare(run)) or {}


def prepare(run) -> dict:
  results = {}
  for kind in kinds(run.config):
    job = job_of(run, kind)
    done = preparing.prepare(job)
    results[kind] = {'rows': done.records, 'fingerprint': store.fingerprint(job.folder)}
    if done.facts:
      results[kind]['teachers'] = done.facts
    if done.quarantined:
      results[kind]['quarantined'] = done.quarantined
      say(f'prepare: {kind}: {done.quarantined} bad rows set aside in {job.quarantine}')
    what = 'clicks' if kind == 'clicks' else 'queries'
    say(f'prepare: {kind}: {done.records} {what} from {job.address}')
  return results


def address(config, kind: str) -> str:
  """Where the records of a kind are read. Raises: UserError if the config does not say."""
  source = kind
  if kind == 'clicks' and clicks.least(config.data.clicks):
    source = 'judgements'
  if not config.data[source]:
    readers = ', '.join(s for s in READERS[kind] if s in config.stages)
    raise UserError(f'config.data.{source}: is empty, but read by {readers}; give an address')
  return config.data[source]


def job_of(run, kind: str) -> preparing.Job:
  """What is prepared for a kind, as the config asks."""
  data, folder = run.config.data, run.folder('prepare') / kind
  depth, limit, read_as, changes, asked = data.depth, data.limit[kind], '', [], []
  if kind == 'clicks' and (least := clicks.least(data.clicks)):
    # The limit is on clicks and not on the queries that they are made of.
    changes.append(clicks.Relevant(least, limit))
    asked.append(repr(changes[-1]))
    limit, read_as = 0, 'judgements'
  if data.teachers and kind in ('candidates', 'judgements'):
    changes.append(Teachers(data.teachers, drop=kind == 'candidates'))
    asked += map(sources.fingerprint, data.teachers)
  if data.negatives.count and kind == 'judgements':
    changes.append(Negatives(**data.negatives, seed=run.config.seed))
    asked.append(repr(changes[-1]))
    depth, read_as = max(depth, data.negatives.max_rank), sources.POOLED
  keep = None
  if data.holdout:
    keep = Holdout(data.holdout, data.fold, data.holdout_by, test=kind == 'test')
    asked.append(repr(keep))
  return preparing.Job(
    address(run.config, kind), kind, folder, folder.with_name(f'{kind}.quarantine.jsonl'),
    depth=depth, on_bad_row=data.on_bad_row, limit=limit, changes=tuple(changes),
    asked=json.dumps(asked), read_as=read_as, keep=keep,
  )  # fmt: skip


def records(run, kind: str):
  """The prepared records of a kind, by index."""
  return store.open(kind, run.folder('prepare') / kind)
