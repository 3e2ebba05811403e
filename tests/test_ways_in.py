"""The ways into the project that no other test runs: the CI workflow and the notebook."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

REPO = Path(__file__).parents[1]
TEXT = {'type': 'string', 'minLength': 1}
STEP = {
  'type': 'object',
  'oneOf': [{'required': ['run']}, {'required': ['uses']}],
  'properties': {
    'run': TEXT,
    'uses': {'type': 'string', 'pattern': r'^actions/[a-z-]+@v\d+$'},
    'with': {'type': 'object'},
  },
  'additionalProperties': False,
}
# The part of GitHub's workflow syntax that is in use.
WORKFLOW = {
  'type': 'object',
  'required': ['name', 'permissions', 'jobs'],
  'properties': {
    'permissions': {'const': {'contents': 'read'}},
    'jobs': {
      'additionalProperties': {
        'type': 'object',
        'required': ['runs-on', 'timeout-minutes', 'steps'],
        'properties': {
          'runs-on': TEXT,
          'timeout-minutes': {'type': 'integer', 'minimum': 1},
          'steps': {'type': 'array', 'items': STEP, 'minItems': 1},
        },
        'additionalProperties': False,
      }
    },
  },
}


def test_the_workflow_runs_what_ci_runs_on_push_and_pull_request():
  workflow = yaml.safe_load((REPO / '.github/workflows/ci.yml').read_text())
  jsonschema.validate(workflow, WORKFLOW)
  assert {'push', 'pull_request'} <= set(workflow[True])  # PyYAML reads the key `on` as True
  commands = [step.get('run') for job in workflow['jobs'].values() for step in job['steps']]
  assert 'bash .ci/run' in commands


def test_the_workflow_calls_make_targets_that_exist():
  targets = set(re.findall(r'^([a-z-]+):', (REPO / 'Makefile').read_text(), re.M))
  scripts = (REPO / '.ci/run').read_text() + (REPO / '.github/workflows/ci.yml').read_text()
  called = set(re.findall(r'\bmake ([a-z-]+)', scripts))
  assert called and called <= targets


def notebook() -> list[dict]:
  return json.loads((REPO / 'docs/quickstart.ipynb').read_text(encoding='utf-8'))['cells']


def test_the_notebook_is_committed_without_outputs():
  code = [cell for cell in notebook() if cell['cell_type'] == 'code']
  assert code
  assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)


RUNNER = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for source in json.load(sys.stdin):
  shell.run_cell(source).raise_error()
  assert not shell.user_ns.get('_exit_code'), source  # of the last ! command
"""


@pytest.mark.slow  # Runs every stage.
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
  pytest.importorskip('IPython')
  sources = [''.join(cell['source']) for cell in notebook() if cell['cell_type'] == 'code']
  # The command runs this checkout, and the notebook installs nothing where the command exists.
  command = tmp_path / 'disranker'
  code = 'from disranker_jax.commands.cli import main; main()'
  command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
  command.chmod(0o755)
  environment = os.environ | {
    'DISRANKER_NOTEBOOK_CONFIG': 'configs/tiny.py',
    'DISRANKER_NOTEBOOK_WORKDIR': str(tmp_path / 'run'),
    'IPYTHONDIR': str(tmp_path / 'ipython'),
    'PATH': f'{tmp_path}:{os.environ["PATH"]}',
    'PYTHONPATH': os.pathsep.join([str(REPO), os.environ.get('PYTHONPATH', '')]),
  }
  done = subprocess.run(
    [sys.executable, '-c', RUNNER], input=json.dumps(sources), env=environment,
    cwd=REPO / 'docs', capture_output=True, text=True, timeout=900,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  assert '<IPython.core.display.HTML object>' in done.stdout
  assert len(re.findall(r'^ *-?\d+\.\d{3}  \S+ : ', done.stdout, re.M)) == 3
