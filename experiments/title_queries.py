"""Queries made of words in titles, for a collection without unlabeled queries of its own.

python experiments/title_queries.py ../shared/data/chorus-ecommerce runs/titles.tsv

One or two neighbouring words that several titles share, such as a kind of product, alone and with
the maker; with --web what a web page calls itself, up to the first dash, colon or bar. The
collection's own queries are left out. A config takes them as

  c.data.candidates = 'trec:../shared/data/chorus-ecommerce?queries=runs/titles.tsv&run=bm25'
"""

import argparse
import collections
import itertools
import random
import re
from pathlib import Path

from disranker_jax.data import trec
from disranker_jax.data.records import BadRows

LEAST, MOST = 8, 0.05  # titles with the words: at least so many, at most this share of all
WORD = re.compile(r'[a-z]{3,}')
SEPARATOR = re.compile(r'\s-+\s|[:|\u00bb]|\.\.\.')
WORDS = range(2, 7)  # of a page's name: one says too little, and longer ones are no queries


def phrases(title: str) -> set[str]:
  """What a title is of: one or two neighbouring words that it has in small letters, and its maker.

  Makers stand first in titles of products; each is a query alone and before a word.
  """
  words = title.split()
  runs = [w if WORD.fullmatch(w) else '' for w in words]
  kinds = {w for w in runs if w} | {f'{a} {b}' for a, b in itertools.pairwise(runs) if a and b}
  maker = words[0].lower() if words and words[0].isalpha() else ''
  return kinds | ({maker} | {f'{maker} {kind}' for kind in kinds} if maker else set())


def name(title: str) -> str:
  """What a page calls itself: 'Dogs 101 : Animal Planet' is 'dogs 101'; '' if that is no query."""
  words = SEPARATOR.split(title, 1)[0].lower().split()
  return ' '.join(words) if len(words) in WORDS else ''


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('collection', type=Path, help='a folder in the layout of trec:')
  parser.add_argument('out', type=Path, help='the queries: id, tab, text')
  parser.add_argument('--web', action='store_true', help='titles are those of web pages')
  parser.add_argument('--count', type=int, default=1200, help='at most (%(default)s)')
  args = parser.parse_args()
  collection = trec.Folder(args.collection, {}, depth=0)
  titles = [doc.title for _, _, doc in collection.documents(BadRows())]
  own = {query.text.strip().lower() for query in collection.queries(BadRows())}
  if args.web:
    found = {name(title) for title in titles} - {''}
  else:
    seen = collections.Counter(phrase for title in titles for phrase in phrases(title))
    found = {phrase for phrase, n in seen.items() if LEAST <= n <= MOST * len(titles)}
  known = sorted(found - own)
  chosen = random.Random(0).sample(known, min(args.count, len(known)))
  args.out.parent.mkdir(parents=True, exist_ok=True)
  args.out.write_text(''.join(f'title{i}\t{text}\n' for i, text in enumerate(chosen)))
  print(f'{len(chosen)} queries out of {len(known)} in {len(titles)} titles: {args.out}')


if __name__ == '__main__':
  main()
