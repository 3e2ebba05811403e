"""The documents name what exists: files, commands, config keys and modules."""

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import names as benches
from disranker_jax import config as configs
from disranker_jax.commands import cli
from disranker_jax.pipeline.all_systems import SYSTEMS

ROOT = Path(__file__).parents[1]
DOCS = [f for f in sorted(ROOT.rglob('*.md')) if '.venv' not in f.parts and 'runs' not in f.parts]
COMMANDS = [
  *DOCS,
  *sorted((ROOT / 'launch').glob('*.sh')),
  *sorted((ROOT / 'configs').rglob('*.py')),
]
ROOTS = ('configs', 'docs', 'experiments', 'launch', 'tests', 'disranker_jax', 'benchmarks')


def ids(file: Path) -> str:
  return str(file.relative_to(ROOT))


def known_keys() -> set[str]:
  """Every config key and section of every system, dotted."""
  keys = {key for system in SYSTEMS for key in configs.flatten(configs.defaults(system))}
  return {'.'.join(key.split('.')[:n]) for key in keys for n in range(1, key.count('.') + 2)}


def anchor(heading: str) -> str:
  """The anchor that GitHub gives a heading."""
  words = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).lower()
  return re.sub(r'[^\w\- ]', '', words).strip().replace(' ', '-')


def anchors(file: Path) -> set[str]:
  text = re.sub(r'^```.*?^```', '', file.read_text(), flags=re.M | re.S)
  return {anchor(heading) for heading in re.findall(r'^#+ (.*)$', text, re.M)}


@pytest.mark.parametrize('file', DOCS, ids=ids)
def test_relative_links_lead_to_files_and_headings(file):
  for link in re.findall(r'\]\(([^)\s]+)\)', file.read_text()):
    if re.match(r'https?:|mailto:', link):
      continue
    path, _, heading = link.partition('#')
    target = file.parent / path if path else file
    assert target.exists(), f'{link}: no such file'
    assert not heading or heading in anchors(target), f'{link}: no such heading'


@pytest.mark.parametrize('file', DOCS, ids=ids)
def test_files_of_the_repository_that_are_named_exist(file):
  inside = '|'.join(ROOTS)
  for path in re.findall(
    rf'(?<![\w/.])((?:{inside})/[\w./-]*\w\.(?:py|md|sh|html|ipynb|yaml))\b', file.read_text()
  ):
    assert 'NAME' in path or (ROOT / path).exists(), f'{path}: no such file'


@pytest.mark.parametrize('file', COMMANDS, ids=ids)
def test_commands_and_config_keys_that_are_named_exist(file):
  text, keys = file.read_text(), known_keys()
  for key in re.findall(r'--config\.([a-z_][\w.]*\w)', text):
    known = key in keys or key.rpartition('.')[0] in configs.mappings()
    assert known, f'--config.{key}: no such key'
  for command in re.findall(r'(?:^|[`\s])disranker ([a-z]+)(?=[\s`])', text):
    assert command in cli.COMMANDS, f'disranker {command}: no such command'
  for plan in re.findall(r'disranker plan [^`\n]*(?:\\\n[^`\n]*)*', text):
    on_slice = re.search(r'--topology[= ]v', plan)
    assert not on_slice or '--stage' in plan, f'{plan}: a TPU slice needs a --stage'
  for bench in re.findall(r'disranker bench ([a-z]+)', text):
    assert bench in benches(), f'disranker bench {bench}: no such bench'
