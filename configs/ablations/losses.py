"""What the student is distilled with (the paper's table 3).

Every student starts where the base config says and sees the same pairs of one teacher; only the
loss differs. `hybrid` is the paper's Point-MSE + 0.4 Margin-MSE. The hard-label term is off unless
the row names it.
"""

SOFT = {'distill.hard_label_weight': 0.0}
ROWS = {
  'labels only': ('student_sft', {}),
  'Point-MSE': ('student', SOFT | {'distill.loss': 'point_mse'}),
  'Margin-MSE': ('student', SOFT | {'distill.loss': 'margin_mse'}),
  'hybrid': ('student', SOFT),
  'hybrid + hard labels': ('student', {'distill.hard_label_weight': 0.5}),
  'RankNet': ('student', SOFT | {'distill.loss': 'ranknet'}),
  'ADR-MSE': ('student', SOFT | {'distill.loss': 'adr_mse'}),
  'listwise KL': ('student', SOFT | {'distill.loss': 'listwise_kl'}),
  'teacher': ('teacher', {}),
}
