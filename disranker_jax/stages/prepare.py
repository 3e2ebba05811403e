"""Reads the four sources, checks every row, and writes them as ArrayRecord for the other stages."""

import dataclasses
from pathlib import Path

from disranker_jax.config.settings import (
  Check,
  Key,
  Section,
  at_least,
  boolean,
  finite,
  list_of,
  one_of,
  regex,
  share,
)
from disranker_jax.data import clicks, preparation, preparing, sources, store, teacher_scores
from disranker_jax.data.holdout import Holdout, OutsideTest
from disranker_jax.data.negatives import Negatives
from disranker_jax.data.records import listed
from disranker_jax.data.source import DEPTH
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.pipeline import manifest, systems
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import amount, say
from disranker_jax.stages import earlier, overlapping, result_table

# Kinds of records that another stage makes: queries that `generate` writes, with the address of
# candidates that are only these, and what `retrieve` finds.
GENERATED, GENERATED_ADDRESS = 'generated', 'generated:'
RETRIEVED = 'retrieved'
MADE_BY = {GENERATED: 'generate', RETRIEVED: 'retrieve'}
JOINED = ('candidates', 'judgements')  # get the scores of other teachers


def kinds(config, stages=None) -> list[str]:
  """The kinds of records that some stages (None: all that the config lists) read.

  A config without those stages need not name a source for them.
  """
  names = config.stages if stages is None else stages
  read = {
    kind for s in systems.of(config).stages if s.name in names for kind in s.reads_records(config)
  }
  return [kind for kind in sources.KINDS if kind in read]


def every_kind(config) -> list[str]:
  """The kinds of records that a run has: those that are prepared, and those that stages make."""
  return kinds(config) + [kind for kind, stage in MADE_BY.items() if stage in config.stages]


def execute(run: Run) -> dict:
  """Writes data/<kind> in one process; returns the rows and a fingerprint of each kind.

  `results['overlap']` has what the other kinds share with the test, see overlapping.count, and
  `results['test']['queries']` a fingerprint of the texts of its queries.
  """
  return processes.first_alone('prepare', lambda: prepare(run)) or {}


def prepare(run) -> dict:
  results: dict[str, dict] = {}
  wanted = kinds(run.config)
  # Clicks follow the test's queries, see outside_test.
  last = 'clicks' if run.config.data.holdout_by else ''
  for kind in sorted(wanted, key=lambda kind: kind == last):
    job = job_of(run, kind)
    done = preparing.prepare(job)
    results[kind] = {'rows': done.records, 'fingerprint': store.fingerprint(job.folder)}
    if done.facts:
      results[kind]['teachers'] = done.facts
    if done.quarantined:
      results[kind]['quarantined'] = done.quarantined
      say(f'prepare: {kind}: {amount(done.quarantined, "bad row")} set aside in {job.quarantine}')
    if done.notes:
      results[kind]['notes'] = done.notes
      say(f'prepare: {kind}: {", ".join(listed(done.notes))}')
    what = 'clicks' if kind == 'clicks' else 'queries'
    count = done.described(what, f'config.data.limit.{kind}')
    say(f'prepare: {kind}: {count} from {job.address}')
  if 'test' in wanted:
    tests = records(run, 'test')
    results['test']['queries'] = manifest.digest(sorted({group.query for group in tests}))
    others = {kind: records(run, kind) for kind in wanted if kind != 'test'}
    others |= of_earlier_runs(run, results)
    results['overlap'] = overlapping.count(run.config, tests, others)
  return results


def of_earlier_runs(run, results: dict) -> dict:
  """{'clicks of runs/week1': records} of what the models of earlier runs have learned.

  Of runs further back only the labels, so that a long chain does not read all of its history; and
  no records that this run has too.
  """
  found = {}
  for before, is_named in earlier.lineage(run.config):
    done = (manifest.read(before.folder('prepare')) or {}).get('results', {})
    for kind in ('judgements', 'candidates', 'clicks') if is_named else ('judgements',):
      own, theirs = (r.get(kind, {}).get('fingerprint') for r in (results, done))
      if theirs and theirs != own:
        found[f'{kind} of {earlier.label(before)}'] = records(before, kind)
  return found


def take(run, donors) -> None:
  """Links the kinds that other runs prepared from the same source with the same settings."""
  for kind in kinds(run.config):
    if kind == 'clicks' and run.config.data.holdout_by:
      continue  # their job is known when the test is prepared
    job = job_of(run, kind)
    for other in donors:
      if preparing.take(
        job, dataclasses.replace(job, **preparation.places(other.folder('prepare') / kind))
      ):
        say(f'prepare: {kind}: the same as in {other.workdir}, taken from there')
        break


def kept(run) -> str:
  """Which kinds of records are prepared, wholly or in part."""
  folder = run.folder('prepare')
  done = [kind for kind in kinds(run.config) if (folder / kind / store.RESULT).exists()]
  begun = any(folder.glob('.*.partial/journal.json'))
  return ', '.join([*done, *(['a part of the next kind'] if begun else [])])


