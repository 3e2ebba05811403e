"""Where a model gains and loses against the first stage: query by query, with the rankings.

A ranking is {doc_id: score} with the best first, as evaluate writes it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from disranker_jax.data.records import Document, Group
from disranker_jax.report.facts import Facts
from disranker_jax.report.intervals import baselines

TOP = 5  # ranks that the main metric counts
SHOWN = 10  # queries with the greatest gains, and with the greatest losses
GRADES = 5  # colours for labels


class Gains(NamedTuple):
  model: str
  pairs: dict[tuple[str, str], list[float]]  # {(row, other): differences of all queries, greatest
  # first}: the model against each baseline, and fused with the first stage against that
  best: list[dict]
  worst: list[dict]


def gains(facts: Facts) -> Gains | None:
  """The first model's main metric minus the first stage's, per query; None if one is missing."""
  first = facts.table.first_stage
  model = next((m for m in facts.table.models if m in facts.rows), None)
  if model is None or first not in facts.rows:
    return None
  apart = differences(facts, model, first)
  order = sorted(apart, key=lambda q: (-apart[q], q))
  best = [q for q in order if apart[q] > 0][:SHOWN]
  worst = [q for q in reversed(order) if apart[q] < 0][:SHOWN]
  ends = [[side_by_side(facts, q, model, apart[q]) for q in end] for end in (best, worst)]
  compared = [
    (model, other) for other in baselines(facts.table, list(facts.rows)) if other != model
  ]
  compared += [(row, first) for row in fused(facts, model)]
  pairs = {
    (row, other): sorted(differences(facts, row, other).values(), reverse=True)
    for row, other in compared
  }
  return Gains(model, pairs, *(list(filter(None, end)) for end in ends))


def fused(facts: Facts, model: str) -> list[str]:
  """The rows of the model fused with the first stage that are tested against that."""
  return [
    name
    for name, results in facts.results.items()
    if name in facts.rows and facts.table.first_stage in results.get('against', ())
    and name in facts.table.rows and model in facts.table.rows[name].fuses
  ]  # fmt: skip


def differences(facts: Facts, model: str, other: str) -> dict[str, float]:
  """{query_id: main metric of the model minus that of the other}."""
  return {q: value(facts, model, q) - value(facts, other, q) for q in facts.rows[other]}


def value(facts: Facts, model: str, query: str) -> float:
  """The main metric of a model's query; 0 if it lacks the query."""
  return facts.rows.get(model, {}).get(query, {}).get(facts.table.main, 0.0)


def side_by_side(facts: Facts, query: str, model: str, gain: float) -> dict | None:
  """A query's rankings by first stage, teacher and model; None if its texts are missing."""
  group = facts.tests.get(query)
  first = facts.table.first_stage
  names = dict.fromkeys((first, facts.table.teacher, model))
  names = [n for n in names if query in facts.runs.get(n, {})]
  if group is None or first not in names:
    return None
  found = {d: rank for rank, d in enumerate(facts.runs[first][query], 1)}
  columns = []
  for name in names:
    order = list(facts.runs[name][query])
    docs = column(order, found, group, facts, is_first=name == first)
    rewritten = facts.rewrites.get(name, {}).get(query)
    columns.append({
      'title': facts.title(name),
      'value': value(facts, name, query),
      'searched': rewritten.searched if rewritten else '',
      'docs': docs,
    })  # fmt: skip
  return {'query': group.query, 'gain': gain, 'columns': columns}


def column(
  order: list[str], found: Mapping[str, int], group: Group, facts: Facts, is_first: bool
) -> list[dict[str, Any]]:
  """The top of a ranking, then the next document with the query's best label.

  Documents that the first stage did not find (`found`: its ranks) have no rank there and have not
  moved.
  """
  docs = {d.doc_id: d for d in group.docs}
  best = max((d.label for d in group.docs), default=0)
  shown: list[dict[str, Any]] = []
  last = 0
  for rank, doc_id in enumerate(order, 1):
    doc = docs.get(doc_id) or facts.documents.get(doc_id) or Document(doc_id, '', '')
    if rank > TOP and not (best > 0 and doc.label == best):
      continue
    moved = found.get(doc_id, rank) - rank
    placed = {'rank': found.get(doc_id, 0) if is_first else rank, 'moved': moved}
    shown.append(cell(doc, facts.top_label) | placed | {'gap': bool(shown) and rank > last + 1})
    last = rank
    if rank > TOP:
      break
  return shown


def cell(doc: Document, top: int) -> dict[str, Any]:
  text = doc.title.strip() or shortened(doc.summary.strip()) or doc.doc_id
  return {'text': text, 'label': doc.label, 'grade': grade(doc.label, top)}


def shortened(text: str, most: int = 80) -> str:
  return text if len(text) <= most else text[: most - 1] + '…'


def grade(label: int, top: int) -> int:
  """The colour of a label; 0, the palest, for unjudged and irrelevant documents."""
  return max(0, min(GRADES - 1, round(label / max(top, 1) * (GRADES - 1))))
