"""The margin T of the teacher's pairwise hinge loss (the paper's T, 0.1).

Scores are logits of a new head or mean log-probabilities, so how wide a margin is depends on the
base config's teacher.scorer.
"""

ROWS = {f'T = {margin}': ('teacher', {'sft.margin': margin}) for margin in (0.1, 0.0, 1.0, 3.0)}
