"""Reads collections in TREC's layout: queries, documents, qrels and a first stage's run.

Rows: `queries.tsv` query_id, tab, text; `docs.jsonl` {doc_id, title, summary}; qrels `query_id 0
doc_id grade`; run `query_id Q0 doc_id rank score tag`. Every file may be gzip.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from absl import logging

from disranker_jax.data import lines, records
from disranker_jax.data.records import UNJUDGED, BadRow, BadRows, Click, Document, Group
from disranker_jax.errors import UserError

FILES = {
  'queries': 'queries.tsv',
  'docs': 'docs.jsonl',
  'qrels': 'qrels.txt',
  'run': 'bm25.run',
  'clicks': 'clicks.jsonl',
}
OPTIONS = (*FILES, 'pool', 'only', 'exclude')
POOLS = ('run', 'judged')


class Line(NamedTuple):
  """A row of qrels or of a run, with where it stands for errors that only show later."""

  file: pathlib.Path
  number: int
  raw: bytes
  query_id: str
  doc_id: str
  label: int = UNJUDGED
  rank: int = 0
  score: float = math.nan


def read(
  folder: pathlib.Path, kind: str, options: dict[str, str], depth: int, bad_rows: BadRows
) -> Iterator[Click | Group]:
  """The records of a collection.

  `judgements` are the judged documents of the queries in the qrels; `candidates` the run's top
  `depth` of all queries. `test` with `pool=run` is the run's top `depth` to re-rank, with the other
  judged documents outside the pool; with `pool=judged` all judged documents are in it. `only` and
  `exclude` name qrels (comma-separated) whose queries alone are read, or are held out; for clicks
  the queries' texts are compared.
  """
  if not folder.is_dir():
    raise UserError(f'{folder}: is no folder; give the folder of a TREC collection')
  pool = options.get('pool', 'run')
  if pool not in POOLS:
    raise UserError(f'{folder}: unknown pool {pool!r}; choose one of {", ".join(POOLS)}')
  queries = _queries(_file(folder, options, 'queries'), bad_rows)
  if kind == 'clicks':
    yield from _clicks(folder, options, queries, bad_rows)
    return
  wanted = {query_id: queries[query_id] for query_id in _chosen(folder, options, queries)}
  judged = {}
  if kind != 'candidates':
    judged = _qrels(_file(folder, options, 'qrels'), queries, bad_rows)
  run_is_optional = kind == 'judgements' or (kind == 'test' and pool == 'judged')
  run = _file(folder, options, 'run', optional=run_is_optional)
  ranked = _run(run, queries, bad_rows) if run else {}

  picked: dict[str, list[tuple[Line, bool]]] = {}
  for query_id in wanted if kind == 'candidates' else (key for key in judged if key in wanted):
    top, judgements = ranked.get(query_id, {}), judged.get(query_id, {})
    in_pool = dict(list(top.items())[:depth])
    if kind == 'judgements' or (kind == 'test' and pool == 'judged'):
      in_pool = judgements
    both = {doc_id: _joined(doc_id, top, judgements) for doc_id in {**in_pool, **judgements}}
    picked[query_id] = [(line, doc_id in in_pool) for doc_id, line in both.items()]
  yield from _groups(_file(folder, options, 'docs'), wanted, picked, bad_rows)


def _joined(doc_id: str, top: dict[str, Line], judgements: dict[str, Line]) -> Line:
  """What run and qrels know about a document together."""
  if doc_id not in judgements:
    return top[doc_id]
  line = judgements[doc_id]
  if doc_id in top:
    line = line._replace(rank=top[doc_id].rank, score=top[doc_id].score)
  return line


def _groups(
  path: pathlib.Path,
  queries: dict[str, str],
  picked: dict[str, list[tuple[Line, bool]]],
  bad_rows: BadRows,
) -> Iterator[Group]:
  needed = {line.doc_id for rows in picked.values() for line, _ in rows}
  texts = _documents(path, needed, bad_rows)
  if blank := sum(not (doc.title.strip() or doc.summary.strip()) for doc in texts.values()):
    logging.warning('%s: %d of %d documents in use have no text', path, blank, len(texts))
  if without := sum(not rows for rows in picked.values()):
    logging.warning('%s: the run has nothing for %d of %d queries', path, without, len(picked))
  for query_id, rows in picked.items():
    docs = []
    for line, in_pool in rows:
      if doc := texts.get(line.doc_id):
        known = {'label': line.label, 'rank': line.rank, 'score': line.score}
        docs.append(dataclasses.replace(doc, **known, in_pool=in_pool))
      else:
        bad = BadRow(
          'doc_id', f'{line.doc_id!r} is not in {path}', 'add the document or remove the row'
        )
        bad_rows.reject(line.file, line.number, line.raw, bad)
    if docs:
      yield Group(query_id, queries[query_id], tuple(docs))


def _clicks(
  folder: pathlib.Path, options: dict[str, str], queries: dict[str, str], bad_rows: BadRows
) -> Iterator[Click]:
  chosen = {queries[query_id] for query_id in _chosen(folder, options, queries)}
  held_out = set(queries.values()) - chosen
  path = _file(folder, options, 'clicks')
  for number, raw in lines.read(path):
    click = bad_rows.parse(path, number, raw, lambda raw: records.click(lines.from_json(raw)))
    if click and click.query not in held_out and ('only' not in options or click.query in chosen):
      yield click


def _chosen(
  folder: pathlib.Path, options: dict[str, str], queries: dict[str, str]
) -> Iterable[str]:
  chosen = list(queries)
  for option in ('only', 'exclude'):
    if option not in options:
      continue
    ids = set()
    for name in options[option].split(','):
      # Not data but a choice: a mistake in it stops the run whatever becomes of bad rows.
      ids |= _qrels(_existing(folder, name, option), queries, BadRows()).keys()
    chosen = [query_id for query_id in chosen if (query_id in ids) == (option == 'only')]
  return chosen


def _queries(path: pathlib.Path, bad_rows: BadRows) -> dict[str, str]:
  queries: dict[str, str] = {}

  def add(raw: bytes) -> None:
    query_id, tab, query = lines.text(raw).partition('\t')
    query_id, query = query_id.strip(), query.strip()
    if not tab:
      raise BadRow('query', 'is missing', 'write query_id, a tab and the text')
    if not query_id or not query:
      raise BadRow('query' if query_id else 'query_id', 'is blank', 'fill it in or remove the row')
    if query_id in queries:
      raise BadRow('query_id', f'{query_id!r} is there twice', 'give each query its own')
    queries[query_id] = query

  _each(path, add, bad_rows)
  return queries


def _documents(path: pathlib.Path, needed: set[str], bad_rows: BadRows) -> dict[str, Document]:
  """Only the documents in use: a collection of millions need not fit into memory."""
  docs: dict[str, Document] = {}

  def add(raw: bytes) -> None:
    doc = records.document(lines.from_json(raw))
    if doc.doc_id in docs:
      raise BadRow('doc_id', f'{doc.doc_id!r} is there twice', 'give each document its own')
    if doc.doc_id in needed:
      docs[doc.doc_id] = doc

  _each(path, add, bad_rows)
  return docs


def _qrels(
  path: pathlib.Path, queries: dict[str, str], bad_rows: BadRows
) -> dict[str, dict[str, Line]]:
  judged: dict[str, dict[str, Line]] = {}
  for number, raw in lines.read(path):

    def add(raw: bytes, number: int = number) -> None:
      query_id, _, doc_id, grade = _columns(raw, 'query_id 0 doc_id grade')
      label = parse_number(int, 'label', grade)
      if not 0 <= label <= records.MAX_INT:
        raise BadRow('label', f'is {grade}', 'write an integer of 0 or more, 0 = not relevant')
      _put(judged, Line(path, number, raw, query_id, doc_id, label), queries)

    bad_rows.parse(path, number, raw, add)
  return judged


def _run(
  path: pathlib.Path, queries: dict[str, str], bad_rows: BadRows
) -> dict[str, dict[str, Line]]:
  """The run's documents by query, best first, ranked from 1.

  As in trec_eval the score decides; the rank given only breaks ties, for tools count from 0 or 1.
  """
  ranked: dict[str, dict[str, Line]] = {}
  for number, raw in lines.read(path):

    def add(raw: bytes, number: int = number) -> None:
      query_id, _, doc_id, rank, score, _ = _columns(raw, 'query_id Q0 doc_id rank score tag')
      rank, score = parse_number(int, 'rank', rank), parse_number(float, 'score', score)
      if not math.isfinite(score):
        raise BadRow('score', f'is {score}', 'write a finite number')
      line = Line(path, number, raw, query_id, doc_id, rank=rank, score=score)
      _put(ranked, line, queries)

    bad_rows.parse(path, number, raw, add)
  for query_id, docs in ranked.items():
    best = sorted(docs.values(), key=lambda line: (-line.score, line.rank))
    ranked[query_id] = {line.doc_id: line._replace(rank=i) for i, line in enumerate(best, 1)}
  return ranked


def _put(table: dict[str, dict[str, Line]], line: Line, queries: dict[str, str]) -> None:
  if line.query_id not in queries:
    fix = 'add the query or remove the row'
    raise BadRow('query_id', f'{line.query_id!r} is not among the queries', fix)
  docs = table.setdefault(line.query_id, {})
  if line.doc_id in docs:
    what = f'{line.doc_id!r} is there twice for query_id {line.query_id!r}'
    raise BadRow('doc_id', what, 'keep one of the rows')
  docs[line.doc_id] = line


def _each(path: pathlib.Path, add: Callable[[bytes], None], bad_rows: BadRows) -> None:
  for number, raw in lines.read(path):
    bad_rows.parse(path, number, raw, add)


def _columns(raw: bytes, layout: str) -> list[str]:
  lines.text(raw)
  # Split as bytes: text would also be split at a no-break space inside an id.
  columns = [column.decode() for column in raw.split()]
  expected = len(layout.split())
  if len(columns) != expected:
    raise BadRow('row', f'has {len(columns)} columns, not {expected}', f'write {layout}')
  return columns


def parse_number(make: Callable[[str], Any], field: str, column: str) -> Any:
  """A column as a number; BadRow if it is none."""
  try:
    return make(column)
  except ValueError:
    name = 'an integer' if make is int else 'a number'
    raise BadRow(field, f'is {column[:40]!r}, not {name}', f'write {name}') from None


def _file(
  folder: pathlib.Path, options: dict[str, str], what: str, *, optional: bool = False
) -> pathlib.Path | None:
  if optional and what not in options and not _variants(folder / FILES[what]):
    return None
  return _existing(folder, options.get(what, FILES[what]), what)


def _existing(folder: pathlib.Path, name: str, option: str) -> pathlib.Path:
  found = _variants(folder / name)
  if not found:
    raise UserError(
      f'{folder / name}: does not exist, nor does its .gz; name the file with ?{option}=FILE'
    )
  return found[0]


def _variants(path: pathlib.Path) -> list[pathlib.Path]:
  plain = path.with_suffix('') if path.suffix == '.gz' else path
  others = (plain, plain.with_name(plain.name + '.gz'))
  return [each for each in (path, *others) if each.exists()]
