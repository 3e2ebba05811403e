"""Without a click log: what continued pre-training on judged documents is worth.

Every document with a label of 1 or more counts as a click of its query, before the rank loss. For
configs/collections/nfcorpus.py, whose teacher without it ranks no better than a student on labels
alone. 60 steps are about 2,400 such clicks.
"""

CLICKS = {'data.clicks': 'judgements:', 'cpt.max_steps': 60}
TEACHER = {'stages': ('prepare', 'cpt', 'sft', 'evaluate')}
STUDENT = {
  'stages': ('prepare', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate'),
}
HARD = {'score.judgements': True, 'distill.hard_label_weight': 0.5}

ROWS = {
  'labels only': ('student_sft', {}),
  'BM25': ('bm25', {}),
  'teacher, CPT on judged documents': ('teacher', CLICKS | TEACHER),
  'distilled from it': ('student', CLICKS | STUDENT),
  'distilled from it, hard labels beside': ('student', CLICKS | STUDENT | HARD),
  'teacher, no CPT': ('teacher', {}),
}
