"""What the launchers would run: golden files, quoting through every layer, schemas, shellcheck."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml
from launching import CASES, GOLDEN, REPO, REQUIRED, TPU

from disranker_jax import config, main
from disranker_jax.commands import common
from disranker_jax.devices import processes

AWKWARD = (
  'a b', "it's", 'say "so"', '$HOME', '${RUN_ID}', '$(date)', '`date`', 'a\\b', '*', 'a & b; c',
  '#no', '~', 'é', '', '!!', '$$', '{query} : {title}', "'", '"', '--',
)  # fmt: skip


def remote(out: str) -> list[str]:
  """The words of what a TPU worker runs."""
  line = next(x for x in out.splitlines() if 'launch/run.sh' in x)
  command = next(w for w in shlex.split(line) if w.startswith('--command='))
  return shlex.split(command.removeprefix('--command='))


def in_pod(out: str) -> list[str]:
  """The arguments of what a pod runs, after Kubernetes has turned $$ into $."""
  container = pod(yaml.safe_load(out))['containers'][0]
  assert not any(re.search(r'(?<!\$)(\$\$)*\$\(', a) for a in container['args'])
  return container['command'] + [a.replace('$$', '$') for a in container['args']]


def pod(jobset):
  return jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


def on_node(out: str) -> list[str]:
  """The words that sky.yaml's `run` evaluates."""
  words = shlex.split(out)
  return shlex.split(next(w for w in words if w.startswith('FLAGS=')).removeprefix('FLAGS='))


def last_line(out: str) -> list[str]:
  return shlex.split(out.splitlines()[-1])


# Launcher -> from what a dry run prints, the words of the command that it comes to in the end.
PROGRAM = {
  'tpu_pod.sh': remote, 'gke.sh': in_pod, 'sky.sh': on_node, 'slurm.sh': last_line,
  'gpu_pmap.sh': last_line,
}  # fmt: skip


def arguments(script: str, out: str) -> list[str]:
  words = PROGRAM[script](out)
  return words[words.index('--config') :]


@pytest.mark.parametrize('name', CASES)
def test_dry_run_prints_the_golden_file(stubs, name):
  script, variables, args = CASES[name]
  expected = (GOLDEN / f'{name}.txt').read_text()
  hint = 'if the change is meant: python tests/launch/launching.py'
  assert stubs.dry_run(script, *args, **variables) == expected, hint