def is_reusable(run) -> bool:
  """Whether there are prepared records or the beginning of some: each kind knows its job."""
  folder = run.folder('prepare')
  begun = folder.glob('.*.partial/journal.json')
  return any(begun) or any(folder.glob(f'*/{store.RESULT}'))


def source_of(config, kind: str) -> str:
  """The key of config.data that has the address from which a kind of records is made."""
  source = kind
  if kind == 'clicks' and clicks.least(config.data.clicks):
    source = 'judgements'
  if source == 'judgements' and config.data.judgements == teacher_scores.ORDER_ADDRESS:
    source = 'candidates'
  return source


def derived(config, kind: str) -> dict:
  """How the records of a kind are derived from those of its source, for `preparation.job`."""
  data = config.data
  if kind == 'clicks':
    return {'least': clicks.least(data.clicks)}
  if kind != 'judgements':
    return {}
  drawn = Negatives(**data.negatives, seed=config.seed) if data.negatives.count else None
  return {'ordered': data.judgements == teacher_scores.ORDER_ADDRESS, 'negatives': drawn}


def address(config, kind: str) -> str:
  """The address of a kind's records. Raises: UserError if the config has none."""
  source = source_of(config, kind)
  if not config.data[source]:
    readers = ', '.join(s for s in config.stages if kind in kinds(config, [s]))
    raise UserError(f'config.data.{source}: is empty, but read by {readers}; give an address')
  return config.data[source]


def job_of(run, kind: str) -> preparation.Job:
  """The preparation of a kind that the config describes."""
  data, keep = run.config.data, None
  if data.holdout:
    keep = Holdout(data.holdout, data.fold, data.holdout_by, test=kind == 'test')
    if kind == 'clicks' and data.holdout_by and not clicks.least(data.clicks):
      keep = outside_test(run)
  return preparation.job(
    address(run.config, kind), kind, run.folder('prepare') / kind, **derived(run.config, kind),
    teachers=data.teachers if kind in JOINED else (), depth=data.depth, limit=data.limit[kind],
    on_bad_row=data.on_bad_row, keep=keep,
  )  # fmt: skip


def outside_test(run) -> OutsideTest:
  """Keeps clicks on the test's queries out: clicks have no ids for data.holdout_by.

  Raises: UserError if no stage reads the test.
  """
  if 'test' not in kinds(run.config):
    raise UserError(
      'config.data.holdout_by: clicks have no ids, so the test queries are found by their text, '
      f'but no listed stage reads them; list {result_table.of(run.config).stage}, or leave '
      'holdout_by empty'
    )
  return OutsideTest(records(run, 'test'))


def records(run, kind: str):
  """The prepared records of a kind, by index; those of MADE_BY are made by other stages."""
  return store.open('candidates' if kind in MADE_BY else kind, place(run, kind))


def place(run, kind: str) -> Path:
  """The folder of the records of a kind."""
  if kind in MADE_BY:
    return run.folder(MADE_BY[kind]) / 'candidates'
  return run.folder('prepare') / kind


def is_to_come(run, kind: str) -> bool:
  """Whether a stage has yet to make the records of a kind."""
  return kind in MADE_BY and not place(run, kind).exists()


def is_address(value: str) -> bool:
  if value.startswith('judgements:'):
    return clicks.ADDRESS.fullmatch(value) is not None
  others = ('', GENERATED_ADDRESS, teacher_scores.ORDER_ADDRESS)
  return value in others or sources.is_address(value)


ADDRESS = Check(f'an address, such as {sources.EXAMPLES}', is_address)
SETTINGS: Section = {
  'clicks': Key(
    'python_docs:', ADDRESS,
    "Clicks, read by cpt. Without a click log 'judgements:' takes the documents with a label of 1 "
    "or better, 'judgements:?least=3' of 3 or better.",
  ),
  'judgements': Key(
    'python_docs:', ADDRESS,
    "Labeled queries, from which rankers learn; 'teachers:' labels the candidates by the order "
    'that data.teachers give them.',
  ),
  'candidates': Key(
    'python_docs:', ADDRESS,
    "Unlabeled queries with documents, which the teacher scores; 'generated:': only those that the "
    'stage generate writes.',
  ),
  'documents': Key(
    '', ADDRESS,
    "Documents that generate writes queries from; '': those of the candidates' address.",
    affects_results=False,  # the stage that reads them has them among its inputs
  ),
  'test': Key('python_docs:', ADDRESS, 'Held-out labeled queries, of the result table.'),
  'teachers': Key(
    (), list_of(ADDRESS),
    "Addresses of other teachers' scores of the candidates; with them there is no score stage.",
  ),
  'negatives': {
    'count': Key(
      0, at_least(0),
      'First-stage documents without a label that are added per judged query, with label 0.',
    ),
    'min_rank': Key(1, at_least(1), 'They are drawn from the first-stage ranks from here on.'),
    'max_rank': Key(100, at_least(1), 'They are drawn from the first-stage ranks up to here.'),
    'filter_false_negatives': Key(
      False, boolean(),
      'Take only documents that data.teachers score at least `margin` below every positive one.',
    ),
    'margin': Key(0.0, finite(), 'See filter_false_negatives.'),
  },
  'depth': Key(
    0, at_least(0),
    'First-stage documents that are kept per query, by their rank; judgements keep all of theirs. '
    f'0: {DEPTH} of a run or BM25, all documents of rows.',
  ),
  'holdout': Key(
    0.0, share(below_one=True),
    'Where training and test share their queries: the share that is for the test alone, chosen by '
    'a hash of the query. 0: the sources are separate.',
  ),
  'fold': Key(0, at_least(0), '0, 1, 2, ...: holds out different queries.'),
  'holdout_by': Key(
    '', regex(empty=True),
    "Queries whose ids share what this expression matches stay together: '^[^-]+' for SESSION-3; "
    "'': each query by itself. Clicks follow the test queries by their text.",
  ),
  'allow_overlap': Key(
    0.05, share(),
    'The share of the test queries that judgements may have too, by text or by id and document. '
    'More is an error; 1: count only.', affects_results=False,
  ),
  'on_bad_row': Key(
    'error', one_of('error', 'quarantine'),
    "'quarantine' writes bad rows with their reasons to a file and continues; a bad row of "
    'documents is an error in any case.',
  ),
  'limit': {
    kind: Key(0, at_least(0), f'Keep the first so many {kind} (clicks or queries); 0: all.')
    for kind in sources.KINDS
  },
}  # fmt: skip


