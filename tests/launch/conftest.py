"""Fixtures of the launchers' tests."""

import pytest
from launching import Stubs


@pytest.fixture
def stubs(tmp_path):
  """A folder of stubs instead of gcloud, python and the like."""
  return Stubs(tmp_path)
