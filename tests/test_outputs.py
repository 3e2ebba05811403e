"""The file that a flag names as output: what is refused, and how it is replaced."""

import os

import pytest

from disranker_jax import outputs
from disranker_jax.errors import UserError


def test_what_cannot_be_written_is_refused_with_a_reason(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'to_folder').symlink_to(tmp_path / 'folder')
  (tmp_path / 'nowhere').symlink_to(tmp_path / 'gone' / 'file')
  for name, why in (
    ('pipe', 'is a pipe or a device; name a file'),
    ('to_folder', 'is a folder; name a file in it'),
    ('nowhere', 'its folder does not exist; create it'),
    ('gone/file', 'its folder does not exist; create it'),
  ):
    with pytest.raises(UserError) as caught:
      outputs.target(tmp_path / name, flag='--to')
    assert str(caught.value) == f'--to {tmp_path / name}: {why}'


def test_an_input_is_refused_under_every_name(tmp_path):
  file = tmp_path / 'input'
  file.touch()
  (tmp_path / 'soft').symlink_to(file)
  (tmp_path / 'hard').hardlink_to(file)
  for name in ('input', 'soft', 'hard'):
    with pytest.raises(UserError, match=f'{name}: is the input; name another file'):
      outputs.target(tmp_path / name, {'the input': file})
  assert outputs.target(tmp_path / 'new', {'the input': file}) == tmp_path / 'new'


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
  file = tmp_path / 'file'
  file.write_text('old')
  with pytest.raises(RuntimeError), outputs.replacing(file) as new:
    new.write_text('half')
    raise RuntimeError
  assert file.read_text() == 'old' and list(tmp_path.iterdir()) == [file]
  with outputs.replacing(file) as new:
    new.write_text('new')
  assert file.read_text() == 'new' and list(tmp_path.iterdir()) == [file]
