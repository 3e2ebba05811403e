"""How much teacher data is enough: queries that the teacher scores, and documents of each.

Every student sees about as many queries in all, so that few of them are seen often. The quickstart
has at most 845 queries without labels (config.data.limit.candidates=0 takes all).
"""

SEEN = 1500


def row(queries: int, docs: int = 6):
  changes = {'data.limit.candidates': queries, 'distill.epochs': SEEN / queries}
  return 'student', changes | {'score.group_size': docs, 'distill.group_size': docs}


ROWS = {
  '600 queries x 6': row(600),
  '100 queries x 6': row(100),
  '200 queries x 6': row(200),
  '400 queries x 6': row(400),
  '800 queries x 6': row(800),
  '300 queries x 12': row(300, 12),
}
