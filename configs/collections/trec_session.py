"""Web search: TREC Session 2012, 187 queries judged 0 to 4; half of the topics are for the test.

python experiments/title_queries.py ../shared/data/trec-session-2012 runs/web.tsv --web --count 600
disranker run --config configs/collections/trec_session.py --config.data.fold=0

Queries of a topic share judgements, so they stay on one side. The judged documents are re-ranked.
The 259 clicks are too few for pre-training. As in chorus_titles.py, the teacher scores half of the
queries made of titles and the judged documents of the training queries for the student.
"""

import pathlib
import runpy

from disranker_jax.config import trec_folder

FOLDER = '../shared/data/trec-session-2012'
SOURCE = 'the log and judgements of the Session track 2012 from https://trec.nist.gov'


def get_config():
  address = trec_folder(FOLDER, SOURCE)
  chorus = pathlib.Path(__file__).with_name('chorus_titles.py')
  c = runpy.run_path(str(chorus))['get_config'](address, titles='runs/web.tsv')
  c.data.holdout_by = '^[^-]+'
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
