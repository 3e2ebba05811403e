"""What a CPU computes in is decided by its instructions, as /proc/cpuinfo lists them."""

import pytest

from disranker_jax.devices import processor
from disranker_jax.models import load

CORE = 'processor : {n}\nvendor_id : {vendor}\nmodel name : Some {vendor}\nflags : fpu {flags}\n\n'


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Gives this machine another processor of two cores; without arguments, an unknown one."""

  def become(vendor: str = '', flags: str = ''):
    file = tmp_path / 'cpuinfo'
    if vendor:
      file.write_text(''.join(CORE.format(n=n, vendor=vendor, flags=flags) for n in range(2)))
    monkeypatch.setattr(processor, 'CPUINFO', file)

  return become


@pytest.mark.parametrize(
  'vendor, flags, precision',
  [
    ('AuthenticAMD', 'avx512f avx512_bf16', 'bfloat16_dots'),
    ('AuthenticAMD', 'avx2 fma', 'float32'),
    ('GenuineIntel', 'avx512f avx512_bf16 amx_bf16 amx_tile', 'bfloat16_dots'),
    ('GenuineIntel', 'avx512f avx512_bf16', 'float32'),  # no more of them a second than in fp32
    ('GenuineIntel', 'avx2 fma', 'float32'),
    ('', '', 'float32'),  # no /proc/cpuinfo, as on a Mac
  ],
)
def test_a_cpu_has_bf16_operands_only_where_they_are_faster(machine, vendor, flags, precision):
  machine(vendor, flags)
  assert load.precision('auto', 'cpu') == precision
  assert load.precision('auto', 'gpu') == load.precision('auto', 'tpu') == 'bfloat16'


def test_a_precision_that_was_asked_for_is_taken(machine):
  machine('GenuineIntel', 'avx2')
  assert load.precision('bfloat16_dots', 'cpu') == 'bfloat16_dots'
  machine('AuthenticAMD', 'avx512_bf16')
  assert load.precision('float32', 'cpu') == 'float32'


def test_a_processor_is_described_with_what_makes_it_fast(machine):
  machine('AuthenticAMD', 'avx512f avx512_bf16')
  assert processor.described().startswith('Some AuthenticAMD, ')
  assert processor.described().endswith(' cores, avx512_bf16 instructions')
  machine('GenuineIntel', 'avx2')
  assert processor.described().endswith(' cores')
