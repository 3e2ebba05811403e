"""The run whose rewriter another one starts from (`rewriter.init_from`): how it rewrote."""

from ml_collections import ConfigDict

from disranker_jax.progress import say
from disranker_jax.rewriting import rewriter
from disranker_jax.stages import earlier

KEY = 'rewriter.init_from'
# What may be otherwise. What may not is in the role of the rewriter (pipeline/all_systems.py).
NAMED = ('rewriter.max_query_len', *(f'rewrite.{name}' for name in rewriter.SETTINGS))


def check(config: ConfigDict) -> None:
  """Names the settings that decide how queries are read and rewritten and differ from that run's.

  Raises: UserError if it is no run.
  """
  folder = config.rewriter.init_from
  if not folder or not earlier.exists(folder):
    return
  found = earlier.differing(config, earlier.opened(KEY, folder).config, NAMED)
  if said := ', '.join(f'config.{path}={ours!r} (there {was!r})' for path, was, ours in found):
    say(
      f'config.{KEY}={folder!r}: this run uses the rewriter with other settings: {said}; set them '
      'to the same values if that is not meant'
    )
