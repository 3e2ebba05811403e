"""Reads the four sources, checks every row, and writes them as ArrayRecord for the other stages."""

import hashlib
import itertools
import re

from disranker_jax import processes
from disranker_jax.data import builders, sources
from disranker_jax.data.records import BadRows
from disranker_jax.errors import UserError
from disranker_jax.progress import say

# Which stages read which records; a config without those stages need not name a source for them.
READERS = {
  'clicks': ('cpt',),
  'judgements': ('sft', 'score', 'finetune', 'distill'),
  'candidates': ('score', 'distill'),
  'test': ('evaluate',),
}


def kinds(config, stages=None) -> list[str]:
  """The kinds of records that some stages (None: all of the config's) read."""
  readers = set(config.stages if stages is None else stages)
  # The teacher's scores of judged pairs are for distillation's hard-label term alone.
  labels = readers if config.score.judgements else readers - {'score', 'distill'}
  return [k for k, r in READERS.items() if (labels if k == 'judgements' else readers) & set(r)]


def run(run) -> dict:
  """Writes data/<kind> and returns rows and a fingerprint for each; one process does it."""
  return processes.first_alone('prepare', lambda: prepare(run)) or {}


def prepare(run) -> dict:
  results = {}
  data = run.config.data
  for kind in kinds(run.config):
    if not data[kind]:
      readers = ', '.join(s for s in READERS[kind] if s in run.config.stages)
      raise UserError(f'config.data.{kind}: is empty, but read by {readers}; give an address')
    folder = run.folder('prepare') / kind
    quarantine = run.folder('prepare') / f'{kind}.quarantine.jsonl'
    bad_rows = BadRows(data.on_bad_row, quarantine)
    records = sources.read(data[kind], kind, depth=data.depth, bad_rows=bad_rows)
    if data.holdout:
      records = (r for r in records if is_held_out(r, data) == (kind == 'test'))
    records = itertools.islice(records, data.limit[kind] or None)
    rows = builders.write(kind, records, folder)
    results[kind] = {'rows': rows, 'fingerprint': builders.fingerprint(folder)}
    if bad_rows.quarantined:
      results[kind]['quarantined'] = bad_rows.quarantined
      say(f'prepare: {kind}: {bad_rows.quarantined} bad rows set aside in {quarantine}')
    say(f'prepare: {kind}: {rows} {"clicks" if kind == "clicks" else "queries"} from {data[kind]}')
  return results


def is_held_out(record, data) -> bool:
  """Whether a query is for the test alone, by its text or by what its id has in common."""
  key = record.query.strip().casefold()
  if data.holdout_by:
    if not hasattr(record, 'query_id'):
      raise UserError('config.data.holdout_by: clicks have no ids; leave it empty, or cpt out')
    found = re.search(data.holdout_by, record.query_id)
    key = found[0] if found else record.query_id
  place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
  return (place + data.fold * data.holdout) % 1 < data.holdout


def records(run, kind: str):
  """The prepared records of a kind, by index."""
  return builders.open(kind, run.folder('prepare') / kind)
