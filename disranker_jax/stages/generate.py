"""The decoder writes queries from documents; the first stage finds candidates for them.

For a collection without a query log: InPars (arXiv:2202.05144), Promptagator (arXiv:2209.11755) and
GPL (arXiv:2112.07577) train rankers on such queries. What is written is stored about once a minute,
so a restart writes what is missing. The filters and the first stage then run over all of it.
"""

import math
from collections.abc import Iterator, Sequence

import pyarrow as pa

from disranker_jax import escaping
from disranker_jax.config.settings import Key, at_least, between, one_of, template, text
from disranker_jax.data import sources, store
from disranker_jax.data.query_filters import Filters, first_sentence, tidy
from disranker_jax.data.records import Document, Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.models.load import TextModel
from disranker_jax.models.writing import Texts
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.pipeline.stage import Run, Stage, Use, Writing
from disranker_jax.progress import amount, part_of, say
from disranker_jax.rankers import filling
from disranker_jax.rankers import shards as shards_of
from disranker_jax.rankers.shards import Shards
from disranker_jax.stages import documents, generated_groups, prepare, roles, writer
from disranker_jax.stages.generated_groups import grouped, labelled
from disranker_jax.stages.teacher import check_template

FEW = 0.25  # of the texts: if fewer are kept, the prompt probably does not suit the documents
SAID = 5  # kept queries that are printed
SAMPLE = 64  # prompts of which the longest stands for all in the estimate
FORMAT = shards_of.Format(
  pa.schema([
    ('doc_id', pa.string()), ('sample', pa.int32()), ('text', pa.string()), ('ended', pa.bool_()),
  ]),
  lambda item: [(item[0].doc_id, i, *one) for i, one in enumerate(item[1])],
  'documents', 'texts', 'generate',
)  # fmt: skip


def execute(run: Run) -> dict:
  c, every = run.config.generate, documents.read(run.config)
  docs = documents.chosen(run.config, every)
  model = writer.open_writer(run.config)
  shards = open_shards(run, len(docs), maker(run, model, docs))
  if missing := filling.missing('generate', shards):
    write_missing(run, model, docs, shards, missing)
  say(f'generate: {amount(len(docs) * c.samples, "text")} from {amount(len(docs), "document")}')
  return processes.first_alone('filters', lambda: finish(run, every, docs)) or {}


def open_shards(run, count: int, made: dict | None = None) -> Shards:
  return Shards(run.folder('generate') / 'shards', count, made, FORMAT)


def maker(run, model: TextModel, docs: Sequence[Document]) -> dict:
  """What a text depends on apart from its document: in every shard's note."""
  return {
    **roles.made_by(run, 'teacher', model, writer.trained_by(run.config)),
    'writer': manifest.digest(manifest.settings_of(run.config, writer.read_keys(run.config))),
    'prompt': roles.digest(model.settings.template),
    'documents': manifest.digest([(doc.doc_id, doc.title, doc.summary) for doc in docs]),
    'seed': run.config.seed,
    **{name: run.config.generate[name] for name in WRITING},
  }


def write_missing(
  run: Run, model: TextModel, docs: Sequence[Document], shards: Shards, missing: Sequence[range]
) -> None:
  """Writes the texts of the documents that are in no shard."""
  c = run.config.generate
  write = writer.QueryWriter(
    model, writer.variables(run, model), run.mesh, c, run.config.seed, run.config.watchdog_s
  )
  units = shards_of.units(missing, c.batch_rows)
  found = ((unit, (doc, texts), len(texts)) for unit, doc, texts in write(docs, units))
  filling.store('generate', shards, units, found, 'texts', c.shard_seconds)
  say(f'generate: {write.tokens / max(write.seconds, 1e-9):,.0f} tokens/s')


