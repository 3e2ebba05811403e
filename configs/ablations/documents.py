"""Which documents of a query the teacher scores: the first stage's best, or some of every depth.

Their number is the same. The student will re-rank good and bad documents; the first stage's best
may all be good.
"""

ROWS = {
  'labels only': ('student_sft', {}),
  'the top': ('student', {'score.ranks': 'top'}),
  'of every depth': ('student', {'score.ranks': 'spread'}),
  'teacher': ('teacher', {}),
}
