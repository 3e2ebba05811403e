"""A collection of 40 pages with clicks, labelled queries and test queries, as JSON lines."""

import json
import pathlib

VERBS = ('open', 'sort', 'count', 'join', 'split', 'copy', 'close', 'find')
NOUNS = ('file', 'list', 'string', 'socket', 'thread')


def collection(folder: pathlib.Path) -> dict[str, str]:
  """{kind: address} of 40 pages, a click on each, labelled queries and tests of some."""
  pages = [
    {'doc_id': f'{noun}.{verb}', 'title': f'{noun} {verb}',
     'summary': f'{verb} the {noun} and return what was found in this {noun} {i} times'}
    for i, (verb, noun) in enumerate((v, n) for v in VERBS for n in NOUNS)
  ]  # fmt: skip

  def query(page, how):
    noun, _, verb = page['doc_id'].partition('.')
    return f'{how} {verb} a {noun}'

  clicks = [{'query': query(p, 'how to'), **{k: p[k] for k in ('title', 'summary')}} for p in pages]
  judged = [
    {'query_id': f'{p["doc_id"]}-{how[:3]}', 'query': query(p, how), 'label': 1, **p}
    for p in pages[::3] for how in ('please', 'can I')
  ]  # fmt: skip
  tests = [{'query_id': f't{i}', 'query': query(p, 'quickly'), 'label': 1, **p}
           for i, p in enumerate(pages[::5])]  # fmt: skip
  rows = {'documents': pages, 'clicks': clicks, 'judgements': judged, 'test': tests}
  for name, content in rows.items():
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in content))
  return {name: f'jsonl:{folder / name}.jsonl' for name in rows}
