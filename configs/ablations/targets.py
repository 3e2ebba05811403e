"""What a teacher's scores become before the student learns them (`distill.normalize_scores`).

Over all scores, a query's mean is a target too; around each query's own mean, only what ranks its
documents is. The pairwise term on hard labels is off unless the row says so.
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