def finish(run: Run, every: Sequence[Document], docs: Sequence[Document]) -> dict:
  """Filters the texts, finds candidates, and writes them as prepared records.

  Raises: UserError if no query is left.
  """
  c, folder = run.config.generate, run.folder('generate')
  filters = Filters(test_queries(run), c.max_words)
  found = list(filtered(run, filters, docs))
  groups = list(grouped(run, filters, every, found))
  counts = filters.by_reason()
  texts = len(docs) * c.samples
  lost = ', '.join(f'{count:,} {why}' for why, count in counts.items())
  kept_are = part_of(len(groups), texts, 'query', 'queries', 'is', 'are')
  say('; '.join(filter(None, (f'generate: {kept_are} kept', lost))))
  write_samples(run, docs, found, filters.later)
  if not groups:
    raise UserError(
      f'{documents.address(run.config)}: none of the '
      f'{amount(texts, "query that was", "queries that were")} written is left ({lost}); read '
      f'{folder / "samples.md"}, then change config.generate.template, examples, model or ends '
      "('length' keeps queries that are cut after max_new tokens), or set found_within=0 to keep "
      'queries whose page BM25 does not find'
    )
  said = min(SAID, len(groups))
  for i in range(said):
    say(f'  {escaping.line(groups[i * len(groups) // said].query)}')
  if len(groups) < FEW * texts:
    say(
      f'generate: few queries are kept; read {folder / "samples.md"}, then change config.generate.'
      'template'
    )
  lines = (f'{group.query_id}\t{group.query}\n' for group in groups)
  (folder / 'queries.tsv').write_text(''.join(lines), encoding='utf-8')
  count = store.write('candidates', groups, folder / 'candidates')
  print_of = store.fingerprint(folder / 'candidates')
  return {
    'documents': len(docs),
    'texts': texts,
    'left_out': counts,
    'filtered_by': filtered_by(run),
    prepare.GENERATED: {'rows': count, 'fingerprint': print_of},
  }


def test_queries(run: Run) -> list[str]:
  """The texts of the test queries, which must not be learned."""
  return [group.query for group in prepare.records(run, 'test')] if has_test(run.config) else []


def has_test(config) -> bool:
  """Whether a stage of the run reads a test."""
  return 'test' in prepare.kinds(config)


def filtered_by(run: Run) -> dict:
  """What `finish` depends on beside the documents and their texts."""
  prepared = (manifest.read(run.folder('prepare')) or {}).get('results', {})
  tests = prepared.get('test', {}).get('queries') if has_test(run.config) else None
  return filtering(run.config) | {'tests': tests}


def filtering(config) -> dict:
  """Which settings decide what is kept of the texts, and with which documents."""
  names = {'names': True} if generated_groups.are_names(config) else {}
  return {name: config.generate[name] for name in FILTERING} | names


def filtered(run: Run, filters: Filters, docs) -> Iterator[tuple[Document, int, str, str]]:
  """(document, number of the sample, query, why it is left out) of all texts, after an audit."""
  samples = run.config.generate.samples
  before = run.config.generate.template.partition('{query}')[0]
  for shard, table in open_shards(run, len(docs)).whole():
    expected = [(docs[i].doc_id, sample) for i in shard.span for sample in range(samples)]
    shards_of.audit_keys(shard, table, expected)
    owners = (docs[i] for i in shard.span for _ in range(samples))
    texts, ended = (table.column(name).to_pylist() for name in ('text', 'ended'))
    numbers = table.column('sample').to_pylist()
    for doc, number, each, is_whole in zip(owners, numbers, texts, ended, strict=True):
      query, is_whole = tidy(each, is_whole, before)
      if (ends := run.config.generate.ends) != 'line':
        query, is_whole = first_sentence(query, is_whole)
        is_whole |= ends == 'length'
      yield doc, number, query, filters.reason(doc, query, is_whole)


def write_samples(run: Run, docs, found, later: dict[str, str]) -> None:
  """samples.md: what was written from some documents, and what became of it."""
  step = max(1, len(docs) // max(run.config.generate.shown, 1))
  shown = {doc.doc_id for doc in docs[::step][: run.config.generate.shown]}
  lines, last = ['# Queries that the model wrote', ''], None
  for doc, number, query, why in found:
    if doc.doc_id not in shown:
      continue
    if doc is not last:
      lines.append(f'- {escaping.code(doc.title)}: {escaping.code(doc.summary[:200])}')
    last = doc
    left = why or later.get(f'{doc.doc_id}#{number}', '')
    lines.append(f'  - {escaping.code(query)}' + (f' (left out: {left})' if left else ''))
  (run.folder('generate') / 'samples.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')


class Expected(Sequence[Group]):
  """As many queries as generation can give, with documents as long, for estimates before it."""

  def __init__(self, run: Run):
    config = run.config
    self._docs = documents.read(config)
    self._depth = config.generate.depth
    self._count = len(documents.chosen(config, self._docs)) * config.generate.samples

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, i: int) -> Group:
    picks = (self._docs[(i + k) % len(self._docs)] for k in range(self._depth))
    docs = tuple(labelled(doc, k == 0, k + 1, 0.0) for k, doc in enumerate(picks))
    return Group(f'{i}', docs[0].title or docs[0].summary[:60], docs)


