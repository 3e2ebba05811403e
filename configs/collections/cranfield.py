"""Classic abstracts: Cranfield, 225 queries judged 1 to 4; half of them for the test.

  disranker run --config configs/collections/cranfield.py --config.data.fold=0

BM25's top 20 are re-ranked. Only relevant documents are judged, so unjudged documents at BM25's
ranks 5 to 100 serve as negatives. The documents of qrels.code-1.txt look like the best answers and
are left out. Questions are long: 20 tokens cut them in 46 % of the pairs, 48 in 1 %. Most abstracts
are cut; with its question the median has 248 tokens. There are no clicks, so no continued
pre-training.
"""

import pathlib
import runpy

DATA = 'trec:../shared/data/cranfield'


def get_config():
  nfcorpus = pathlib.Path(__file__).with_name('nfcorpus.py')
  c = runpy.run_path(str(nfcorpus))['get_config']()
  c.name = 'cranfield'
  c.data.update(judgements=f'{DATA}?without=qrels.code-1.txt', candidates=DATA, test=DATA)
  c.data.holdout = 0.5
  c.data.limit.update(judgements=0, candidates=0)
  for side in (c.teacher, c.student):
    side.update(max_len=128, max_query_len=48, row_len=256)
  c.sft.batch_rows = 8
  for stage in (c.score, c.student_sft, c.distill, c.evaluate):
    stage.batch_rows = 16
  c.score.update(group_size=20, shard_queries=50)
  c.student_sft.epochs = 4.0
  c.distill.epochs = 4.0
  c.evaluate.min_relevance = 2
  return c