def test_every_launcher_has_a_golden_file():
  parts = {'run.sh', 'common.sh', 'tpu_setup.sh'}  # called by launchers
  assert {f.name for f in (REPO / 'launch').glob('*.sh')} - parts == {c[0] for c in CASES.values()}
  assert {f.stem for f in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize('script', REQUIRED)
def test_workdir_and_overrides_arrive_intact(stubs, script):
  values = [f'--config.teacher.template={a}' for a in AWKWARD]
  out = stubs.dry_run(script, *values, WORKDIR="/data/my 'own' $run")
  words = arguments(script, out)
  assert words[2:4] == ['--workdir', "/data/my 'own' $run"]
  assert words[-len(values) :] == values
  if script != 'gke.sh':
    subprocess.run(['bash', '-n'], input=out, text=True, check=True)


@pytest.mark.parametrize('script', [s for s in REQUIRED if s not in ('gke.sh', 'sky.sh')])
def test_bash_reads_back_what_is_printed(stubs, script):
  out = stubs.dry_run(script, *AWKWARD)
  line = next(x for x in out.splitlines() if 'disranker_jax.main' in x or 'launch/run.sh' in x)
  read = subprocess.run(['bash', '-c', f'printf "%s\\0" {line}'], capture_output=True, text=True)
  assert read.stdout.split('\0')[:-1] == shlex.split(line)


@pytest.mark.parametrize('script', REQUIRED)
def test_dry_run_may_stand_anywhere(stubs, script):
  first = stubs.dry_run(script, '--stages=cpt', '--rerun=cpt')
  last = stubs.call(script, '--stages=cpt', '--dry-run', '--rerun=cpt', **REQUIRED[script])
  assert last.stdout == first
  assert not stubs.calls()


@pytest.mark.parametrize('script', REQUIRED)
def test_the_program_accepts_the_flags(stubs, script):
  args = ['--stages=cpt,sft', '--config.cpt.max_steps=7', '--config.mesh.model=2']
  words = arguments(script, stubs.dry_run(script, *args, CONFIG='configs/tiny.py'))
  words[1] = str(REPO / words[1])
  read = main.parser().parse_args(words)
  config = common.load_config(read.config, read.overrides)
  assert read.stages == ['cpt', 'sft']
  assert (config.cpt.max_steps, config.mesh.model) == (7, 2)


def test_gpu_pmap_is_data_parallel_unless_asked_otherwise(stubs):
  def mesh(*args):
    words = arguments('gpu_pmap.sh', stubs.dry_run('gpu_pmap.sh', *args))
    return dict(w.split('=') for w in words if w.startswith('--config.mesh'))  # the last one wins

  fixed = {'--config.mesh.fsdp': '1', '--config.mesh.model': '1'}
  assert mesh() == fixed | {'--config.mesh.data': '-1'}
  assert mesh('--config.mesh.data=1', '--config.mesh.fsdp=-1')['--config.mesh.fsdp'] == '-1'


@pytest.mark.parametrize('script,name', [(s, n) for s in REQUIRED for n in REQUIRED[s]])
def test_a_missing_variable_is_named(stubs, script, name):
  variables = {k: v for k, v in REQUIRED[script].items() if k != name}
  done = stubs.call(script, '--dry-run', **variables)
  assert done.returncode
  assert f'{name}: set {name} to' in done.stderr
  assert not done.stdout


@pytest.mark.parametrize(
  'script,variables,said',
  [
    ('tpu_pod.sh', {'CAPACITY': 'cheap'}, 'CAPACITY=cheap: must be spot, reserved or on-demand'),
    ('tpu_pod.sh', {'RUN_ID': 'My_run'}, 'RUN_ID=My_run'),
    ('tpu_pod.sh', {'RUN_ID': 'run-'}, 'RUN_ID=run-'),
    ('tpu_pod.sh', {'RUN_ID': 'r' * 41}, 'at most 40 characters'),
    ('gke.sh', {'CAPACITY': 'reserved'}, 'RESERVATION: set RESERVATION to'),
    ('gke.sh', {'TOPOLOGY': '8by8'}, 'TOPOLOGY=8by8: must be like 8x8'),
    ('gke.sh', {'TOPOLOGY': '1x1'}, 'fewer than CHIPS_PER_HOST=4 chips'),
    ('gke.sh', {'WORKDIR': 'a\nb'}, 'control character'),
    *(
      (name, {'CONFIG': 'configs/none.py'}, 'CONFIG=configs/none.py: no such file in ')
      for name in REQUIRED
      if name != 'gpu_pmap.sh'  # where the program says it at once
    ),
    ('slurm.sh', {'TASKS': 'core'}, 'TASKS=core: must be gpu or node'),
    ('sky.sh', {'BUCKET': 's3://ours'}, 'BUCKET=s3://ours: must be a gs:// address'),
  ],
)
def test_what_cannot_work_is_refused(stubs, script, variables, said):
  done = stubs.call(script, '--dry-run', **REQUIRED[script] | variables)
  assert done.returncode
  assert said in done.stderr
  assert not done.stdout


YAML = 'x\n                  securityContext: {privileged: true}'


@pytest.mark.parametrize('value', [YAML, 'x: y', '*x', '"x"', 'x y', '${ARGS}', '-x'])
@pytest.mark.parametrize(
  'name', ['IMAGE', 'BUCKET', 'ACCELERATOR', 'SERVICE_ACCOUNT', 'RESERVATION']
)
def test_a_variable_cannot_add_to_the_manifest(stubs, name, value):
  variables = (
    REQUIRED['gke.sh'] | ({'CAPACITY': 'reserved'} if name == 'RESERVATION' else {}) | {name: value}
  )
  done = stubs.call('gke.sh', '--dry-run', **variables)
  assert (done.returncode, done.stdout) == (2, '')
  assert f'{name}=' in done.stderr and 'use letters, digits' in done.stderr


@pytest.mark.parametrize(
  'script,name',
  [('gke.sh', 'CHIPS_PER_HOST'), ('gke.sh', 'RETRIES'), ('tpu_pod.sh', 'RETRIES'),
   ('tpu_pod.sh', 'POLL_SECONDS'), ('slurm.sh', 'GPUS'), ('slurm.sh', 'NODES'),
   ('slurm.sh', 'RETRIES'), ('sky.sh', 'RETRIES')],
)  # fmt: skip
def test_a_number_is_not_evaluated(stubs, script, name):
  variables = REQUIRED[script] | {name: f'PATH[0$(touch {stubs.folder}/PWNED)]', 'TASKS': 'node'}
  done = stubs.call(script, '--dry-run', **variables)
  assert (done.returncode, done.stdout) == (2, '')
  assert f'{name}=' in done.stderr and 'must be a whole number' in done.stderr
  assert not (stubs.folder / 'PWNED').exists()


@pytest.mark.parametrize('script', REQUIRED)
def test_help_is_the_head_comment(stubs, script):
  done = stubs.call(script, '--help')
  assert done.returncode == 0
  assert f'launch/{script} [--dry-run]' in done.stdout
  assert 'set -euo' not in done.stdout
  stages = config.defaults().stages
  assert f'`{stages[0]} (1/{len(stages)})`' in done.stdout  # as the log has it
  for name in REQUIRED[script]:
    assert re.search(rf'^{name}\b.* required|^[A-Z, ]*\b{name}\b.*required', done.stdout, re.M)


@pytest.mark.parametrize('topology,chips,hosts', [('8x8', 4, 16), ('2x2x4', 4, 4), ('2x4', 8, 1)])
def test_gke_counts_hosts(stubs, topology, chips, hosts):
  out = stubs.dry_run('gke.sh', TOPOLOGY=topology, CHIPS_PER_HOST=str(chips))
  job = yaml.safe_load(out)['spec']['replicatedJobs'][0]['template']['spec']
  assert (job['parallelism'], job['completions']) == (hosts, hosts)
  assert pod(yaml.safe_load(out))['containers'][0]['resources']['limits']['google.com/tpu'] == chips


def strict(required: dict, optional: dict | None = None) -> dict:
  """A schema of a mapping with these keys and no others."""
  both = required | (optional or {})
  return {'type': 'object', 'properties': both, 'required': [*required],
          'additionalProperties': False}  # fmt: skip


def listed(schema: dict) -> dict:
  return {'type': 'array', 'items': schema, 'minItems': 1}


TEXT, COUNT = {'type': 'string', 'minLength': 1}, {'type': 'integer', 'minimum': 1}
NAME = {'type': 'string', 'pattern': '^[a-z]([a-z0-9-]*[a-z0-9])?$', 'maxLength': 63}
TEXTS = {'type': 'object', 'additionalProperties': TEXT}
# The part of jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 that is in use here; Kubernetes takes
# no other types either: annotations, labels and variables must be strings.
CONTAINER = strict({
  'name': NAME, 'image': TEXT, 'command': listed(TEXT), 'args': listed({'type': 'string'}),
  'env': listed({'oneOf': [
    strict({'name': TEXT, 'value': TEXT}),
    strict({'name': TEXT, 'valueFrom': strict({'fieldRef': strict({'fieldPath': TEXT})})}),
  ]}),
  'ports': listed(strict({'containerPort': COUNT})),
  'resources': strict({'limits': strict({'google.com/tpu': COUNT})}),
  'volumeMounts': listed(strict({'name': NAME, 'mountPath': TEXT})),
})  # fmt: skip
POD = strict({
  'restartPolicy': {'const': 'Never'},  # podFailurePolicy allows no other
  'terminationGracePeriodSeconds': COUNT, 'serviceAccountName': NAME, 'nodeSelector': TEXTS,
  'tolerations': listed(strict({'key': TEXT, 'operator': TEXT, 'value': TEXT, 'effect': TEXT})),
  'containers': {**listed(CONTAINER), 'maxItems': 1},
  'volumes': listed(strict({
    'name': NAME, 'csi': strict({'driver': TEXT, 'volumeAttributes': TEXTS}),
  })),
})  # fmt: skip
EXIT_CODES = strict({'containerName': NAME, 'operator': {'enum': ['In', 'NotIn']},
                     'values': listed(COUNT)})  # fmt: skip
JOB = strict({
  'parallelism': COUNT, 'completions': COUNT, 'completionMode': {'const': 'Indexed'},
  'backoffLimit': {'const': 0},
  'podFailurePolicy': strict({'rules': listed(strict({
    'action': {'enum': ['FailJob', 'Ignore', 'Count']}, 'onExitCodes': EXIT_CODES,
  }))}),
  'template': strict({'metadata': strict({'annotations': TEXTS}), 'spec': POD}),
})  # fmt: skip
JOBSET = strict({
  'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'}, 'kind': {'const': 'JobSet'},
  'metadata': strict({'name': NAME, 'annotations': TEXTS}),
  'spec': strict({
    'failurePolicy': strict({'maxRestarts': COUNT, 'rules': listed(strict({
      'name': TEXT,
      'action': {'enum': ['FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts']},
      'onJobFailureReasons': listed({'enum': ['PodFailurePolicy', 'BackoffLimitExceeded']}),
    }))}),
    'replicatedJobs': listed(strict({
      'name': NAME, 'replicas': COUNT, 'template': strict({'spec': JOB}),
    })),
  }),
})  # fmt: skip
SKY = strict({
  'name': TEXT, 'workdir': TEXT, 'num_nodes': COUNT, 'setup': TEXT, 'run': TEXT,
  'resources': strict({
    'accelerators': TEXT, 'use_spot': {'type': 'boolean'},
    'job_recovery': strict({'recover_on_exit_codes': listed({**COUNT, 'maximum': 255})}),
  }),
  'envs': {'type': 'object', 'additionalProperties': {'type': ['string', 'null']}},
  'file_mounts': {'type': 'object', 'additionalProperties': strict({
    'source': TEXT, 'mode': {'enum': ['MOUNT', 'COPY', 'MOUNT_CACHED']},
  })},
})  # fmt: skip


