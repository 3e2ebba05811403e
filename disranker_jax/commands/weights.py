"""Fetches models and prints their folders: `disranker weights NAME...`."""

from disranker_jax.commands.common import Parser
from disranker_jax.models import weights


def main(argv: list[str]) -> None:
  parser = Parser('weights', __doc__, 'minilm-l6 smollm2-135m')
  parser.add_argument(
    'names', nargs='+', metavar='NAME',
    help=f'a local folder, a Hugging Face id, or one of {", ".join(weights.KNOWN)}',
  )  # fmt: skip
  for name in parser.parse_args(argv).names:
    print(f'{name}\t{weights.find(name)}')
