"""This machine's processor: what it is called, and in which precision it multiplies fastest."""

import os
import platform
from pathlib import Path

CPUINFO = Path('/proc/cpuinfo')  # of Linux; elsewhere nothing is known of the instructions


def described() -> str:
  """'AMD EPYC, 2 cores, avx512_bf16 instructions'."""
  facts = _facts()
  name = facts.get('model name') or platform.processor() or platform.machine()
  found = [f'{kind} instructions' for kind in ('amx_bf16', 'avx512_bf16') if kind in _flags(facts)]
  return ', '.join([name, f'{os.cpu_count()} cores', *found[:1]])


def multiplies_bf16_faster() -> bool:
  """Whether products of bf16 are faster than fp32 ones.

  AMD's AVX-512 does twice as many, Intel's no more of them, which is measured (in
  docs/performance.md). AMX is made for them. Of all others nobody has measured, so they are not.
  """
  facts = _facts()
  flags = _flags(facts)
  amd = facts.get('vendor_id') == 'AuthenticAMD'
  return 'amx_bf16' in flags or (amd and 'avx512_bf16' in flags)


def _facts() -> dict[str, str]:
  """The lines of the last core; they are alike but for numbers."""
  lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
  return {k.strip(): v.strip() for k, _, v in (line.partition(':') for line in lines)}


def _flags(facts: dict[str, str]) -> list[str]:
  return facts.get('flags', '').split()
