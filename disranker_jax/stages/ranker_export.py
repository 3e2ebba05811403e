"""What DisRanker exports: students, for the server and other programs, and the teacher."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax.config.settings import Key, between, list_of, one_of, text
from disranker_jax.data import lines, sources
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.exporting import formats, serving
from disranker_jax.pipeline import manifest
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import amount, say
from disranker_jax.stages import best_student, evaluate, fused_rows, prepare, run_texts
from disranker_jax.stages.export import Exports, Loaded
from disranker_jax.stages.result_rows import ROWS, STUDENT, TABLE


def is_student(row: str) -> bool:
  return ROWS[row].role == 'student'


def records(run: Run, row: str, loaded: Loaded) -> dict:
  """How a student is fused with the first stage."""
  how = fused_rows.of_export(run, row, loaded) if is_student(row) else None
  return {'fusion': how.to_dict()} if how else {}


def teachers(config: ConfigDict, row: str) -> tuple[str, ...]:
  """The LLM whose scores a distilled student learned, if the run has computed them."""
  own = ROWS[row].trained_by == 'distill' and not config.data.teachers
  return (config.teacher.model,) if own and config.teacher.model else ()


def is_tested(run: Run) -> bool:
  """Whether there is a prepared test set."""
  return 'prepare' in run.config.stages and 'test' in prepare.kinds(run.config)


def measured(run: Run, row: str, folder: Path) -> list[dict]:
  """What requests for the test queries get from a student."""
  if not (is_student(row) and is_tested(run)):
    return []
  return processes.first_alone(f'requests to {row}', functools.partial(requested, run, folder))


def requested(run: Run, folder: Path) -> list[dict]:
  """What requests for the test queries get from the folder (serving.measure)."""
  tests = prepare.records(run, 'test')
  groups = [tests[i] for i in range(min(len(tests), serving.QUERIES))]
  qrels = {group.query_id: group.grades for group in groups}
  rows = serving.measure(folder, [evaluate.to_rerank(group) for group in groups], qrels)
  for row in rows:
    say(
      f'export: {row["backend"]}: nDCG@5 {row["ndcg@5"]:.3f} over '
      f'{amount(row["queries"], "query", "queries")}, {row["p50_ms"]:.1f} ms per request of '
      f'{amount(round(row["documents"]), "document")} (95 %: {row["p95_ms"]:.1f} ms)'
    )
  return rows


def check(config: ConfigDict) -> None:
  """Raises: UserError for a teacher that no library can load."""
  if 'teacher' in config.export.models and config.teacher.scorer == 'score_head+query_likelihood':
    raise UserError(
      "config.export.models: a teacher with scorer 'score_head+query_likelihood' has two heads, as "
      "no Hugging Face model has; export only 'student', or train with 'score_head' or "
      "'query_likelihood'"
    )


def check_records(run: Run) -> None:
  """Prints a line, before the first model is trained, if texts that it has learned are gone."""
  if run.config.export.vocabulary == 'data':
    run_texts.say_missing(run)


def outside(config: ConfigDict, workdir: Path) -> dict[str, str]:
  """Whose tokens a student keeps: the texts of earlier runs, or those of a file."""
  kept = config.export.vocabulary
  if kept == 'data':
    return run_texts.of_earlier_runs(config, workdir)
  if not kept:
    return {}
  is_address = sources.is_address(kept)
  found = sources.fingerprint(kept) if is_address else manifest.files(lines.found(kept))
  return {'export.vocabulary': manifest.digest(found)}


EXPORTS = Exports(
  'the student for other programs', TABLE,
  rows=tuple(row.name for row in ROWS.values() if row.trained_by),
  automatic='best', what='the best student', folder=STUDENT, candidates=best_student.candidates,
  choose=best_student.choose, needs=ROWS[STUDENT].trained_by, untrained=('teacher',),
  records=records, teachers=teachers, measured=measured, check=check,
  settings={
    'formats': Key(
      ('onnx', 'onnx_int8'), list_of(one_of(*formats.FORMATS), distinct=True),
      'Formats of a student beside safetensors.',
    ),
    'vocabulary': Key(
      '', text("'', 'data' or a file"),
      "Tokens that a student keeps: all (''), those of the data of the run and of the earlier runs "
      "that it builds on ('data'), or those of the documents in a JSON lines file.",
    ),
    'parity_pairs': Key(
      1000, between(2, 10_000_000),
      'Pairs that every reader of the folder scores, at least. nDCG is a mean over their queries: '
      '8 bits once changed it by .034 over ten queries and by .002 over 295.',
    ),
  },
)  # fmt: skip
