"""Rank-DistiLLM's two stages beside this package's: contrastive first, then a teacher's order.

Both start with labels, here by the pairwise hinge loss, there by InfoNCE. Both then learn from the
same teacher's scores of the same pairs: here by the hybrid loss and hard labels, there only by the
order of the scores (configs/rank_distillm.py).
"""

HINGE = {'student_sft.loss': 'pairwise_hinge'}
CONTRASTIVE = {'student_sft.loss': 'info_nce'}
ON = {'distill.init_from': 'student_sft'}
HYBRID = HINGE | ON | {'distill.loss': 'hybrid', 'distill.hard_label_weight': 0.5}
ORDER = CONTRASTIVE | ON | {'distill.normalize_scores': '', 'distill.hard_label_weight': 0.0}
ROWS = {
  'hinge on labels': ('student_sft', HINGE),
  'then hybrid + hard labels': ('student', HYBRID),
  'InfoNCE on labels': ('student_sft', CONTRASTIVE),
  'then RankNet on the order': ('student', ORDER | {'distill.loss': 'ranknet'}),
  'then ADR-MSE on the order': ('student', ORDER | {'distill.loss': 'adr_mse'}),
}
AGAINST = 'then hybrid + hard labels'
