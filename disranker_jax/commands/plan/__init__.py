"""Plan before you pay: a stage's real step, compiled for a TPU slice on a machine that has none.

`disranker plan --config FILE --stage cpt --topology v5e:4x4`
"""

STAGES = ('cpt', 'sft', 'score', 'student_sft', 'distill')
