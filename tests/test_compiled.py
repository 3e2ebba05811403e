"""The folder of compiled programs that tests share."""

import compiled
import jax


def test_programs_of_other_versions_of_jax_are_deleted_and_no_others(tmp_path, monkeypatch):
  now = compiled.folder(tmp_path)
  former = tmp_path / compiled.processor()  # the name had no version
  other_machine = tmp_path / f'{"0" * 16}-{jax.__version__}'
  for each in (now, former, other_machine, tmp_path / 'mine'):
    each.mkdir()
    (each / 'jit_f-cache').touch()
  compiled.delete_former(tmp_path)
  assert {f.parent for f in tmp_path.glob('*/jit_f-cache')} == {
    now, other_machine, tmp_path / 'mine',
  }  # fmt: skip
  monkeypatch.setattr(jax, '__version__', '9.9')
  compiled.delete_former(tmp_path)
  assert not now.exists()
