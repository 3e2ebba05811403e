"""Learning-rate schedules, optimizers, and which parameters are trained."""

import re

import jax
import jax.numpy as jnp
import optax

from disranker_jax.errors import UserError
from disranker_jax.models.tree import flatten, unflatten
from disranker_jax.training import averaging

# The collection of variables that no stage trains, beside those of the model that one trains: of a
# teacher, or what the model was at the start.
FROZEN = 'frozen'


def own(variables: dict) -> dict:
  """The variables of the model that is trained, without the collection FROZEN."""
  return {k: v for k, v in variables.items() if k != FROZEN}


def split(variables, pattern: str) -> tuple[dict, dict]:
  """(trained, frozen) by a regular expression over parameter paths, both flat; arrays or shapes.

  Trained parameters are fp32 whatever `param_dtype` says, and so are their moments: bf16 has 8
  bits, and an update of less than 1/512 of a parameter would be rounded away. Frozen parameters
  have no gradient and no moments, and are not in the stage's checkpoints. The collection
  FROZEN is never trained, whatever the pattern is.

  Raises: UserError if the pattern is invalid or matches no parameter.
  """
  flat = flatten(variables)
  try:
    offered = flatten(own(variables))
    trained = {k: _fp32(v) for k, v in offered.items() if re.search(pattern, k)}
  except re.error as e:
    raise UserError(f'trainable={pattern!r}: not a regular expression: {e}') from e
  if not trained:
    raise UserError(f'trainable={pattern!r}: matches no parameter; there are {", ".join(offered)}')
  return trained, {k: v for k, v in flat.items() if k not in trained}


def start(variables: dict, trainable: str) -> dict:
  """{FROZEN: what a stage starts from, of the parameters that it trains}, for `at_start`."""
  trained, _ = split(variables, trainable)
  # Copies: the arrays that are trained are donated to each step.
  return {FROZEN: unflatten({k: jnp.copy(v) for k, v in trained.items()})}


def at_start(variables: dict) -> dict:
  """The variables of the model when the stage began; FROZEN is what `start` gave."""
  return unflatten(flatten(own(variables)) | flatten(variables[FROZEN]))


def adapted(variables, pattern: str) -> list[str]:
  """The kernels that a pattern trains together with the adapters that are added to them."""
  trained = split(variables, pattern)[0]
  lora = (p for p in trained if p.startswith('lora/') and p.endswith('/lora_a'))
  kernels = ('params/' + p.removeprefix('lora/').removesuffix('lora_a') + 'kernel' for p in lora)
  return [kernel for kernel in kernels if kernel in trained]


def _fp32(x):
  if x.dtype == jnp.float32:
    return x
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding)
  return x.astype(jnp.float32)


def schedule(settings, steps: int):
  """Linear warm-up over a share of the steps, then constant, or linear or cosine decay to zero."""
  warm = max(1, round(settings.warmup_ratio * steps))
  rest = max(1, steps - warm)
  peak = settings.learning_rate
  after = {
    'constant': lambda: optax.constant_schedule(peak),
    'linear': lambda: optax.linear_schedule(peak, 0.0, rest),
    'cosine': lambda: optax.cosine_decay_schedule(peak, rest),
  }[settings.schedule]()
  return optax.join_schedules([optax.linear_schedule(peak / warm, peak, warm), after], [warm])


def decays(flat: dict) -> dict:
  """Weight decay applies to matrices, not to norms and biases, also where layers are stacked."""
  return {k: jnp.ndim(v) > 1 and not re.search(r'norm|bias|scale', k) for k, v in flat.items()}


def make(settings, steps: int) -> optax.GradientTransformation:
  """The optimizer of a stage's settings, with gradient clipping before it and `ema` after it.

  State in bytes per parameter: 'adamw' 8, or 6 with bfloat16 first moments; 'adafactor' almost
  none. The second moment has the type of the parameters, which `split` makes fp32: its steps of
  1 - b2 are too small for bfloat16's 8 bits. The average of the parameters (`ema`) takes 4 more.
  """
  scale = {
    'adamw': lambda: optax.scale_by_adam(b2=settings.adam_b2, mu_dtype=settings.adam_mu_dtype),
    # Beside the clipped global norm, its own clipping bounds the update of each matrix.
    'adafactor': lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
  }[settings.optimizer]()
  return optax.chain(
    optax.clip_by_global_norm(settings.max_grad_norm)
    if settings.max_grad_norm
    else optax.identity(),
    scale,
    optax.add_decayed_weights(settings.weight_decay, decays),
    optax.scale_by_learning_rate(schedule(settings, steps)),
    *([averaging.average(settings.ema)] if settings.ema else []),
  )
