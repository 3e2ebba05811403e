"""Suggests which field of a row is meant where one is missing: other tools have other names."""

import re
from collections.abc import Iterable

# Our name -> what other tools and collections call it, the most certain first.
OTHER_NAMES = {
  'query_id': ('qid', 'topic_id', 'topic', 'query_number', 'search_id'),
  'query': ('query_text', 'question', 'search_query', 'search_term', 'q'),
  'doc_id': (
    'docno', 'docid', 'did', 'pid', 'passage_id', 'document_id', 'corpus_id', 'product_id',
    'item_id', 'url', 'id', '_id',
  ),
  'title': ('headline', 'heading', 'name', 'product_title', 'doc_title'),
  'summary': (
    'text', 'body', 'contents', 'content', 'passage', 'passage_text', 'snippet', 'abstract',
    'description', 'document', 'doc_text',
  ),
  'text': ('summary', 'body', 'contents', 'content', 'passage', 'segment'),
  'label': ('relevance', 'rel', 'grade', 'relevance_grade', 'judgement', 'judgment', 'rating'),
  'score': ('teacher_score', 'relevance_score', 'similarity', 'logit', 'rel_score'),
}  # fmt: skip
# Names of a label that nothing else has.
CERTAIN_LABELS = ('relevance', 'rel', 'relevance_grade', 'judgement', 'judgment')


def meant(field: str, names: Iterable[str]) -> str:
  """The name that stands for a missing field, '' if there is none; `Query-ID` is query_id too."""
  by_plain: dict[str, str] = {}
  for name in names:
    if isinstance(name, str):
      by_plain.setdefault(plain(name), name)
  known = (plain(other) for other in (field, *OTHER_NAMES.get(field, ())))
  return next((by_plain[name] for name in known if name in by_plain), '')


def plain(name: str) -> str:
  """A name without case and punctuation."""
  return re.sub(r'[^a-z0-9]', '', name.lower())


def fix(field: str, names: Iterable[str], otherwise: str) -> str:
  """What to do about a missing field."""
  found = meant(field, names)
  return f'rename "{found}" to "{field}"' if found else otherwise


def columns(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
  """`known`, and the columns that may stand for a missing one, so that errors can name them."""
  names, known = list(names), tuple(known)
  others = (meant(field, names) for field in OTHER_NAMES if field not in names)
  return (*known, *(name for name in others if name))
