"""The exponential moving average of the trained parameters: the result of a stage with `ema`.

The optimizer goes on from the raw parameters. The average is a part of its state, so a bad step
leaves it as it is, and it is sharded and saved as the moments are. In a checkpoint the two change
places: `params`, which later stages read, has the average, and the raw parameters are where the
average was.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
  """The average in fp32, with the tree of the parameters, and the steps that it has followed."""

  average: optax.Params
  steps: jax.Array


def average(decay: float) -> optax.GradientTransformation:
  """Follows the parameters that the updates lead to, and changes no update; the last of a chain.

  After step t = 0, 1, ... the average is d * average + (1 - d) * parameters with
  d = min(decay, (1 + t) / (10 + t)). So the start and the first steps soon count little, also in a
  stage of fewer steps than 1 / (1 - decay). A division by 1 - decay^t (`optax.ema`) would remove
  the start only: such a stage would have the plain mean of all its steps. In fp32, as the
  parameters are (optimizer.split): bf16 has too few bits for a step of 1 - decay.
  """

  def init(params):
    # A copy: the raw parameters and the state are donated to the same step.
    copied = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
    return AverageState(copied, jnp.zeros((), jnp.int32))

  def update(updates, state, params):
    after, t = optax.apply_updates(params, updates), state.steps
    share = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
    followed = optax.incremental_update(after, state.average, share)
    return updates, AverageState(followed, t + 1)

  return optax.GradientTransformation(init, update)


def of(state) -> dict | None:
  """The average in the state of a step (see train.Program), or its shapes; None without `ema`."""
  last = state['opt'][-1]
  return last.average if isinstance(last, AverageState) else None


def result(trained: dict, state) -> dict:
  """What a stage gives after a step: the average, else the parameters."""
  averaged = of(state)
  return trained if averaged is None else averaged


def swapped(trained: dict, state) -> tuple[dict, dict]:
  """(the average, the state with the raw parameters in its place), also the other way round.

  So a checkpoint holds each of them once. Without `ema` it is (trained, state).
  """
  averaged = of(state)
  if averaged is None:
    return trained, state
  last = state['opt'][-1]._replace(average=trained)
  return averaged, state | {'opt': (*state['opt'][:-1], last)}
