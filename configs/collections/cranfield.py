"""Classic abstracts: Cranfield, 225 queries judged 1 to 4; half of them for the test.

  disranker run --config configs/collections/cranfield.py --config.data.fold=0

BM25's top 20 are re-ranked. Only relevant documents are judged, so unjudged documents at BM25's
ranks 5 to 100 serve as negatives. The documents of qrels.code-1.txt look like the best answers and
are left out. Questions are long: 20 tokens cut them in 46 % of the pairs, 48 in 1 %. Most abstracts
are cut; with its question the median has 248 tokens. There are no clicks, so no continued
pre-training.

The grades are 5 minus the collection's codes, of which 1 is the best. ir_datasets gives the codes
themselves, so `ir_datasets:cranfield` would reward the worst documents.
"""

import pathlib
import runpy

from disranker_jax.config import trec_folder

FOLDER = '../shared/data/cranfield'
SOURCE = 'cran.all.1400, cran.qry and cranqrel of the Cranfield collection (grades: 5 - code)'


def get_config():
  address = trec_folder(FOLDER, SOURCE)
  nfcorpus = pathlib.Path(__file__).with_name('nfcorpus.py')
  c = runpy.run_path(str(nfcorpus))['get_config']()
  c.data.judgements = f'{address}?without=qrels.code-1.txt'
  c.data.update(candidates=address, test=address)
  c.data.holdout = 0.5
  c.data.limit.update(judgements=0, candidates=0)
  for side in (c.teacher, c.student):
    side.update(max_len=128, max_query_len=48, row_len=256)
  c.sft.batch_rows = 8
  for stage in (c.score, c.student_sft, c.distill, c.evaluate):
    stage.batch_rows = 16
  c.score.update(group_size=20)
  c.student_sft.epochs = 4.0
  c.distill.epochs = 4.0
  c.evaluate.min_relevance = 2
  return c
