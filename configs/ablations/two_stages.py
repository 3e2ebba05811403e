"""Rank-DistiLLM's two stages: contrastive on labels, then the order in which a teacher ranks.

For --config configs/rank_distillm.py: the second stage begins where the first one ended, and takes
of the teacher's scores nothing but their order.
"""

ROWS = {
  'InfoNCE on labels': ('finetuned', {}),
  'then RankNet': ('student', {'distill.loss': 'ranknet'}),
  'then ADR-MSE': ('student', {'distill.loss': 'adr_mse'}),
  'teacher': ('teacher', {}),
}
