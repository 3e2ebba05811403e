"""Which documents of a query the teacher scores: the first stage's best, or some of every depth.

Both are as many. What the student will re-rank holds good and bad documents; the first stage's best
may all be alike.
"""

ROWS = {
  'labels only': ('student_sft', {}),
  'the top': ('student', {'score.ranks': 'top'}),
  'of every depth': ('student', {'score.ranks': 'spread'}),
  'teacher': ('teacher', {}),
}
