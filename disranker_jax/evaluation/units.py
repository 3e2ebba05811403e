"""What intervals and tests of a table draw: each query by itself, or clusters of queries."""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterable, Sequence

from disranker_jax.data import holdout
from disranker_jax.evaluation import shared_judgements
from disranker_jax.evaluation.metrics import Qrels
from disranker_jax.evaluation.shared_judgements import Related, Shared
from disranker_jax.progress import amount

Setting = Callable[[str], str]  # how a user writes an expression: '^q' -> "--cluster '^q'"


@dataclasses.dataclass(frozen=True)
class Units:
  """The unit of each query of a table, and what its reader must know about the units.

  grades   judgements of the queries {query_id: {doc_id: grade}}, and of others that may be known
  queries  the queries of the table
  by       queries whose ids this expression matches alike are one unit, with '' each by itself;
           None: those that share their judgements
  """

  grades: Qrels
  queries: Sequence[str]
  by: str | None = None

  @functools.cached_property
  def shared(self) -> Shared:
    """The queries that share judgements, such as those of one topic."""
    return shared_judgements.find(self.grades)

  @functools.cached_property
  def related(self) -> Related | None:
    """An expression on query ids whose clusters often have the same relevant documents."""
    return shared_judgements.related(self.grades)

  def clusters(self, queries: Iterable[str]) -> list[str]:
    """The unit of each of these queries, which may be others than those of the table."""
    if self.by is None:
      return self.shared.clusters(queries)
    return holdout.clusters(queries, self.by)

  @functools.cached_property
  def of_Q(self) -> list[str]:
    """The unit of each query."""
    return self.clusters(self.queries)

  @functools.cached_property
  def count(self) -> int:
    """How many units there are."""
    return len(set(self.of_Q))

  @property
  def kind(self) -> str:
    """What is drawn: 'queries' or 'clusters of queries'."""
    return 'queries' if self.count == len(self.queries) else 'clusters of queries'

  @property
  def are_one(self) -> bool:
    """Whether all of several queries are one unit, so that there is nothing to draw."""
    return self.count == 1 < len(self.queries)

  @functools.cached_property
  def sharing_sizes(self) -> list[int]:
    """How many queries of the table each group of those that share judgements has, if several."""
    known = set(self.queries)
    sizes = (sum(query in known for query in group) for group in self.shared.groups)
    return [size for size in sizes if size > 1]

  def sharing(self, of: str = 'queries') -> str:
    """'5 of 6 queries share their judgements', with others of the table."""
    return f'{sum(self.sharing_sizes)} of {len(self.queries)} {of} share their judgements'

  def together(self, setting: Setting, of: str = 'queries') -> str:
    """Says that queries are drawn together because they share judgements; '' if none are."""
    if self.by is not None or self.count == len(self.queries):
      return ''
    pattern = self.shared.pattern
    return (
      f'{self.sharing(of)}, so {amount(self.count, "cluster is", "clusters are")} drawn instead of '
      f'{len(self.queries)} queries' + (f', as with {setting(pattern)}' if pattern else '')
    )

  def separated(self, setting: Setting, of: str = 'queries') -> str:
    """Says that the expression separates queries that share judgements; '' if it does not."""
    if self.by is None or not (split := self.shared.split_by(self.of_Q, self.queries)):
      return ''
    return f'{self.sharing(of)}; {setting(self.by)} separates {split} of their groups'

  def alike(self) -> str:
    """Says that the ids look like those of topics whose queries are drawn one by one; else ''.

    `related.pattern` draws them together.
    """
    if self.by or self.shared.pattern or not self.related:
      return ''
    pattern, inside, outside = self.related
    return (
      f'queries whose ids match {shlex.quote(pattern)} alike often have the same relevant '
      f'documents ({100 * inside:.0f} % of pairs, others {100 * outside:.0f} %); if they are '
      'topics or sessions'
    )
