"""Rank-DistiLLM's two stages beside this package's: contrastive first, then a teacher's order.

Both begin with labels, here by the pairwise hinge loss, there by InfoNCE, and go on from there with
the same teacher's scores of the same pairs: here with the hybrid loss on scores and hard labels,
there with nothing but the order of the scores (configs/rank_distillm.py).
"""

HINGE = {'finetune.loss': 'pairwise_hinge'}
CONTRASTIVE = {'finetune.loss': 'info_nce'}
ON = {'distill.start': 'finetune'}
HYBRID = HINGE | ON | {'distill.loss': 'hybrid', 'distill.hard': 0.5}
ORDER = CONTRASTIVE | ON | {'distill.standardise': '', 'distill.hard': 0.0}
ROWS = {
  'hinge on labels': ('finetuned', HINGE),
  'then hybrid + hard labels': ('student', HYBRID),
  'InfoNCE on labels': ('finetuned', CONTRASTIVE),
  'then RankNet on the order': ('student', ORDER | {'distill.loss': 'ranknet'}),
  'then ADR-MSE on the order': ('student', ORDER | {'distill.loss': 'adr_mse'}),
}
AGAINST = 'then hybrid + hard labels'
