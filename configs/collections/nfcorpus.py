"""Medical search: NFCorpus, 2,590 training queries with candidates of BM25, 323 for the test.

  disranker run --config configs/collections/nfcorpus.py --workdir runs/nfcorpus

Only relevant documents are judged, so unjudged documents at BM25's ranks 5 to 100 serve as
negatives. Relevant documents are those in BM25's top 100, because 71 % of all share no word with
their query. BM25's top 20 are re-ranked. As in the quickstart, 600 training queries are used
(--config.data.limit.judgements=0 --config.data.limit.candidates=0 takes all). There are no clicks,
so no continued pre-training.

The folder below is read if it exists, as for the published results. Otherwise ir_datasets provides
the collection, and BM25 is computed here: 2,438 training queries have candidates.
"""

import pathlib
import runpy

FOLDER = '../shared/data/nfcorpus'


def addresses() -> dict[str, str]:
  if pathlib.Path(FOLDER).is_dir():
    test = f'trec:{FOLDER}'
    judgements, candidates = f'{test}?qrels=qrels.train.txt', f'{test}?only=qrels.train.txt'
    return {'judgements': f'{judgements}&pool=run', 'candidates': candidates, 'test': test}
  train, test = (f'ir_datasets:beir/nfcorpus/{part}' for part in ('train', 'test'))
  return {'judgements': f'{train}?pool=run', 'candidates': train, 'test': test}


def get_config():
  quickstart = pathlib.Path(__file__).parents[1] / 'quickstart.py'
  c = runpy.run_path(str(quickstart))['get_config']()
  c.stages = tuple(s for s in c.stages if s != 'cpt')
  c.data.update(clicks='', depth=20, **addresses())
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