def writes(run: Run, model: TextModel) -> tuple[Writing, str]:
  """(batches of texts, what the stage does), for the estimate."""
  c, docs = run.config.generate, documents.chosen(run.config, documents.read(run.config))
  done = open_shards(run, len(docs)).kept()
  step = max(1, len(docs) // SAMPLE)
  longest = max(docs, key=lambda doc: len(doc.title) + len(doc.summary))
  prompts = writer.prompts(model, [longest, *docs[::step]])
  tokens, shared = max(map(len, prompts)), len(writer.beginning(prompts))
  texts = Texts(c.batch_rows, c.samples, tokens, c.max_new, shared)
  there = f', {done * c.samples:,} are there' if done else ''
  said = f'{amount(len(docs) * c.samples, "query", "queries")}{there}'
  return [(texts, math.ceil((len(docs) - done) / c.batch_rows))], said


def kept(run: Run) -> str:
  """From how many documents there are texts on disk."""
  docs = documents.chosen(run.config, documents.read(run.config))
  done = open_shards(run, len(docs)).kept()
  said = part_of(done, len(docs), 'document', 'documents', 'has its', 'have their')
  return f'{said} texts' if done else ''


def take(run: Run, donors: Sequence[Run]) -> None:
  """Links the texts that other runs wrote in the same way from the same documents."""
  donors = [other for other in donors if (other.folder('generate') / 'shards').is_dir()]
  if not donors:
    return
  docs = documents.chosen(run.config, documents.read(run.config))
  shards = open_shards(run, len(docs), maker(run, writer.open_writer(run.config), docs))
  for other in donors:
    if count := shards.take(open_shards(other, len(docs))):
      said = amount(count, 'document')
      say(f'generate: the texts from {said} are those of {other.workdir}, taken from there')


def is_complete(run: Run) -> bool:
  """Whether the finished stage filtered with the settings and the test queries of now."""
  results = (manifest.read(run.folder('generate')) or {}).get('results', {})
  return results.get('filtered_by') == filtered_by(run)


def uses(config) -> tuple[Use, ...]:
  rows = config.generate.batch_rows * config.generate.samples
  opened = lambda: writer.open_writer(config)  # noqa: E731
  largest = lambda model: writer.texts_of(config)[1]  # noqa: E731
  keys = 'generate.batch_rows', 'generate.samples'
  return (
    Use('writer', 'teacher', opened, rows, (prepare.GENERATED,), texts=largest, writes=writes,
        made_of=keys),
  )  # fmt: skip


# Settings of `finish` alone: after a change the stage goes on with the texts that it has. The same
# holds for the test queries, so the test is none of its inputs.
FILTERING = ('ends', 'max_words', 'depth', 'found_within')
WRITING = ('max_len', 'max_new', 'samples', 'temperature', 'top_p', 'batch_rows')
SETTINGS = {
  'template': Key(
    '{title}: {summary}\nSearch query: {query}', template(),
    'The prompt, which ends in the query that is to be written; an instruction may stand in it.',
  ),
  'examples': Key(
    '', prepare.ADDRESS,
    "Rows with query, title and summary, such as 'jsonl:examples.jsonl': the prompt begins with "
    "the first ones. '': three built-in ones, of a garden, a shop and a study.",
  ),
  'shots': Key(3, at_least(0), 'Examples in the prompt; 0: none.'),
  'model': Key(
    '', text('a model'), "A decoder that writes in place of the teacher's model; '': the teacher's."
  ),
  'max_len': Key(384, at_least(8), 'Tokens of the prompt; longer documents are cut.'),
  'max_new': Key(
    32, at_least(1),
    "Tokens of a query; one that does not end in these is left out, unless ends='length'.",
  ),
  'ends': Key(
    'line', one_of('line', 'sentence', 'length'),
    "A query ends with its line; with its first 'sentence', for a model that goes on writing; or, "
    "'length', as with 'sentence', and also where it is cut after max_new tokens.",
    affects_results=False,
  ),
  'max_words': Key(
    20, at_least(1), 'Words of a query; longer ones are left out.', affects_results=False
  ),
  'documents': Key(
    0, at_least(0), 'Queries are written from so many documents, chosen by a hash; 0: from all.'
  ),
  'samples': Key(1, at_least(1), 'Queries that are written from each document.'),
  'temperature': Key(0.7, at_least(0), 'Of sampling; 0: always the likeliest token.'),
  'top_p': Key(0.9, between(0, 1), 'Tokens are drawn from the likeliest with so much probability.'),
  'batch_rows': Key(16, at_least(1), 'Documents whose queries are written together.'),
  'depth': Key(
    20, at_least(2), 'Documents that BM25 finds per query, its own one included.',
    affects_results=False,
  ),
  'found_within': Key(
    20, at_least(0),
    'A query is kept only if BM25 ranks its own document so high or better; 0: every query.',
    affects_results=False,
  ),
  'shown': Key(
    40, at_least(0), 'Documents whose queries are listed in samples.md.', affects_results=False
  ),
  'shard_seconds': Key(
    60.0, at_least(0), 'What is written is stored so often, each time as one shard.',
    affects_results=False,
  ),
}  # fmt: skip


def check(config) -> None:
  documents.address(config)
  why = 'generate writes the query from the document'
  check_template('generate.template', config.generate.template, why)
  c = config.generate
  if c.samples > 1 and not c.temperature:
    raise UserError(
      f'config.generate.samples={c.samples}: are equal with config.generate.temperature=0; raise it'
    )
  if config.teacher.bidirectional and not c.model:
    raise UserError(
      'config.teacher.bidirectional: such a model writes no text; name a causal one in '
      'config.generate.model, or set bidirectional=False'
    )
  if c.examples and c.shots:
    sources.open(c.examples, 'examples')
  say_other_prompt(config)
  if config.data.teachers:
    raise UserError(
      "config.data.teachers: has no scores of generated queries; take 'generate' out of "
      "config.stages, or set teachers=() and list 'score'"
    )


def say_other_prompt(config) -> None:
  """Says it if cpt teaches the writer to answer another prompt than it gets."""
  c = config.generate
  changes = [
    *(['the template of config.teacher.template'] if c.template != config.teacher.template else []),
    *(['shots=0'] if c.shots else []),
  ]
  if changes and writer.trained_by(config):
    say(
      'generate: cpt learns to write a query after config.teacher.template alone, and '
      f'config.generate asks for it by another prompt; give it {" and ".join(changes)}'
    )


def check_records(run: Run) -> None:
  """Raises: UserError before the first model is run, for documents that cannot be used."""
  documents.read(run.config)


def addresses(config) -> list[tuple[str, str, str]]:
  """See Stage.addresses."""
  c = config.generate
  examples = [('generate.examples', 'clicks', c.examples)] if c.examples and c.shots else []
  return documents.addresses(config) + examples


def outside(config, workdir) -> dict[str, str]:
  """The documents, the examples, and a model of its own."""
  addresses, c = {'data.documents': documents.address(config)}, config.generate
  if c.examples and c.shots:
    addresses['generate.examples'] = c.examples
  found = {key: manifest.digest(sources.fingerprint(a)) for key, a in addresses.items()}
  return found | (inputs.of_model('generate.model', c.model) if c.model else {})


STAGE = Stage(
  'generate', 'the decoder writes queries from documents', execute, SETTINGS, check=check,
  role='teacher', keys=writer.read_keys, reads_stages=('prepare', 'cpt'), uses=uses,
  check_records=check_records, outside=outside, addresses=addresses, expected=Expected,
  head=lambda config: 'lm', kept=kept, is_complete=is_complete, parts='texts', take=take,
  optional=True, texts=writer.texts_of,
  paper_rows=10_468_974,  # the queries of its log
)  # fmt: skip
