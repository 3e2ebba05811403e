"""Queries made of words in titles, for a collection without unlabeled queries of its own.

python experiments/title_queries.py ../shared/data/chorus-ecommerce runs/titles.tsv

One or two neighbouring words that several titles share, such as a kind of product, alone and with
the maker; none of the collection's own queries. A config takes them as

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


def phrases(title: str) -> set[str]:
  """What a title is of: one or two neighbouring words that it has in small letters, and its maker.

  Makers stand first in titles of products; each is a query alone and before a word.
  """
  words = title.split()
  runs = [w if WORD.fullmatch(w) else '' for w in words]
  kinds = {w for w in runs if w} | {f'{a} {b}' for a, b in itertools.pairwise(runs) if a and b}
  maker = words[0].lower() if words and words[0].isalpha() else ''
  return kinds | ({maker} | {f'{maker} {kind}' for kind in kinds} if maker else set())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('collection', type=Path, help='a folder in the layout of trec:')
  parser.add_argument('out', type=Path, help='the queries: id, tab, text')
  parser.add_argument('--count', type=int, default=1200, help='at most (%(default)s)')
  args = parser.parse_args()
  collection = trec.Folder(args.collection, {}, depth=0)
  titles = [doc.title for _, _, doc in collection.documents(BadRows())]
  seen = collections.Counter(phrase for title in titles for phrase in phrases(title))
  own = {query.text.strip().lower() for query in collection.queries(BadRows())}
  known = sorted(p for p, n in seen.items() if LEAST <= n <= MOST * len(titles) and p not in own)
  chosen = random.Random(0).sample(known, min(args.count, len(known)))
  args.out.parent.mkdir(parents=True, exist_ok=True)
  args.out.write_text(''.join(f'title{i}\t{text}\n' for i, text in enumerate(chosen)))
  print(f'{len(chosen)} queries of {len(known)} phrases in {len(titles)} titles: {args.out}')


if __name__ == '__main__':
  main()
