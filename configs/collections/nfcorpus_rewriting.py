"""Rewrites of medical questions: NFCorpus, 2,590 training queries with judged documents, 323 tests.

  disranker run --config configs/collections/nfcorpus_rewriting.py --workdir runs/nfcorpus-rewriting

There are no clicks, so the warm start (cpt) learns to write the titles of relevant documents; they
have about 15 words, of which it writes the first. Labels are graded.

The folder below is read if it exists, as for the published results. Otherwise ir_datasets provides
the collection.
"""

import pathlib
import runpy

FOLDER = '../shared/data/nfcorpus'


def addresses() -> dict[str, str]:
  if pathlib.Path(FOLDER).is_dir():
    test = f'trec:{FOLDER}'
    return {'judgements': f'{test}?qrels=qrels.train.txt', 'test': test, 'documents': test}
  train, test = (f'ir_datasets:beir/nfcorpus/{part}' for part in ('train', 'test'))
  return {'judgements': train, 'test': test, 'documents': test}


def get_config():
  here = pathlib.Path(__file__)
  c = runpy.run_path(str(here.parents[1] / 'query_rewriting.py'))['get_config']()
  c.data.update(clicks='judgements:', **addresses())
  # 110,575 relevant documents: a part of them is enough to learn what a title looks like.
  c.cpt.update(epochs=1.0, max_steps=60)
  c.rewriter.update(max_len=64, max_query_len=32, row_len=160)
  c.cpt.batch_rows = 12
  c.rewrite.max_new = 16
  # The collection's own split: 37 of the test's queries have the documents of training queries.
  c.data.allow_overlap = 0.12
  return c
