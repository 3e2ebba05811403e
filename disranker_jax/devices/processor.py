"""This machine's CPU: its name, its cores, and whether it multiplies bf16 faster than fp32."""

import math
import os
import platform
from pathlib import Path

from disranker_jax.devices import cgroup

CPUINFO = Path('/proc/cpuinfo')  # Linux only; other systems do not list the instructions


def described() -> str:
  """One line, such as 'AMD EPYC, 2 cores, avx512_bf16 instructions'."""
  facts = _facts()
  name = facts.get('model name') or platform.processor() or platform.machine()
  bf16 = [f'{kind} instructions' for kind in ('amx_bf16', 'avx512_bf16') if kind in _flags(facts)]
  return ', '.join([name, f'{cores()} cores', *bf16[:1]])


def cores() -> int:
  """How many cores this process may use.

  A container's CPU limit is a share of time on all cores of the host. More threads than the limit
  has cores use it up together, and then all of them wait.
  """
  own = affinity()
  quota = cgroup.cores()
  return min(own, math.ceil(quota)) if quota else own


def affinity() -> int:
  """How many cores this process may run on, which is what most libraries count."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def multiplies_bf16_faster() -> bool:
  """Whether bf16 matrix products are faster than fp32 ones.

  AVX-512 bf16 doubles the speed on AMD and gains nothing on Intel (docs/performance.md). AMX is
  built for bf16. Other CPUs were not measured and use fp32.
  """
  facts = _facts()
  flags = _flags(facts)
  amd = facts.get('vendor_id') == 'AuthenticAMD'
  return 'amx_bf16' in flags or (amd and 'avx512_bf16' in flags)


def _facts() -> dict[str, str]:
  """The fields of the last core; cores differ only in numbers."""
  lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
  return {k.strip(): v.strip() for k, _, v in (line.partition(':') for line in lines)}


def _flags(facts: dict[str, str]) -> list[str]:
  return facts.get('flags', '').split()
