"""What the system that rewrites queries exports: a rewriter, as `rewriting/loaded.py` reads it."""

from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax.exporting.card import Purpose
from disranker_jax.models.load import TextModel
from disranker_jax.pipeline.stage import Run
from disranker_jax.rewriting import loaded, rewriter
from disranker_jax.rewriting.prompts import RewritePrompt
from disranker_jax.rewriting.rows import TABLE
from disranker_jax.rewriting.stages import rewrite
from disranker_jax.stages import export
from disranker_jax.stages.export import Exports, Loaded

USE = """```python
from disranker_jax.rewriting import loaded

rewriter = loaded.load('{name}')
rewriter('{query}').searched  # what the search engine is given
```

On the command line: `disranker rewrite --model {name} --query '{query}'`; in a server: `disranker
serve --model STUDENT --rewriter {name}`. `transformers` loads it as `{architecture}`: the prompt is
`disranker_jax.template` in `config.json` up to `{{title}}`, the rewrite is what the model writes
there, and `generation_config.json` says where it ends. A prompt has at most {max_len} tokens with
the rewrite, of which at most {max_query_len} are the query's.
"""


def how(config: ConfigDict) -> dict:
  """How a rewrite is written, and what searches it: the table's engine."""
  written = {name: config.rewrite[name] for name in rewriter.SETTINGS}
  return written | {'engine': config.search.engine}


def records(run: Run, row: str, found: Loaded) -> dict:
  return {'task': 'rewriting', loaded.RECORD: how(run.config)}


def outside(config: ConfigDict, workdir: Path) -> dict[str, str]:
  """What the folder records of the sections of other stages."""
  sections = {'engine': 'search'}
  return {f'{sections.get(name, "rewrite")}.{name}': str(x) for name, x in how(config).items()}


def complete(model: TextModel, folder: Path, run: Run) -> None:
  """Adds what transformers needs to end a rewrite."""
  ends = RewritePrompt(model, rewrite.longest(run.config)).stops
  export.write_generation(folder, model, ends, run.config.rewrite.max_new)


ROWS = ('cpt', 'rewrite')  # in the order in which they are trained
EXPORTS = Exports(
  'the rewriter for other programs', TABLE, rows=ROWS,
  automatic='rewriter', what='the rewriter as the run has trained it', folder='rewriter',
  candidates=export.last_trained(TABLE, ROWS), needs='rewrite',
  purpose=Purpose(
    'rewrites queries for a search engine', USE, 'text-generation',
    'the mean log-probability of the title after the query',
  ),
  records=records, prompt=lambda model: model.prompt('document'), complete=complete,
  settings=export.OF_WRITERS,
)  # fmt: skip
