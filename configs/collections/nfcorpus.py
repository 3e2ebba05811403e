"""Medical search: NFCorpus, 2,590 training queries with candidates of BM25, 323 for the test.

  disranker run --config configs/collections/nfcorpus.py --workdir runs/nfcorpus

Only relevant documents are judged, so unjudged documents at BM25's ranks 5 to 100 serve as
negatives. Relevant documents are those in BM25's top 100, because 71 % of all share no word with
their query. BM25's top 20 are re-ranked. As in the quickstart, 600 training queries are used
(--config.data.limit.judgements=0 --config.data.limit.candidates=0 takes all). There are no clicks,
so no continued pre-training.
"""

import pathlib
import runpy

DATA = 'trec:../shared/data/nfcorpus'


def get_config():
  quickstart = pathlib.Path(__file__).parents[1] / 'quickstart.py'
  c = runpy.run_path(str(quickstart))['get_config']()
  c.name = 'nfcorpus'
  c.stages = tuple(s for s in c.stages if s != 'cpt')
  c.data.update(clicks='', judgements=f'{DATA}?qrels=qrels.train.txt&pool=run', test=DATA)
  c.data.update(candidates=f'{DATA}?only=qrels.train.txt', depth=20)
  c.data.negatives.update(count=20, min_rank=5, max_rank=100)
  c.data.limit.update(judgements=600, candidates=600, test=0)
  for side in (c.teacher, c.student):
    side.update(max_len=64, row_len=128)
  c.sft.update(max_steps=24, batch_rows=16)
  c.score.update(batch_rows=32, judgements=False)
  c.student_sft.update(batch_rows=32)
  c.distill.update(batch_rows=32, hard_label_weight=0.0)
  c.evaluate.update(batch_rows=32, min_relevance=1)
  return c
