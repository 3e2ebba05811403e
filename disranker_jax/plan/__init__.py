"""Plan before you pay: a stage's real step, compiled for a TPU slice on a machine that has none.

`python -m disranker_jax.plan --config FILE --stage cpt --topology v5e:4x4`
"""

STAGES = ('cpt', 'sft', 'score', 'finetune', 'distill')
