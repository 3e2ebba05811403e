"""The work of `disranker llm-rank`: queries in units, which are on disk when they are done."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax

from disranker_jax import locks, outputs
from disranker_jax.commands import unfinished
from disranker_jax.data import sources, store
from disranker_jax.data.records import BadRows, Group, listed
from disranker_jax.data.tables import Tables
from disranker_jax.devices import processes, sharding
from disranker_jax.errors import UserError
from disranker_jax.evaluation import runs
from disranker_jax.models import weights
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.progress import amount, say
from disranker_jax.rankers import filling
from disranker_jax.rankers.llm import costs, methods
from disranker_jax.rankers.llm.ranker import LLMRanker, Plan, open_for
from disranker_jax.rankers.shards import Shards

VERSION = 1  # of the unfinished work
BATCH_TOKENS = {'cpu': 4096}  # of a device; ELSEWHERE on others
ELSEWHERE = 16_384
SHARD_SECONDS = 60.0  # finished queries are written so often


def rank(args: argparse.Namespace) -> None:
  """Writes the run and its costs. Raises: UserError, Stopped, KeyboardInterrupt."""
  plan = plan_of(args)
  opening = {'precision': args.precision, 'param_dtype': args.param_dtype}
  out = outputs.target(args.out)
  outputs.target(costs_file(args.out), flag=f'--out {args.out}: the file of its costs,')
  args.kind = args.kind or kind_of(args.source)
  open_for(plan.fitted(args.depth or 2), args.model, **opening)  # before the data are read
  work = Work(args, plan, out)
  with contextlib.ExitStack() as held:
    lock = locks.beside(out)
    processes.first_alone('lock', lambda: held.enter_context(lock))
    try:
      processes.first_alone('begin', work.begin)
      rank_on(args, plan, work, opening)
    except UserError:
      if processes.is_first():
        work.leave()
      raise
    processes.first_alone('end', lambda: unfinished.remove(work.folder))


def rank_on(args: argparse.Namespace, plan: Plan, work: 'Work', opening: dict) -> None:
  """Ranks what is missing, and writes the run when all is there."""
  groups = store.open(args.kind, work.data)
  plan = plan.fitted(max((len(group.docs) for group in groups), default=0))
  model, prompt = open_for(plan, args.model, **opening)
  say(
    f'llm-rank: {plan.method.title}, contract {plan.contract.name}; a prompt has at most '
    f'{prompt.docs} documents and {prompt.max_len:,} tokens'
  )
  shards = Shards(work.folder / 'shards', len(groups), {'precision': model.network.precision})
  # Each of several processes ranks by itself, on its own devices.
  mesh = sharding.make_mesh({'data': -1, 'fsdp': args.shard, 'model': 1}, jax.local_devices())
  tokens = args.batch_tokens or BATCH_TOKENS.get(jax.default_backend(), ELSEWHERE)
  rows = max(1, tokens // plan.row_len(prompt)) * mesh.size
  ranker = LLMRanker(plan, model.network, model.pretrained(0, mesh), prompt, mesh, rows)
  filling.score_missing('llm-rank', groups, shards, ranker, shard_seconds=SHARD_SECONDS)
  processes.first_alone('run', lambda: finish(args, plan, work, groups, shards, ranker))


def kind_of(source: str) -> str:
  """The kind of records to rank: of a collection without qrels all queries are candidates.

  Of one with qrels it says how to have the others.
  """
  opened = sources.open(source)
  if not isinstance(opened, Tables):
    return 'test'
  if not opened.open().is_judged:
    return 'candidates'
  say(f'llm-rank: ranks the judged queries of {source}; --kind candidates ranks all')
  return 'test'


def plan_of(args: argparse.Namespace) -> Plan:
  """What the flags ask for. Raises: UserError."""
  method = methods.find(args.method)
  changes = {'instruction': args.instruction} if args.instruction is not None else {}
  changes |= {'chat': True} if args.chat else {}
  contract = methods.contract_of(method, args.contract, **changes)
  if args.instruction is not None and not contract.reads_instruction:
    raise UserError(f'--instruction: contract {contract.name!r} has no {{instruction}}')
  window = args.window or methods.window_of(contract)
  options = methods.Options(
    window, args.stride or max(1, window // 2), args.passes, args.top, args.children
  )
  methods.check_size(method, options, contract)
  return Plan(method, contract, options, args.query_tokens, args.doc_tokens)


class Work:
  """The data and the finished queries of a call, on disk beside the output until all are done."""

  def __init__(self, args: argparse.Namespace, plan: Plan, out: Path):
    self.out, self.folder = out, unfinished.folder_of(out)
    self.data = self.folder / 'data'
    self._args, self._plan = args, plan

  def begin(self) -> None:
    """Continues what there is, or starts again; prepares the data. Raises: UserError."""
    digest = self._digest(self._plan)
    if unfinished.note(self.folder).get('digest') != digest:
      if self.folder.exists():
        say(
          f'llm-rank: an input or a flag has changed since {self.folder} was begun, or its '
          'note.json is broken; starts again'
        )
        unfinished.remove(self.folder)
      self.folder.mkdir()
      unfinished.write_note(self.folder, digest=digest)
    if not self.data.exists():
      self._prepare()

  def _digest(self, plan: Plan) -> str:
    """Identifies the call: the contents of its inputs, and all flags that change a score."""
    args = self._args
    model = manifest.files(inputs.model_files(weights.find(args.model)))
    settings = [args.kind, args.depth, args.precision, args.param_dtype, args.batch_tokens]
    value = [model, sources.fingerprint(args.source), plan.to_dict(), settings, VERSION]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

  def _prepare(self) -> None:
    """Writes the queries with the documents to rank. Raises: UserError without any."""
    args, bad_rows = self._args, BadRows()
    found = sources.read(args.source, args.kind, depth=args.depth, bad_rows=bad_rows)
    count = store.write(args.kind, map(to_rank, found), self.data)
    for note in listed(bad_rows.notes):
      say(f'{args.source}: {note}')
    say(f'llm-rank: {amount(count, "query", "queries")} of {args.source}')

  def leave(self) -> None:
    """Removes the folder if no query is finished."""
    if not any(self.folder.glob('shards/*')):
      unfinished.remove(self.folder)


def to_rank(group: Group) -> Group:
  """The query with the documents that are to be ranked, as the stage evaluate has them."""
  return Group(group.query_id, group.query, tuple(doc for doc in group.docs if doc.in_pool))


def finish(
  args: argparse.Namespace,
  plan: Plan,
  work: Work,
  groups: Sequence[Group],
  shards: Shards,
  ranker: LLMRanker,
) -> None:
  """Writes the run, and OUT.json. Raises: UserError if a score is missing."""

  def pairs_of(i: int) -> tuple[str, list[str]]:
    return groups[i].query_id, [doc.doc_id for doc in groups[i].docs]

  shards.audit(pairs_of)
  counts = shards.counts()
  partial = work.folder / f'run{args.out.suffix}'
  runs.write_run(partial, shards.rankings(), plan.method.name)
  partial.replace(work.out)
  found = {'method': plan.method.name, 'contract': plan.contract.name, 'model': str(args.model)}
  found |= {'scores': plan.method.gives} | costs.summary(counts)
  if ranker.queries == len(groups):  # else another call has ranked some of them
    found['ms_per_query'] = ranker.ms_per_query
  names = (group.query_id for group in groups)
  found |= {'plan': plan.to_dict(), 'per_query': dict(zip(names, counts, strict=True))}
  side = costs_file(args.out)
  manifest.write_json(side.resolve(), found)
  say(
    f'{args.out}: {amount(len(groups), "query", "queries")}; {costs.as_text(found)}; {side} has '
    'more'
  )


def costs_file(out: Path) -> Path:
  """OUT.json, without the .gz of the run."""
  stem = out.name.removesuffix('.gz')
  return out.with_name(f'{stem}.json')
