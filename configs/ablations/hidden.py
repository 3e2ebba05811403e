"""Hidden states and hard labels beside the teacher's scores (table 3's hidden terms).

For --config configs/uniform_architecture.py: states are compared token by token, so the teacher
must read the student's tokens.
"""

HIDDEN = {'distill.hidden_weight': 1.0}
SOFT = {'distill.hard_label_weight': 0.0}
ROWS = {
  'labels only': ('student_sft', {}),
  'scores': ('student', SOFT),
  'scores + hidden states': ('student', SOFT | HIDDEN),
  'scores + hard labels': ('student', {}),
  'scores + hard labels + hidden states': ('student', HIDDEN),
  'teacher': ('teacher', {}),
}
