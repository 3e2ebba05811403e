"""Rewrites a file of queries, for `disranker rewrite --queries`.

Finished queries are on disk before the next ones begin, so the same command continues where it was
stopped.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from disranker_jax import locks, outputs
from disranker_jax.commands import unfinished
from disranker_jax.data import contents
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.evaluation import rewrites
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.progress import Progress, part_of, say
from disranker_jax.rewriting import query_files
from disranker_jax.rewriting.loaded import LoadedRewriter
from disranker_jax.rewriting.rewriter import ROWS

VERSION = 1  # of the unfinished work


def write(
  folder: Path, queries: Path, out: Path, opened: Callable[[int, list[str]], LoadedRewriter]
) -> None:
  """Writes the rewrites of all queries of a file.

  Args:
    folder: of the exported rewriter or of the run.
    opened: (queries that are rewritten together, at least; all queries) -> the rewriter.

  Raises: UserError, Stopped, KeyboardInterrupt.
  """
  try:
    asked = query_files.read(queries)
  except UserError as error:
    raise UserError(f'--queries: {error}') from None
  file, rows = outputs.resolved(out), min(ROWS, len(asked))
  with locks.beside(file):
    rewriter = opened(rows, [query for _, query in asked])
    work = unfinished.Lines('rewrite', file, digest(folder, queries), rewrites.is_gzip(out))
    with (
      work.kept(),
      processes.StopRequest() as request,
      Progress('rewrite', len(asked), 'queries', work.queries) as progress,
    ):
      for first in range(work.queries, len(asked), rows):
        part = asked[first : first + rows]
        found = rewriter.many([query for _, query in part])
        pairs = zip(part, found, strict=True)
        work.add([rewrites.line(rewrites.Rewrite(*query, *each)) for query, each in pairs])
        progress.update(work.queries, len(part))
        if request and work.queries < len(asked):
          raise request.stopped('rewrite: stopped')
    work.finish()
  changed = sum(bool(each.rewrite) for each in rewrites.read(out).values())
  say(f'{out}: {part_of(changed, len(asked), "query", "queries", "is", "are")} rewritten')


def digest(folder: Path, queries: Path) -> str:
  """Identifies the work: the file of queries, and the exported model or what the run has done."""
  done = [folder / 'config.json', *sorted(folder.glob(f'*/{manifest.FILE}'))]
  is_run = len(done) > 1
  files = [[str(f.relative_to(folder)), contents.digest(f)] for f in done if f.is_file()]
  model = files if is_run else manifest.files(inputs.model_files(folder))
  value = [model, contents.digest(queries), VERSION]
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()
