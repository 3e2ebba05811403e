"""How much teacher data is enough: queries that the teacher scores, and documents of each.

Each student starts as the one on labels alone and then sees only scores of unlabeled queries, about
the same number in all, so fewer queries are seen more often. The quickstart has at most 845 queries
without labels.
"""

SEEN = 1500


def row(queries: int, docs: int):
  changes = {'data.limit.candidates': queries, 'distill.epochs': SEEN / queries}
  changes |= {'score.group_size': docs, 'distill.group_size': docs}
  return 'student', changes | {'score.judgements': False, 'distill.hard_label_weight': 0.0}


ROWS = {
  'labels only': ('student_sft', {}),
  '100 queries x 6': row(100, 6),
  '200 queries x 6': row(200, 6),
  '400 queries x 6': row(400, 6),
  '800 queries x 6': row(800, 6),
  '200 queries x 12': row(200, 12),
}
