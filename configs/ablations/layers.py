"""Which half of a six-layer encoder the student starts from.

The paper takes six of twelve layers; for a student of twelve, double the numbers. Every row is
fine-tuned and distilled in the same way. The whole encoder is the upper bound.
"""

ROWS = {
  'all six layers': ('student', {'student.layers': ()}),
  'first three (0, 1, 2)': ('student', {'student.layers': (0, 1, 2)}),
  'every other (0, 2, 4)': ('student', {'student.layers': (0, 2, 4)}),
  'last three (3, 4, 5)': ('student', {'student.layers': (3, 4, 5)}),
}
AGAINST = 'first three (0, 1, 2)'