@pytest.mark.parametrize('name', [n for n in CASES if n.startswith('gke')])
def test_the_jobset_is_one(stubs, name):
  script, variables, args = CASES[name]
  jobset = yaml.safe_load(stubs.dry_run(script, *args, **variables))
  jsonschema.validate(jobset, JOBSET)
  inside = pod(jobset)
  container = inside['containers'][0]
  rule = jobset['spec']['replicatedJobs'][0]['template']['spec']['podFailurePolicy']['rules'][0]
  assert rule['onExitCodes'] == {
    'containerName': container['name'],
    'operator': 'In',
    'values': [2],
  }
  assert [m['name'] for m in container['volumeMounts']] == [v['name'] for v in inside['volumes']]
  assert arguments(script, stubs.dry_run(script))[3].startswith(
    container['volumeMounts'][0]['mountPath'] + '/'
  )


def test_nothing_in_the_manifest_is_left_open(stubs):
  out = stubs.dry_run('gke.sh')
  rest = [x for x in out.splitlines() if not x.lstrip().startswith('#')]
  assert '${' not in '\n'.join(rest)


def test_the_sky_task_is_one():
  task = yaml.safe_load((REPO / 'launch/sky.yaml').read_text())
  jsonschema.validate(task, SKY)
  codes = task['resources']['job_recovery']['recover_on_exit_codes']
  assert {processes.HUNG, 128 + 6, 128 + 15} == set(codes)  # watchdog, lost peer, SIGTERM
  for part in ('setup', 'run'):
    subprocess.run(['bash', '-n'], input=task[part], text=True, check=True)


