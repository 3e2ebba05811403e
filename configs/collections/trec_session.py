"""Web search: TREC Session 2012, 187 queries judged 0 to 4; half of the topics are for the test.

python experiments/title_queries.py ../shared/data/trec-session-2012 runs/web.tsv --web --count 600
disranker run --config configs/collections/trec_session.py --config.data.fold=0

Queries of a topic share judgements, so they stay on one side. The judged documents are re-ranked.
The 259 clicks are too few for pre-training. As in chorus_titles.py, the teacher scores half of the
queries made of titles and the judged documents of the training queries for the student.
"""

import pathlib
import runpy

DATA = 'trec:../shared/data/trec-session-2012'


def get_config():
  chorus = pathlib.Path(__file__).with_name('chorus_titles.py')
  c = runpy.run_path(str(chorus))['get_config']()
  c.name = 'trec_session'
  c.data.update(judgements=DATA, candidates=f'{DATA}?queries=runs/web.tsv&run=bm25')
  c.data.update(test=f'{DATA}?pool=judged', holdout_by='^[^-]+')
  # Most pages are nearly max_len long: rows of four have less padding than rows of two.
  for side in (c.teacher, c.student):
    side.row_len = 256
  c.sft.batch_rows = 8
  for stage in (c.score, c.student_sft, c.distill, c.evaluate):
    stage.batch_rows = 16
  c.sft.epochs = 1.0
  c.student_sft.epochs = 6.0
  c.distill.epochs = 3.0
  c.evaluate.min_relevance = 1
  return c
