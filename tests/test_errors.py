"""What messages repeat of other libraries' errors is one short line, and never nothing."""

import pytest

from disranker_jax.errors import first_line, reason


@pytest.mark.parametrize(
  ('error', 'whole', 'first'),
  [
    (ValueError('\n bad  value\n\tat byte 3\n'), 'bad value at byte 3', 'bad  value'),
    (KeyError(), 'KeyError', 'KeyError'),
    (OSError(' \n'), 'OSError', 'OSError'),
    (ValueError('x' * 400), 'x' * 200, 'x' * 300),
  ],
)
def test_an_error_of_another_library_is_one_line(error, whole, first):
  assert (reason(error), first_line(error)) == (whole, first)


def test_the_last_line_is_the_one_of_a_program_that_failed():
  assert first_line('Collecting a\nERROR: no such wheel\n\n', last=True) == 'ERROR: no such wheel'
