"""How a teacher's scores are normalised before the student learns them (`normalize_scores`).

With 'all' a query's mean is part of the target; with 'query' only what ranks its documents is. The
hard-label term is off unless the row names it.
"""

SOFT = {'distill.hard_label_weight': 0.0}
POINT = SOFT | {'distill.loss': 'point_mse'}
ALL, QUERY = ({'distill.normalize_scores': how} for how in ('all', 'query'))
ROWS = {
  'labels only': ('student_sft', {}),
  'Point-MSE, over all': ('student', POINT | ALL),
  'Point-MSE, by query': ('student', POINT | QUERY),
  'hybrid, over all': ('student', SOFT | ALL),
  'hybrid, by query': ('student', SOFT | QUERY),
  'hybrid + hard labels, by query': ('student', {'distill.hard_label_weight': 0.5} | QUERY),
  'teacher': ('teacher', {}),
}
