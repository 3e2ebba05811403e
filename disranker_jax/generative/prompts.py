"""What a generative retriever reads and writes: a prompt per view, and the tokens of page texts."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from disranker_jax.config.settings import Check, Key, Section, list_of, one_of
from disranker_jax.data import tokenising
from disranker_jax.data.encoded import Encoded
from disranker_jax.data.prompts import TextPrompt
from disranker_jax.errors import UserError
from disranker_jax.generative.records import VIEWS
from disranker_jax.models.load import TextModel
from disranker_jax.progress import amount

# Texts are tokenised as they follow a prompt: behind a colon and a blank.
BEFORE = ':'
WORD = 'a'  # in the place of a query
AT_ONCE = 10_000  # queries that are tokenised at once
ANY_PROMPT = '{query} : {title} : {summary}'  # which a TextPrompt needs to tell the start token


def follows_query(value: str) -> bool:
  return value.count('{query}') == 1 and not value.rpartition('{query}')[2][-1:].isspace()


TEMPLATE = Check('a text with {query} once, and no blank at its end', follows_query)
SETTINGS: Section = {
  'views': Key(
    VIEWS, list_of(one_of(*VIEWS), distinct=True),
    "How pages are written: their 'title', an n-gram of their 'body', or a 'query' that the stage "
    'generate wrote from them (a pseudo-query).',
  ),
  'title_template': Key('{query}\n\nTitle:', TEMPLATE, 'The prompt before a title.'),
  'body_template': Key('{query}\n\nText:', TEMPLATE, 'The prompt before an n-gram.'),
  'query_template': Key('{query}\n\nQuery:', TEMPLATE, 'The prompt before a pseudo-query.'),
  'length': Key(8, Check('from 2 to 15', lambda n: 2 <= n <= 15), 'Tokens of an n-gram.'),
  'title_length': Key(
    12, Check('from 2 to 15', lambda n: 2 <= n <= 15),
    'Tokens of a title with its end; longer ones are cut.',
  ),
  'query_length': Key(
    15, Check('from 2 to 15', lambda n: 2 <= n <= 15),
    'Tokens of a pseudo-query with its end; longer ones are cut.',
  ),
}  # fmt: skip


class Around(NamedTuple):
  """What stands around the query in the prompt of a view."""

  before: str
  before_ids: list[int]
  after_ids: list[int]


@dataclasses.dataclass(frozen=True)
class Prompts:
  """The token ids of prompts and of page texts, for one model."""

  model: TextModel

  @property
  def end(self) -> int:
    """The token that ends titles and pseudo-queries. Raises: UserError if the model has none."""
    end = next(iter(self.model.network.end_ids), self.model.tokenizer.eos_token_id)
    if end is None:
      raise UserError('the tokenizer has no end token; name one as eos_token')
    return end

  def length(self, view: str) -> int:
    """The most tokens of a view, the end token included."""
    s = self.model.settings
    return {'title': s.title_length, 'body': s.length, 'query': s.query_length}[view]

  def __call__(self, query: str, view: str) -> list[int]:
    """The prompt of a view; a long query is cut at its end."""
    [(ids, most)] = self._asked([query], view)
    return [*self._start, *ids[:most], *self._around[view].after_ids]

  def lost(self, query: str) -> int:
    """The tokens at the end of a query that no prompt has room for."""
    return self._lost([query])[0]

  def cut(self, queries: Sequence[str]) -> str:
    """Of how many queries the end is not read, and the remedy, as text; '' if of none."""
    parts = (queries[i : i + AT_ONCE] for i in range(0, len(queries), AT_ONCE))
    if not (count := sum(lost > 0 for part in parts for lost in self._lost(part))):
      return ''
    most = self.model.settings.max_query_len
    return (
      f'the end of {count:,} of {amount(len(queries), "query", "queries")} is not read; raise '
      f'config.retriever.max_query_len={most}'
    )

  def _lost(self, queries: Sequence[str]) -> list[int]:
    """`lost` of each query."""
    views = self.model.settings.views
    by_view = [[len(ids) - most for ids, most in self._asked(queries, view)] for view in views]
    return [max(0, *found) for found in zip(*by_view, strict=True)]

  def _asked(self, queries: Sequence[str], view: str) -> Iterator[tuple[list[int], int]]:
    """(tokens of each prompt up to the query's end, how many of them there is room for)."""
    around, room = self._around[view], self.model.settings.max_query_len
    for ids in tokenising.text_ids(self.model.tokenizer, [around.before + q for q in queries]):
      pairs = zip(around.before_ids, ids, strict=False)
      # A blank before the query is part of the query's first token.
      shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
      yield ids, shared + room

  @functools.cached_property
  def _start(self) -> list[int]:
    s = self.model.settings
    return TextPrompt(self.model.tokenizer, s.max_len, s.max_query_len, ANY_PROMPT).ends[0]

  @functools.cached_property
  def _around(self) -> dict[str, Around]:
    found, tokenizer = {}, self.model.tokenizer
    for view in VIEWS:
      parts = self.model.settings[f'{view}_template'].partition('{query}')
      before, _, after = (tokenising.marked(tokenizer.backend_tokenizer, part) for part in parts)
      [before_ids] = tokenising.text_ids(tokenizer, [before])
      found[view] = Around(before, before_ids, following(tokenizer, after))
    return found

  @property
  def longest(self) -> int:
    """Tokens of the longest prompt."""
    fixed = max(len(around.before_ids) + len(around.after_ids) for around in self._around.values())
    return len(self._start) + self.model.settings.max_query_len + fixed

  def texts(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of texts as they follow a prompt: each word with its blank."""
    [before] = tokenising.text_ids(self.model.tokenizer, [BEFORE])
    rows = tokenising.text_ids(self.model.tokenizer, [f'{BEFORE} {text}' for text in texts])
    return [np.array(row[len(before) :], np.int32) for row in rows]

  def encoded(self, query: str, view: str, target: Sequence[int]) -> Encoded:
    """The prompt and what follows it, which the model learns to write."""
    prompt = self(query, view)
    ids = np.array([*prompt, *target], np.int32)
    return Encoded(ids, np.zeros_like(ids), len(ids) - 1, (len(prompt), len(ids)))


def following(tokenizer, text: str) -> list[int]:
  """The tokens of a text that follows a word.

  A tokenizer made from SentencePiece begins every text with a blank, which is not there then.
  """
  word, both, alone = tokenising.text_ids(tokenizer, [WORD, WORD + text, text])
  return both[len(word) :] if both[: len(word)] == word else alone


def check(config) -> None:
  """Raises: UserError for lengths that no prompt has room for."""
  s = config.retriever
  if not s.views:
    raise UserError('config.retriever.views: is empty; name at least one view')
  if 'query' in s.views and 'generate' not in config.stages:
    raise UserError(
      "config.retriever.views: has 'query', but no stage writes queries; add 'generate' to "
      "config.stages, or take 'query' out"
    )


def check_model(model: TextModel) -> None:
  """Raises: UserError if a prompt with what follows is longer than the model's rows."""
  prompts = Prompts(model)
  longest = prompts.longest + max(prompts.length(view) for view in model.settings.views)
  if longest > model.settings.max_len:
    raise UserError(
      f'config.retriever.max_len={model.settings.max_len}: a prompt with what follows has up to '
      f'{longest} tokens; raise it, or lower max_query_len'
    )
