"""`disranker plan`: a stage's real step, compiled for a TPU slice on a machine without one."""

STAGES = ('cpt', 'sft', 'score', 'student_sft', 'distill')
