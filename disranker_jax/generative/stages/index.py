"""The stage that makes the collection searchable: pages as tokens, and their sorted suffixes."""

from collections.abc import Mapping, Sequence

from disranker_jax.config.settings import Key, Section, at_least
from disranker_jax.data import sources
from disranker_jax.devices import memory, processes
from disranker_jax.errors import UserError
from disranker_jax.generative import pages as collection
from disranker_jax.generative import prompts, suffixes
from disranker_jax.generative.pages import Pages
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.suffixes import Suffixes
from disranker_jax.models.load import TextModel, open_model
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import say
from disranker_jax.stages import documents, prepare
from disranker_jax.stages.generated_groups import are_ranked, own_documents


def open_retriever(config) -> TextModel:
  """The retriever, without parameters."""
  return open_model(config.retriever, 'lm')


def execute(run: Run) -> dict:
  return processes.first_alone('index', lambda: build(run)) or {}


def build(run) -> dict:
  """Writes index/; returns counts."""
  docs = documents.read(run.config, least=1)
  found = Prompts(open_retriever(run.config))
  pages, counts = collection.build(docs, pseudo_queries(run), found)
  collection.say_counts(pages, counts)
  check_views(run.config.retriever.views, counts, len(pages))
  folder, tokens = run.folder('index'), len(pages.text_N)
  del docs  # the sorted suffixes take the most memory
  device, host = map(memory.size, suffixes.memory(tokens))
  say(
    f'index: a device will hold {device} of it, and tables of frequent n-grams; the host holds '
    f'{host} at most while it is built'
  )
  pages.save(folder)
  order = Suffixes.build(pages.text_N, pages.vocab + 2, window=run.config.index.window)
  plain, tables = order.sizes()
  say(
    f'index: is built; it has {memory.size(plain + tables)}, of which {memory.size(tables)} are '
    'tables of frequent n-grams'
  )
  order.save(folder / 'suffixes')
  return {'pages': len(pages), 'tokens': tokens, **counts}


# What the counts of `pages.build` call a page that has nothing of a view.
EMPTY = {
  'title': 'without a title', 'body': 'without a text', 'query': 'without a pseudo-query'
}  # fmt: skip


def check_views(views: Sequence[str], counts: Mapping[str, int], pages: int) -> None:
  """Raises: UserError for a view of which no page has anything, before the retriever learns it.

  Args:
    counts: of pages, such as {'without a title': 3}, see pages.build.
  """
  for view, what in EMPTY.items():
    if view in views and counts.get(what) == pages:
      raise UserError(
        f'config.retriever.views: has {view!r}, but every page is {what}; take {view!r} out'
      )


def pseudo_queries(run) -> dict[str, list[str]]:
  """{doc_id: the queries that were written from the document}."""
  found: dict[str, list[str]] = {}
  if 'query' in run.config.retriever.views:
    most = run.config.index.queries
    for group in prepare.records(run, prepare.GENERATED):
      for doc_id in own_documents(group):
        own = found.setdefault(doc_id, [])
        if not most or len(own) < most:
          own.append(group.query)
  return found


def check_records(run: Run) -> None:
  """Looks at the documents before pseudo-queries are written from them.

  Says it if nothing reads these. Raises: UserError for a view of which no document has anything.
  """
  c = run.config
  docs = documents.read(c, least=1)
  check_views(c.retriever.views, collection.without(docs), len(docs))
  read = 'query' in c.retriever.views or are_ranked(c)
  if 'generate' in c.stages and not read:
    say(
      "warning: config.stages: has 'generate', but nothing reads the queries that it writes, since "
      "config.retriever.views lacks 'query'; take 'generate' out, or add 'query' to the views"
    )


def load(run) -> tuple[Pages, Suffixes]:
  """What the stage wrote."""
  folder = run.folder('index')
  return Pages.load(folder), Suffixes.load(folder / 'suffixes')


def outside(config, workdir) -> dict[str, str]:
  """The documents."""
  where = documents.address(config)
  return {'data.documents': manifest.digest(sources.fingerprint(where))}


SETTINGS: Section = {
  'queries': Key(0, at_least(0), 'Pseudo-queries per page; 0: all that generate wrote.'),
  'window': Key(
    512, at_least(2),
    'N-grams that occur more often have their followers in a table; fewer are read from the '
    'sorted suffixes. It changes the time of a search and not its result.', affects_results=False,
  ),
}  # fmt: skip

# Keys of the retriever: its tokenizer, what there is of a page, and how long it is.
READ = 'model', 'views', 'title_length', 'query_length'
STAGE = Stage(
  'index', 'pages become searchable by their n-grams', execute, SETTINGS, models=('retriever',),
  keys=lambda config: tuple(f'retriever.{name}' for name in READ),
  check=prompts.check, uses=lambda config: (), outside=outside, reads_stages=('generate',),
  requires=lambda config: {}, addresses=documents.addresses, check_records=check_records,
)  # fmt: skip
