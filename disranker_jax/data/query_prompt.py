"""The few-shot prompt from which a decoder writes a query: examples, then the document."""

from collections.abc import Sequence

from disranker_jax.data.prompts import render
from disranker_jax.data.records import Click

WORDS = 60  # of an example's summary
# Pages of three kinds, each with a query that somebody could have before reading it.
EXAMPLES = (
  Click(
    'when should apple trees be pruned', 'How to prune apple trees',
    'Prune in late winter while the tree is dormant. Remove dead and crossing branches first, then '
    'open the centre so that light reaches the fruit.',
  ),
  Click(
    'how long do I have to return an order', 'Return policy',
    'Items may be sent back within 30 days of delivery. Keep the receipt. Refunds are paid to the '
    'card that was used for the order.',
  ),
  Click(
    'effect of vitamin D supplements on fractures', 'Vitamin D and bone health',
    'A trial of 2,300 adults compared daily vitamin D with placebo. Fractures were equally '
    'frequent in both groups after five years.',
  ),
)  # fmt: skip


def few_shot(template: str, examples: Sequence[Click]) -> str:
  """The template behind the filled templates of the examples."""
  return '\n\n'.join([*(filled(template, example) for example in examples), template])


def filled(template: str, example: Click) -> str:
  summary = ' '.join(example.summary.split()[:WORDS])
  fields = {'query': example.query, 'title': example.title, 'summary': summary}
  text, _ = render(template, fields)
  return text.replace('{', '{{').replace('}', '}}')
