"""Reads the four sources, checks every row, and writes them as ArrayRecord for the other stages."""

import itertools

from disranker_jax import processes
from disranker_jax.data import builders, sources
from disranker_jax.data.records import BadRows
from disranker_jax.errors import UserError
from disranker_jax.progress import say

# Which stages read which records; a config without those stages need not name a source for them.
READERS = {
  'clicks': ('cpt',),
  'judgements': ('sft', 'finetune', 'distill'),
  'candidates': ('score', 'distill'),
  'test': ('evaluate',),
}


def kinds(config) -> list[str]:
  """The kinds of records that the config's stages read."""
  return [k for k, readers in READERS.items() if set(readers) & set(config.stages)]


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
    records = itertools.islice(records, data.limit[kind] or None)
    rows = builders.write(kind, records, folder)
    results[kind] = {'rows': rows, 'fingerprint': builders.fingerprint(folder)}
    if bad_rows.quarantined:
      results[kind]['quarantined'] = bad_rows.quarantined
      say(f'prepare: {kind}: {bad_rows.quarantined} bad rows set aside in {quarantine}')
    say(f'prepare: {kind}: {rows} {"clicks" if kind == "clicks" else "queries"} from {data[kind]}')
  return results


def records(run, kind: str):
  """The prepared records of a kind, by index."""
  return builders.open(kind, run.folder('prepare') / kind)
