"""What ends a training by GRPO that has gone wrong."""

import dataclasses

import numpy as np

from disranker_jax.errors import UserError
from disranker_jax.progress import amount, part_of, say

AGAIN = 'With another value the stage begins again, at step 1'
FAILED_ROLLOUTS = 10  # with failures only, after which training ends


@dataclasses.dataclass
class Collapse:
  """Ends a training that has gone wrong.

  Args:
    c: the section `rewrite` of the config.
  """

  c: object
  rollouts: int = 0  # in a row with failures only
  has_said: bool = False  # that a failure is better than some other rewrites

  def failures(self, failed_GS: np.ndarray, step: int) -> None:
    """Raises: UserError after FAILED_ROLLOUTS in a row without a rewrite that has a reward."""
    self.rollouts = self.rollouts + 1 if failed_GS.all() else 0
    if self.rollouts >= FAILED_ROLLOUTS:
      raise UserError(
        f'rewrite: up to step {step} every rewrite of the last {amount(self.rollouts, "rollout")} '
        'failed (empty, without a word, or longer than '
        f'config.rewrite.max_words={self.c.max_words}): the mean reward stays at '
        f'config.rewrite.failure={self.c.failure:g}. If it was better before, lower '
        'config.rewrite.learning_rate or raise beta, and lower failure if other rewrites had '
        f'smaller rewards; if not, train cpt first, or raise max_new. {AGAIN}'
      )

  def order(self, rewards_GS: np.ndarray, failed_GS: np.ndarray, step: int) -> None:
    """Says once that rewrites without a failure have smaller rewards than those with one."""
    below = int(np.sum(~failed_GS & (rewards_GS < self.c.failure)))
    if below and not self.has_said:
      self.has_said = True
      say(
        f'rewrite: step {step}: '
        f'{part_of(below, failed_GS.size, "rewrite", "rewrites", "has", "have")} a reward below '
        f'config.rewrite.failure={self.c.failure:g} (down to {rewards_GS.min():.3g}), so a rewrite '
        'without a word is better than they are; lower failure'
      )

  def divergence(self, kl: float, step: int) -> None:
    """Raises: UserError if the policy is further than `stop_kl` nats a rewrite from its start."""
    if self.c.stop_kl and not kl <= self.c.stop_kl:
      before = step - 1 - self.c.iterations  # updates of the policy that was measured before
      ends = f', or set max_steps={before}, where it was nearer' if before > 0 else ''
      raise UserError(
        f'rewrite: before step {step} a rewrite is {kl:.3g} nats from what the model was at the '
        f'start, more than config.rewrite.stop_kl={self.c.stop_kl:g}; lower '
        f'config.rewrite.learning_rate, or raise beta{ends}. {AGAIN}; only '
        'with a larger stop_kl it goes on from its last checkpoint'
      )