def check(config) -> None:
  """Raises: UserError for data settings that contradict each other."""
  for key in ('clicks', 'judgements', 'test', 'documents'):
    if config.data[key] == GENERATED_ADDRESS:
      raise UserError(f'config.data.{key}={GENERATED_ADDRESS!r}: only candidates can be generated')
  check_order(config)
  if config.data.candidates == GENERATED_ADDRESS and 'generate' not in config.stages:
    raise UserError(
      f'config.data.candidates={GENERATED_ADDRESS!r}: needs the stage generate; add it to '
      'config.stages, before score'
    )
  negatives = config.data.negatives
  if negatives.max_rank < negatives.min_rank:
    raise UserError(
      f'config.data.negatives.max_rank={negatives.max_rank}: must be at least '
      f'config.data.negatives.min_rank={negatives.min_rank}'
    )
  if negatives.filter_false_negatives and not config.data.teachers:
    raise UserError(
      'config.data.negatives.filter_false_negatives: needs the scores of config.data.teachers'
    )


def check_order(config) -> None:
  """Raises: UserError for labels of other teachers' order that cannot be had."""
  order, data = teacher_scores.ORDER_ADDRESS, config.data
  for key in ('clicks', 'candidates', 'test', 'documents'):
    if data[key] == order:
      raise UserError(f'config.data.{key}={order!r}: only judgements can be an order of teachers')
  if data.judgements != order:
    return
  if not data.teachers:
    raise UserError(
      f'config.data.judgements={order!r}: labels the candidates by the order of '
      'config.data.teachers, which is empty; name a run'
    )
  if data.candidates in ('', GENERATED_ADDRESS):
    raise UserError(
      f'config.data.judgements={order!r}: labels the candidates of a source, and '
      f'config.data.candidates={data.candidates!r} has none; give an address'
    )
  if clicks.least(data.clicks) and 'clicks' in kinds(config):
    raise UserError(
      f'config.data.clicks={data.clicks!r}: is made of labels, and config.data.judgements='
      f'{order!r} has none of relevance; take cpt out of config.stages, or give clicks'
    )
  if data.negatives.count:
    raise UserError(
      f'config.data.negatives.count={data.negatives.count}: adds documents without a label, and '
      f'config.data.judgements={order!r} labels those that teachers score; set it to 0'
    )


def addresses(config) -> list[tuple[str, str, str]]:
  """See Stage.addresses."""
  found = [
    (
      f'data.{source_of(config, kind)}',
      preparation.read_as(kind, **derived(config, kind)),
      address(config, kind),
    )
    for kind in kinds(config)
  ]
  teachers = config.data.teachers if {*JOINED} & {*kinds(config)} else ()
  return found + [('data.teachers', sources.SCORES, each) for each in teachers]


def outside(config, workdir) -> dict[str, str]:
  """The sources, the scores of other teachers, and the data of earlier runs."""
  found = {
    f'data.{k}': manifest.digest(sources.fingerprint(address(config, k))) for k in kinds(config)
  }
  if config.data.teachers:
    prints = [sources.fingerprint(address) for address in config.data.teachers]
    found['data.teachers'] = manifest.digest(prints)
  if data := earlier.data_fingerprint(config, workdir, 'prepare', ('prepare',)):
    found[earlier.DATA] = data
  return found


STAGE = Stage(
  'prepare',
  'reads the sources',
  execute,
  SETTINGS,
  'data',
  check,
  kept=kept,
  is_reusable=is_reusable,
  take=take,
  outside=outside,
  addresses=addresses,
)
