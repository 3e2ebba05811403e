"""What tests of launchers share: the launchers, typical calls of them, and how they are called."""

import json
import pathlib
import shlex
import subprocess
import sys

REPO = pathlib.Path(__file__).parents[2]
GOLDEN = REPO / 'tests/launch/golden'
TOOLS = ('gcloud', 'git', 'kubectl', 'python', 'sbatch', 'scancel', 'scontrol', 'sky', 'srun')

TPU = {'PROJECT': 'my-project', 'ZONE': 'us-west4-a', 'BUCKET': 'my-bucket', 'RUN_ID': 'run-1'}
GKE = {'BUCKET': 'my-bucket', 'RUN_ID': 'run-1', 'IMAGE': 'us-docker.pkg.dev/p/r/tpu:1'}
SLURM = {'RUN_ID': 'run-1'}
SKY = {'BUCKET': 'gs://my-bucket', 'RUN_ID': 'run-1'}
REQUIRED = {'tpu_pod.sh': TPU, 'gke.sh': GKE, 'slurm.sh': SLURM, 'sky.sh': SKY, 'gpu_pmap.sh': {}}
TEMPLATE = "--config.teacher.template={query} it's {title}"
# name of the golden file: launcher, variables besides the required ones, arguments
CASES = {
  'tpu_pod': ('tpu_pod.sh', {}, []),
  'tpu_pod_reserved': (
    'tpu_pod.sh',
    {'CAPACITY': 'reserved', 'ACCELERATOR': 'v6e-64', 'KEEP': '1', 'WORKDIR': "/bucket/a 'b"},
    ['--stages=cpt,sft', TEMPLATE],
  ),
  'tpu_pod_on_demand': (
    'tpu_pod.sh',
    {'CAPACITY': 'on-demand', 'ACCELERATOR': 'v5p-128', 'CONFIG': 'configs/own_data.py'},
    [],
  ),
  'gke': ('gke.sh', {}, []),
  'gke_reserved': (
    'gke.sh',
    {'CAPACITY': 'reserved', 'RESERVATION': 'ours', 'ACCELERATOR': 'tpu-v5p-slice',
     'TOPOLOGY': '4x4x4', 'RETRIES': '3', 'SERVICE_ACCOUNT': 'me'},
    [TEMPLATE],
  ),
  'slurm': ('slurm.sh', {'NODES': '4'}, ['--stages=cpt']),
  'slurm_node': ('slurm.sh', {'TASKS': 'node', 'WORKDIR': '/scratch/my run'}, []),
  'gpu_pmap': ('gpu_pmap.sh', {}, []),
  'gpu_pmap_fsdp': (
    'gpu_pmap.sh',
    {'CONFIG': 'configs/disranker_mistral_7b.py', 'WORKDIR': '/data/my run'},
    ['--config.mesh.data=1', '--config.mesh.fsdp=-1'],
  ),
  'sky': ('sky.sh', {}, []),
  'sky_on_demand': (
    'sky.sh',
    {'CAPACITY': 'on-demand', 'NODES': '2', 'ACCELERATOR': 'A100-80GB:8'},
    [TEMPLATE],
  ),
}  # fmt: skip


class Stubs:
  """A folder of stubs for all TOOLS, as $PATH; see stub.py."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.bin = folder, folder / 'bin'
    self.bin.mkdir()
    self.answer()
    for tool in TOOLS:
      words = [sys.executable, '-SE', str(pathlib.Path(__file__).with_name('stub.py')), tool]
      (self.bin / tool).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
      (self.bin / tool).chmod(0o755)

  def answer(self, **answers) -> None:
    (self.folder / 'answers.json').write_text(json.dumps(answers))

  def calls(self) -> list[list]:
    """[kind, arguments] of every call so far; see stub.py."""
    file = self.folder / 'calls'
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []

  def kinds(self) -> list[str]:
    return [kind for kind, _ in self.calls()]

  def environment(self, **variables: str) -> dict[str, str]:
    """Nothing of the tests' own: what a launcher does must not depend on who calls it."""
    path = f'{self.bin}:/usr/bin:/bin'
    return {'PATH': path, 'HOME': '/nowhere', 'STUB': str(self.folder)} | variables

  def call(self, script, *args: str, cwd=None, **variables: str) -> subprocess.CompletedProcess:
    file = script if '/' in str(script) else REPO / 'launch' / script
    return subprocess.run(
      [file, *args], env=self.environment(**variables), cwd=cwd,
      capture_output=True, text=True, timeout=60,
    )  # fmt: skip

  def start(self, script, *args: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
      [REPO / 'launch' / script, *args], env=self.environment(**variables), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

  def dry_run(self, script: str, *args: str, **variables: str) -> str:
    done = self.call(script, '--dry-run', *args, **REQUIRED[script] | variables)
    assert done.returncode == 0, done.stderr
    assert not self.calls(), 'a dry run called something'
    return done.stdout


def renew() -> None:
  """Rewrites the golden files: read the difference before you commit it."""
  import tempfile

  GOLDEN.mkdir(exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    stubs = Stubs(pathlib.Path(folder))
    for name, (script, variables, args) in CASES.items():
      (GOLDEN / f'{name}.txt').write_text(stubs.dry_run(script, *args, **variables))


if __name__ == '__main__':
  renew()
