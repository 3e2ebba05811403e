"""Limits of a container: made-up cgroup files of both versions give cores and bytes."""

import os

import pytest

from disranker_jax.devices import cgroup, memory, processor, runtime
from disranker_jax.rankers import backends


@pytest.fixture
def groups(monkeypatch, tmp_path):
  """Puts this process into a group, with the given files below the root of all groups."""

  def enter(own: str, files: dict[str, str]):
    for name, text in files.items():
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name).write_text(f'{text}\n')
    (tmp_path / 'own').write_text(f'{own}\n')
    monkeypatch.setattr(cgroup, 'ROOT', tmp_path)
    monkeypatch.setattr(cgroup, 'OWN', tmp_path / 'own')

  return enter


@pytest.fixture
def host(monkeypatch):
  """A host of 64 cores."""
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(64)), raising=False)


V1 = '5:cpuset:/\n4:cpu,cpuacct:/docker/a1\n3:memory:/docker/a1\n0::/'


@pytest.mark.parametrize(
  'own, files, cores',
  [
    ('0::/', {'cpu.max': '200000 100000'}, 2),
    ('0::/', {'cpu.max': '150000 100000'}, 2),  # the rest of a core is worth a worker
    ('0::/', {'cpu.max': '10000 100000'}, 1),
    ('0::/', {'cpu.max': '9000000 100000'}, 64),  # more than the host has
    ('0::/', {'cpu.max': 'max 100000'}, 64),
    ('0::/', {}, 64),
    # A job within a service: the limit of each holds.
    ('0::/a/b', {'a/cpu.max': '300000 100000', 'a/b/cpu.max': 'max 100000'}, 3),
    ('0::/a/b', {'a/cpu.max': '300000 100000', 'a/b/cpu.max': '50000 50000'}, 1),
    # Version 1; a container sees its own group as the root, under the path that the host knows.
    (V1, {'cpu/cpu.cfs_quota_us': '400000', 'cpu/cpu.cfs_period_us': '100000'}, 4),
    (V1, {'cpu/docker/a1/cpu.cfs_quota_us': '250000', 'cpu/docker/a1/cpu.cfs_period_us': '100000',
          'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 3),
    (V1, {'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 64),
    (V1, {'cpu/cpu.cfs_quota_us': '0', 'cpu/cpu.cfs_period_us': '100000'}, 64),
  ],
)  # fmt: skip
def test_a_containers_cpu_limit_counts_as_cores(groups, host, own, files, cores):
  groups(own, files)
  assert processor.cores() == cores
  assert f'{cores} cores' in processor.described()


@pytest.mark.parametrize('own', ['', '0', '0::', '\n0:/\n', '0::/a:b'])
def test_groups_that_cannot_be_read_are_no_limit(groups, host, own):
  groups(own, {})
  assert processor.cores() == 64 and cgroup.memory() is None
  cgroup.OWN.write_bytes(b'0::/\xff\n')
  assert processor.cores() == 64
  cgroup.OWN.unlink()
  assert processor.cores() == 64


def test_onnx_runtime_has_a_worker_per_core_of_the_limit(groups, host, model):
  groups('0::/', {'cpu.max': '300000 100000'})
  assert backends.Onnx(model, 'onnx').workers == 3


def test_a_system_without_groups_has_no_limits(monkeypatch, tmp_path, host):
  monkeypatch.setattr(cgroup, 'OWN', tmp_path / 'none')
  assert processor.cores() == 64 and cgroup.memory() is None


@pytest.mark.parametrize('own, name', [('0::/', 'memory.max'),
                                       (V1, 'memory/memory.limit_in_bytes')])  # fmt: skip
def test_a_containers_memory_limit_counts(groups, own, name):
  machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  groups(own, {name: '1000000'})
  assert memory.limit() == 1_000_000
  for unlimited in ('max', '9223372036854771712'):
    groups(own, {name: unlimited})
    assert memory.limit() == machine


def test_xla_gets_a_thread_per_core_of_the_limit(groups, host, monkeypatch):
  monkeypatch.setenv('PJRT_NPROC', '')
  monkeypatch.delenv('PJRT_NPROC')
  groups('0::/', {'cpu.max': 'max 100000'})
  runtime.prepare()
  assert 'PJRT_NPROC' not in os.environ
  groups('0::/', {'cpu.max': '300000 100000'})
  runtime.prepare()
  assert os.environ['PJRT_NPROC'] == '3'
  groups('0::/', {'cpu.max': '100000 100000'})
  runtime.prepare()
  assert os.environ['PJRT_NPROC'] == '3'  # what was set by hand stays
