"""How deep the teacher should score: as many pairs, of many queries or of many documents each.

Each student starts as the one on labels alone and then sees the scores of 1,600 pairs of queries
without labels, three times. Documents are from all depths of the first stage's list. For
configs/collections/chorus_titles.py, whose lists are 100 deep; the quickstart's are 20.
"""

PAIRS = 1600


def row(docs: int):
  changes = {'data.limit.candidates': PAIRS // docs}
  changes |= {'score.group_size': docs, 'distill.group_size': docs, 'distill.epochs': 3.0}
  return 'student', changes | {'score.judgements': False, 'distill.hard_label_weight': 0.0}


ROWS = {
  'labels only': ('student_sft', {}),
  '160 queries x 10': row(10),
  '80 queries x 20': row(20),
  '32 queries x 50': row(50),
}
