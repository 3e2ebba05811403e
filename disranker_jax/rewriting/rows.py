"""The result table of query rewriting: a search engine gets the query, or a rewrite of it."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import PurePath

import numpy as np
from ml_collections import ConfigDict

from disranker_jax.config.settings import Key, Section, at_least, one_of
from disranker_jax.data import once, sources
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document, Group
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import metrics, rewrites
from disranker_jax.models.load import TextModel
from disranker_jax.models.writing import Texts
from disranker_jax.pipeline.stage import Run, Use, Writing
from disranker_jax.progress import amount, part_of, say
from disranker_jax.rewriting import baselines, engines, queries, rewards, start
from disranker_jax.rewriting.prompts import RewritePrompt
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.query_bm25 import QueryBM25
from disranker_jax.rewriting.rewriter import Rewriter, Rewritten, together
from disranker_jax.rewriting.sampling import Sampler
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.stages import collection_rows, evaluate, prepare, roles
from disranker_jax.stages.collection_rows import STAGE, per_query, with_reranker
from disranker_jax.stages.result_table import Ranking, Row, Table

# The stages that trained each rewriter, in order.
TRAINED = {
  'pretrained': (), 'cpt': ('cpt',), 'rewrite': ('cpt', 'rewrite'), 'best': ('cpt', 'rewrite'),
}  # fmt: skip
# Its mean gain is the mean reward `bm25` where all relevant documents count and no rewrite fails.
DEEP = f'ndcg@{rewards.DEPTH}'


def asked(run: Run, groups: Sequence[Group]) -> list[Query]:
  """The test queries, in the order of the groups."""
  known = {query.query_id: query for query in queries.test(run)}
  return [known[group.query_id] for group in groups]


def documents_of(run: Run) -> dict[str, Document]:
  """{doc_id: document} of the collection."""
  return {doc.doc_id: doc for doc in queries.collection(run.config)}


def index_of(config: ConfigDict, name: str) -> BM25 | QueryBM25:
  """The index of the collection by an engine of engines.ENGINES; rows of the table share it."""
  docs = queries.collection(config)
  key = lambda: [name, sources.fingerprint(queries.address(config))]  # noqa: E731
  return once.made('index', key, lambda: engines.ENGINES[name](docs))


def engine(run: Run) -> Callable[[Sequence[Query], Sequence[str]], metrics.Run]:
  """(queries, texts that are searched for them) -> what `search.engine` finds, by query."""
  c = run.config.search
  ids = [doc.doc_id for doc in queries.collection(run.config)]
  top = index_of(run.config, c.engine).top

  def search(tests: Sequence[Query], texts: Sequence[str]) -> metrics.Run:
    rankings = queries.found(top, ids, tests, texts, c.depth)
    return {query.query_id: ranking for query, ranking in zip(tests, rankings, strict=True)}

  return search


def original(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """The queries as they are."""
  tests, search = asked(run, groups), engine(run)
  begin = time.monotonic()
  ranking = search(tests, [query.text for query in tests])
  return ranking, {'ms_per_query': per_query(begin, len(groups))}


def rm3(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """Words of the documents that the query finds; BM25 as the product has it."""
  tests, docs, c = asked(run, groups), queries.collection(run.config), run.config.search
  index = index_of(run.config, 'bm25')
  begin = time.monotonic()
  weights = baselines.rm3(tests, index, docs)
  rankings = queries.found(index.top_weighted, [d.doc_id for d in docs], tests, weights, c.depth)
  spent = per_query(begin, len(groups))
  ranking = {query.query_id: each for query, each in zip(tests, rankings, strict=True)}
  facts = {'ms_per_query': spent, 'remark': compared(run, groups, ranking)}
  if c.engine != 'bm25':  # which weighs words itself and cannot be given weights
    facts['note'] = f'the built-in BM25, not config.search.engine={c.engine!r}'
  return ranking, facts


def nearest(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """Words that the pages of the most similar training query have: the trivial learner."""
  tests, c, search = asked(run, groups), run.config.rewrite, engine(run)
  words, known = baselines.words_at(queries.address(run.config)), queries.training(run)
  begin = time.monotonic()
  texts = [query.text for query in tests]
  lent = together(texts, baselines.nearest(texts, known, words=words), 'append', c.repeat)
  ranking = search(tests, [each.searched for each in lent])
  spent = per_query(begin, len(groups))
  save(run, row, tests, lent)
  return ranking, {'ms_per_query': spent, 'remark': compared(run, groups, ranking)}


def rewritten(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """The likeliest rewrites of a trained rewriter."""
  tests, search, model, variables = asked(run, groups), engine(run), *opened(run, row)
  writer = Rewriter.of(model, run.config.rewrite, run.mesh, run.config.search.batch_rows)
  writer(variables, [query.text for query in tests[:1]])  # compiles, which is not timed
  begin = time.monotonic()
  written = writer.rewritten(variables, [query.text for query in tests])
  ranking = search(tests, [each.searched for each in written])
  spent = per_query(begin, len(groups))
  save(run, row, tests, written)
  changed = sum(each.searched != query.text for each, query in zip(written, tests, strict=True))
  said = (
    f'{part_of(changed, len(groups), "query", "queries", "is", "are")} rewritten',
    writer.prompt.cut([query.text for query in tests]), compared(run, groups, ranking),
  )  # fmt: skip
  return ranking, {'ms_per_query': spent, 'remark': '; '.join(filter(None, said))}


def as_given(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """The likeliest rewrites of the model that the config names, which may be a rewriter already."""
  ranking, facts = rewritten(run, row, groups)
  name = PurePath(run.config.rewriter.model).name
  return ranking, {'title': f'{row.title} ({name})', **facts}


def open_given(config: ConfigDict) -> TextModel:
  """The rewriter's model without what an earlier run has trained."""
  return roles.open_pretrained(config, 'rewriter', 'lm')