def test_the_program_knows_the_variables():
  package = ''.join(f.read_text() for f in (REPO / 'disranker_jax').rglob('*.py'))
  for file in (REPO / 'launch').iterdir():
    for name in re.findall(r'\bDISRANKER_[A-Z]+', file.read_text()):
      assert f"'{name}'" in package, f'{file.name}: {name}'


def test_a_slice_that_is_made_again_has_the_same_workdir(stubs):
  first, again = (stubs.dry_run('tpu_pod.sh', **TPU) for _ in range(2))
  assert first == again
  other = stubs.dry_run('tpu_pod.sh', **TPU | {'RUN_ID': 'run-2'})
  assert arguments('tpu_pod.sh', first)[3] == '/bucket/runs/run-1'
  assert arguments('tpu_pod.sh', other)[3] == '/bucket/runs/run-2'


def test_the_runbook_is_shell_and_knows_the_launchers():
  text = (REPO / 'launch/README.md').read_text()
  blocks = re.findall(r'^```sh\n(.*?)^```', text, re.M | re.S)
  assert blocks
  for block in blocks:
    subprocess.run(['bash', '-n'], input=block, text=True, check=True)
  there = {f'launch/{f.name}' for f in (REPO / 'launch').iterdir()}
  assert set(re.findall(r'launch/\w+\.(?:sh|yaml)|launch/Dockerfile', text)) <= there
  for script in REQUIRED:
    assert f'launch/{script}' in text
  named = re.findall(r'--config[ =](configs/\w+\.py)', text)
  assert named and all((REPO / c).exists() for c in named)


def test_shellcheck_and_executable_bits(tmp_path):
  tool = shutil.which('shellcheck', path=str(pathlib.Path(sys.executable).parent))
  assert tool, 'shellcheck is part of the test extra'
  scripts = sorted((REPO / 'launch').glob('*.sh'))
  assert all(s.stat().st_mode & 0o111 or s.name == 'common.sh' for s in scripts)
  task = yaml.safe_load((REPO / 'launch/sky.yaml').read_text())
  for part in ('setup', 'run'):
    file = tmp_path / f'sky_{part}.sh'
    file.write_text('#!/usr/bin/env bash\n' + task[part])
    scripts.append(file)
  # SC1091: .venv/bin/activate is there only on the node; SC2155: nothing to lose in the export.
  done = subprocess.run(
    [tool, '-x', '--exclude=SC1091,SC2155', *scripts], capture_output=True, text=True, cwd=REPO
  )
  assert done.returncode == 0, done.stdout
