"""Which attention kernel runs where: one table by platform, precision and head size.

Kernels:
  'xla'     einsum, softmax, einsum: runs everywhere at any length; allocates [B, H, T, S]
  'splash'  Pallas' flash attention for TPU, not in 'float32': allocates only a block of that, and
            skips the blocks that causality or the window masks
  'cudnn'   cuDNN's flash attention for NVIDIA GPUs, bf16 only; segments are a bf16 mask
            [B, 1, T, S], since the public interface has no segments
  'auto'    the first kernel of RULES that runs, 'xla' where none does
  'splash_interpret'  'splash' in Pallas' interpreter, on any device: slow, for tests
"""

import dataclasses
import functools

import jax

from disranker_jax.errors import UserError
from disranker_jax.progress import say

KERNELS = ('xla', 'splash', 'cudnn', 'auto', 'splash_interpret')


@dataclasses.dataclass(frozen=True)
class Device:
  """What the choice depends on.

  platform    'cpu', 'tpu', 'cuda' (NVIDIA), 'rocm' (AMD), or 'gpu' where the maker is unknown
  capability  an NVIDIA GPU's compute capability, such as (9, 0); () if it is unknown
  """

  platform: str
  capability: tuple[int, ...] = ()

  def __str__(self) -> str:
    number = '.'.join(map(str, self.capability))
    return f'{self.platform} device' + (f' of compute capability {number}' if number else '')


@dataclasses.dataclass(frozen=True)
class Rule:
  """One case in which a kernel runs.

  needs         the case in words
  capabilities  from the first compute capability to before the second
  head_dim      the largest head size; a head size is a multiple of `multiple`
  """

  kernel: str
  needs: str
  platform: str
  precisions: tuple[str, ...]
  capabilities: tuple[tuple[int, ...], tuple[int, ...]] = ((), (99,))
  head_dim: int = 1 << 30
  multiple: int = 1

  def fits(self, device: Device, precision: str, head_dim: int) -> bool:
    low, high = self.capabilities
    return (
      device.platform == self.platform
      and low <= device.capability < high
      and precision in self.precisions
      and head_dim <= self.head_dim
      and head_dim % self.multiple == 0
    )


_CUDNN = functools.partial(
  Rule, 'cudnn', platform='cuda', precisions=('bfloat16',), multiple=8,
  needs="an NVIDIA GPU, precision 'bfloat16' and heads whose size is a multiple of 8, at most "
  '128 (Ampere and newer) or 256 (Hopper)',
)  # fmt: skip
# Lengths, windows and segments need no rule: rows are padded to a multiple of 128, and what is not
# causality is part of the mask. On a TPU Splash's dots of fp32 arrays would be bf16 passes. cuDNN:
# NVIDIA's support matrix of attention with a backward pass, and JAX's check of it.
RULES = (
  Rule('splash', "a TPU and precision 'bfloat16'", 'tpu', ('bfloat16', 'bfloat16_dots')),
  _CUDNN(capabilities=((8, 0), (9, 0)), head_dim=128),
  _CUDNN(capabilities=((9, 0), (10, 0)), head_dim=256),
  _CUDNN(capabilities=((10, 0), (99,)), head_dim=128),
)


def check_kernel(kernel: str) -> None:
  """Raises UserError if there is no such kernel."""
  if kernel not in KERNELS:
    raise UserError(f'attention {kernel!r} is unknown: use one of {", ".join(KERNELS)}')


def choose(kernel: str, device: Device, precision: str, head_dim: int) -> tuple[str, str]:
  """(the kernel to run, with 'auto' resolved; why 'auto' is not the device's fast one, or '').

  Raises: UserError for a kernel that is unknown, or that does not run in this case.
  """
  check_kernel(kernel)
  fitting = [r.kernel for r in RULES if r.fits(device, precision, head_dim)]
  here = f'{precision!r} on a {device}, heads of {head_dim}'
  if kernel == 'auto':
    if fitting:
      return fitting[0], ''
    fast = next((r for r in RULES if r.platform == device.platform), None)
    if device.platform in ('rocm', 'gpu'):
      fast = RULES[-1]
    why = f"attention: 'xla' and not {fast.kernel!r}, which needs {fast.needs}" if fast else ''
    return 'xla', f'{why}; this is {here}' if why else ''
  rule = next((r for r in RULES if r.kernel == kernel), None)
  if rule and kernel not in fitting:
    raise UserError(
      f"attention {kernel!r} needs {rule.needs}, and this is {here}: use 'auto' or 'xla'"
    )
  return kernel, ''


def device_of(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Device:
  """The kind of a mesh's devices, or of this process's if the mesh does not say."""
  # The mesh has priority: a step may be compiled for a TPU on a host that has none.
  kind = getattr(mesh, 'abstract_mesh', mesh).abstract_device
  platform = kind.platform if kind else jax.default_backend()
  if platform != 'gpu':
    return Device(platform)
  here = jax.local_devices()[0]
  if here.platform != 'gpu' or (kind and kind.device_kind != here.device_kind):
    return Device('gpu')
  if 'cuda' not in here.client.platform_version.lower():  # 'gpu' is the name of AMD's too
    return Device('rocm')
  return Device('cuda', tuple(map(int, here.compute_capability.split('.'))))


@functools.cache  # once per case, not once per layer and program
def tell(reason: str) -> None:
  """Says why attention is not computed by the fast kernel."""
  say(reason)
