"""What a rewriter reads, and what of its completion is the rewrite."""

import re
from collections.abc import Sequence

from disranker_jax.config.settings import Key, writing_template
from disranker_jax.data.prompts import TextPrompt
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.models.load import TextModel
from disranker_jax.progress import amount

# A document whose place in the filled template is looked for.
PLACEHOLDER = Document('', 'x', '')
UNCUT = 1 << 16  # tokens: the query is cut before the template is filled
SETTINGS = {
  'template': Key(
    '{query} : {title}', writing_template(),
    "The rewriter's input up to {title}, in whose place the rewrite is written; cpt learns to "
    'write what stands there, and the end after it.',
  ),
}  # fmt: skip
REMEDY = 'raise config.rewriter.max_query_len or config.rewriter.max_len'
THOUGHTS = re.compile(r'<think>.*?</think>.*?<answer>(.*?)</answer>', re.DOTALL)


class RewritePrompt:
  """The rewriter's template up to `{title}`: what stands there is written, see writing_template.

  Args:
    longest: the most tokens of a prompt. The end of a longer query is cut.

  Raises: UserError for a template that leaves the query no room.
  """

  def __init__(self, model: TextModel, longest: int):
    s = model.settings
    self._tokenizer, self._template, self.longest = model.tokenizer, s.template, longest
    self._settings = s
    _, end = self._filled(s.max_query_len).ends
    room = longest - len(self._encoded('', s.max_query_len))
    if room < 1:
      raise UserError(
        f'max_len={s.max_len}: leaves no token for a query beside the template and '
        'config.rewrite.max_new; raise it'
      )
    self._query_len = min(s.max_query_len, room)
    # The tokens that end a rewrite: the model's own, and the one that cpt taught.
    self.stops = model.end_ids | set(end[-1:])

  def __call__(self, query: str) -> list[int]:
    """The token ids of a query's prompt."""
    ids = self._encoded(query, self._query_len)
    # The template's text can merge with the last token of the query, or not.
    excess = len(ids) - self.longest
    return ids if excess <= 0 else self._encoded(query, max(1, self._query_len - excess))

  def is_cut(self, query: str) -> bool:
    """Whether the end of a query is not in its prompt."""
    return len(self(query)) < len(self._encoded(query, UNCUT))

  def cut(self, queries: Sequence[str], remedy: str = REMEDY) -> str:
    """Of how many queries the end is not read, and the remedy, as text; '' if of none."""
    if not (count := sum(map(self.is_cut, queries))):
      return ''
    return (
      f'the end of {count:,} of {amount(len(queries), "query", "queries")} is not read; {remedy}'
    )

  @property
  def limits(self) -> str:
    """The settings that decide how much of a query is read, as text."""
    s = self._settings
    return (
      f'max_query_len={s.max_query_len}, and max_len={s.max_len} for the template, the query and '
      'the rewrite'
    )

  def _encoded(self, query: str, query_len: int) -> list[int]:
    [encoded] = self._filled(query_len).encode(query, [PLACEHOLDER])
    return encoded.ids[: encoded.predict[0]].tolist()

  def _filled(self, query_len: int) -> TextPrompt:
    return TextPrompt(self._tokenizer, UNCUT, query_len, self._template)

  def texts(self, rows: Sequence[Sequence[int]], think: bool = False) -> list[str]:
    """The rewrites in completions, '' where there is none."""
    decoded = self._tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [rewrite(text, think) for text in decoded]


def rewrite(text: str, think: bool) -> str:
  """The rewrite in a completion's text, on one line.

  With `think` it is what `<answer>` holds after `<think>...</think>`, '' without these tags.
  """
  if think:
    found = THOUGHTS.search(text)
    text = found[1] if found else ''
  return ' '.join(text.split())
