"""What the generative system exports: a retriever, the decoder that writes n-grams of pages."""

from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax.data.prompts import TextPrompt
from disranker_jax.exporting.card import Purpose
from disranker_jax.generative import prompts
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.rows import TABLE
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline.stage import Run
from disranker_jax.stages import export
from disranker_jax.stages.export import Exports, Loaded

USE = """`transformers` loads it as `{architecture}`. It reads a query in one of the templates that
`disranker_jax.retrieves` in `config.json` has, and writes what pages have there. It searches with
the index of the pages, which is in the run: `disranker search --run RUN --query '{query}'`.
"""


def records(run: Run, row: str, found: Loaded) -> dict:
  """How n-grams are written."""
  s = run.config.retriever
  names = [name for name in prompts.SETTINGS if name != 'views']
  how = {name: s[name] for name in names} | {'views': list(s.views)}
  return {'task': 'retrieval', 'retrieves': how}


def title_prompt(model: TextModel) -> TextPrompt:
  """The prompt of a title with the title behind it, and then the text of the page."""
  s = model.settings
  before = s.title_template.replace('{', '{{').replace('}', '}}')
  template = before.replace('{{query}}', '{query}') + ' {title} {summary}'
  return TextPrompt(model.tokenizer, s.max_len, s.max_query_len, template)


def complete(model: TextModel, folder: Path, run: Run) -> None:
  """Adds what transformers needs to end a title."""
  s = run.config.retriever
  longest = max(s.length, s.title_length, s.query_length)
  export.write_generation(folder, model, {Prompts(model).end}, longest)


def teachers(config: ConfigDict, row: str) -> tuple[str, ...]:
  """The LLMs whose order and pseudo-queries the retriever learned."""
  order = (config.teacher.model,) if row == 'aligned' else ()
  has_queries = 'query' in config.retriever.views
  queries = (config.generate.model or config.teacher.model,) if has_queries else ()
  return tuple(dict.fromkeys((*order, *queries)))


ROWS = ('memorised', 'ltrgr', 'aligned')  # in the order in which they are trained
EXPORTS = Exports(
  'the retriever for other programs', TABLE, rows=ROWS,
  automatic='retriever', what='the retriever as the run has trained it', folder='retriever',
  candidates=export.last_trained(TABLE, ROWS), needs='memorise',
  purpose=Purpose(
    'writes what the pages for a query have', USE, 'text-generation',
    'the mean log-probability of title and summary after the query',
  ),
  records=records, prompt=title_prompt, complete=complete, teachers=teachers,
  settings=export.OF_WRITERS,
)  # fmt: skip