def save(run: Run, row: Row, tests: Sequence[Query], found: Sequence[Rewritten]) -> None:
  """search/ROW.rewrites.jsonl: what the row searches for each query."""
  if processes.is_first():
    lines = (
      rewrites.Rewrite(query.query_id, query.text, *each)
      for query, each in zip(tests, found, strict=True)
    )
    rewrites.write(run.folder(STAGE) / f'{row.name}.{rewrites.SUFFIX}', lines)


def opened(run: Run, row: Row):
  """(the rewriter, its variables)."""
  return row.load(run)[:2]


def compared(run: Run, groups: Sequence[Group], ranking: metrics.Run) -> str:
  """How many queries are better and worse than as they were; '' if the table lacks these."""
  if FIRST.name not in run.config.search.models:
    return ''
  before = evaluate.ranking_of(run, FIRST.name, groups)
  return collection_rows.counted(run, groups, ranking, before)


def best_of_samples(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """The best of several sampled rewrites, chosen by the judgements: the ceiling of choosing."""
  tests, c, model, variables = asked(run, groups), run.config.rewrite, *opened(run, row)
  prompt = RewritePrompt(model, rewrite.longest(run.config))
  draw = Sampler(
    model.network, run.mesh, prompt.stops, run.config.search.batch_rows, prompt.longest, c.max_new,
    c.samples, c.temperature, c.top_p, run.config.seed, c.top_k,
  )  # fmt: skip
  prompts = [prompt(query.text) for query in tests]
  drawn = draw(variables, prompts, list(range(len(prompts))), step=0)
  rankings, written, search = [], [], engine(run)
  for place in range(c.samples):
    texts = prompt.texts([samples[place].ids for samples in drawn], c.think)
    written.append(together([query.text for query in tests], texts, c.mode, c.repeat))
    rankings.append(search(tests, [each.searched for each in written[-1]]))
  values_GS = np.stack([collection_rows.values(run, groups, each) for each in rankings], axis=1)
  best = baselines.best_of(values_GS).tolist()
  ranking = {q.query_id: rankings[i][q.query_id] for q, i in zip(tests, best, strict=True)}
  save(run, row, tests, [written[i][place] for place, i in enumerate(best)])
  facts = {'note': 'chosen by the judgements, so no system: what choosing could win'}
  return ranking, facts | {'remark': compared(run, groups, ranking)}


def check(config: ConfigDict) -> None:
  """As of collection_rows; a line says if the table does not look as deep as its columns.

  Raises: UserError for rows that the config names and cannot fill.
  """
  collection_rows.check(config)
  if 'rewrite' not in config.stages:
    start.check(config)
  for name, why in TABLE.left_out(config).items():
    raise UserError(f'config.search.models: the row {name!r} {why}, or leave the row out')
  if config.search.depth < rewards.DEPTH:
    say(
      f'search: config.search.depth={config.search.depth}: {metrics.title(DEEP)} is that of so '
      'many documents'
    )


def check_records(run: Run) -> None:
  """Raises: UserError, before anything trains, if no document that is asked for can be found."""
  known = {doc.doc_id for doc in queries.collection(run.config)}
  collection_rows.check_judged(run, 'test', known, queries.address(run.config))


def searches(config: ConfigDict) -> list:
  """What decides how a text is searched."""
  collection = sources.fingerprint(queries.address(config))
  return [config.search.engine, config.search.depth, collection]


def writes(config: ConfigDict) -> list:
  """What decides how a rewrite is written and searched, beside the rewriter's parameters."""
  c = config.rewrite
  names = ('max_new', 'mode', 'repeat', 'think', 'min_relevance', 'samples', 'temperature', 'top_p')
  names += ('top_k',)
  return [searches(config), {name: c[name] for name in names}]


def use(name: str, open_it, samples: Callable[[ConfigDict], int], config: ConfigDict) -> Use:
  rows, written = config.search.batch_rows, samples(config)
  texts = Texts(rows, written, rewrite.longest(config), config.rewrite.max_new)

  def writes(run: Run, model: TextModel) -> tuple[Writing, str]:
    count = len(prepare.records(run, 'test'))
    return [(texts, math.ceil(count / rows))], amount(count, 'query', 'queries')

  opening = functools.partial(open_it, config)
  return Use(
    name, 'rewriter', opening, rows * written, texts=lambda model: texts, writes=writes
  )  # fmt: skip


def rewriter(
  name: str, title: str, rank=rewritten, samples: Callable[[ConfigDict], int] = lambda config: 1,
  open_it: Callable[[ConfigDict], TextModel] = rewrite.open_rewriter, **more,
) -> Row:  # fmt: skip
  """A row of a rewriter that writes so many samples of a query."""
  return Row(
    name, title, rank, 'rewriter', open=open_it, stages=lambda config: TRAINED[name],
    trained_by=TRAINED[name][-1] if TRAINED[name] else '', reads=writes,
    used=functools.partial(use, name, open_it, samples), **more,
  )  # fmt: skip


def same_as_given(config: ConfigDict) -> str:
  """Where GRPO begins with the model as given, this is the row `cpt`."""
  begins = 'rewrite' in config.stages and 'cpt' not in config.stages
  return 'cpt' if begins and not config.rewriter.init_from else ''


def same_as_before(config: ConfigDict) -> str:
  """Without GRPO, the rewriter of an earlier run is `rewrite`; an untrained one is `pretrained`."""
  if 'rewrite' in config.stages:
    return ''
  if config.rewriter.init_from:
    return 'rewrite'
  return '' if 'cpt' in config.stages else 'pretrained'


FIRST = Row('original', 'original query', original, is_baseline=True, reads=searches)
SIMPLE = (
  FIRST,
  Row('rm3', 'RM3', rm3, reads=searches),
  Row(
    'nearest',
    'nearest training query',
    nearest,
    reads=writes,
    reads_records=('judgements',),
    is_baseline=True,
  ),
)
REWRITERS = (
  rewriter(
    'pretrained', 'model as given', as_given, open_it=open_given, is_baseline=True,
    same_as=same_as_given, ignores=('rewriter.init_from', 'rewriter.seed'),
  ),
  rewriter(
    'cpt', 'rewriter, before GRPO', is_baseline=True,
    needs_training=lambda config: False, same_as=same_as_before,
  ),
  rewriter(
    'rewrite', 'rewriter', improves_on=('original', 'pretrained', 'cpt', 'nearest'),
    needs_training=lambda config: not config.rewriter.init_from, instead='rewriter.init_from',
  ),
)  # fmt: skip
BEST = rewriter(
  'best', 'best of the samples (oracle)', best_of_samples,
  samples=lambda config: config.rewrite.samples,
)  # fmt: skip
ROWS = {
  row.name: row
  for row in (
    *SIMPLE, *REWRITERS, BEST,
    *(with_reranker(row, FIRST) for row in (*SIMPLE, *REWRITERS)),
  )
}  # fmt: skip
SETTINGS: Section = {
  **collection_rows.SETTINGS,
  # As deep as the reward `bm25` looks.
  'depth': Key(
    rewards.DEPTH, at_least(1), 'Documents that a search finds for a query.', affects_results=False,
  ),
  'engine': Key(
    'bm25', one_of(*engines.ENGINES), f'What searches: {engines.WHAT}', affects_results=False,
  ),
}  # fmt: skip

TABLE = Table(
  STAGE, 'the held-out queries are rewritten and searched', ROWS, first_stage='original',
  subject='rewrite', models=('rewrite', 'cpt', 'pretrained'), reranks=False,
  columns=('ndcg@10', 'mrr@10', 'hits@1', 'hits@20', DEEP),
  kept=('ndcg@10', 'mrr@10', 'hits@1', 'hits@5', 'hits@20', 'recall@1', 'recall@100', DEEP),
  main='ndcg@10', tested=('ndcg@10', DEEP), costs=('ms_per_query',), settings=SETTINGS,
  check=check, check_records=check_records, documents=documents_of, shares=lambda config: True,
  addresses=queries.addresses, command='rewrite', command_needs=('rewrite',),
)  # fmt: skip
