"""How much Margin-MSE weighs in the hybrid loss (the paper's beta, 0.4).

0 is Point-MSE alone. The hard-label term is off, so that no other loss orders pairs.
"""

ROWS = {
  f'beta = {beta}': ('student', {'distill.hard_label_weight': 0.0, 'distill.beta': beta})
  for beta in (0.4, 0.0, 0.1, 1.0, 2.0, 5.0)
}
