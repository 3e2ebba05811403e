"""Fetches models and prints their folders: `disranker weights NAME...`."""

from disranker_jax.commands.common import Parser
from disranker_jax.models import weights


def main(argv: list[str]) -> None:
  parser = Parser('weights', __doc__, 'minilm-l6 smollm2-135m')
  parser.add_argument(
    'names', nargs='+', metavar='NAME',
    help='a local folder, a .gguf file, a Hugging Face name (ORG/NAME, ORG/NAME@COMMIT), or a '
    'short name of docs/models.md, such as minilm-l6',
  )  # fmt: skip
  for name in parser.parse_args(argv).names:
    print(f'{name}\t{weights.find(name)}')
