"""What prepare says about training data that holds the test: shared queries, pairs and topics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from disranker_jax.data import clicks, holdout, overlap
from disranker_jax.data.records import Click, Group
from disranker_jax.errors import UserError
from disranker_jax.progress import Count, amount, say

Records = Sequence[Click | Group]


def count(config, tests: Records, kinds: Mapping[str, Records]) -> dict[str, dict]:
  """{kind: counts of overlap.Test.shared}; prints a line where a kind has test queries.

  Judgements also get `same_judgements`, the test queries whose topic they have, and `holdout_by`,
  an expression that keeps such topics together ('' if none is known). Each kind is read once.

  Raises: UserError if the labels hold a larger share of the test than data.allow_overlap.
  """
  found: dict[str, dict] = {}
  test = overlap.Test(tests)
  for kind, records in kinds.items():
    found[kind] = test.shared(counted(kind, records))
    if line := overlap.described(kind, found[kind]):
      say(f'prepare: {line}')
    if kind == 'judgements':
      found[kind] |= count_topics(config, tests, records)
      refuse_topics(config, found[kind])
  for kind, counts in found.items():
    if is_labelled(config, kind):
      refuse(config, kind, counts)
  return found


def counted(kind: str, records: Records) -> Iterator[Click | Group]:
  with Count(f'prepare: test queries in the {kind}', 'records') as progress:
    for record in records:
      progress.add(1)
      yield record


def is_labelled(config, kind: str) -> bool:
  """Whether the records hold the test's answers: labels, or clicks that are made of labels."""
  return kind.startswith('judgements') or (
    kind == 'clicks' and bool(clicks.least(config.data.clicks))
  )


def refuse(config, kind: str, counts: dict[str, int]) -> None:
  """Raises: UserError if the models would be tested on what they learn."""
  share, data = counts['queries'] / max(counts['of_queries'], 1), config.data
  if share <= data.allow_overlap:
    return
  fix = 'give other queries, or split one file with config.data.holdout=0.2'
  if ' of ' in kind:  # an earlier run's
    fix = 'give other queries, or start from the pretrained models'
  elif data.holdout:
    fix = 'queries of different ids have the same text; make the test queries another file'
  are = 'is' if counts['queries'] == 1 else 'are'
  raise UserError(
    f'config.data.test={data.test!r}: {counts["queries"]:,} of its '
    f'{amount(counts["of_queries"], "query", "queries")} ({share:.0%}) {are} in the {kind} too, so '
    f'the models would be tested on what they learn; {fix}; config.data.allow_overlap='
    f'{data.allow_overlap:g} is the share that is allowed'
  )


def refuse_topics(config, counts: dict) -> None:
  """Raises: UserError if the topics of the test are learned."""
  share, data = counts['same_judgements'] / max(counts['of_queries'], 1), config.data
  if share <= data.allow_overlap:
    return
  by = counts['holdout_by']
  fix = 'keep each topic on one side'
  if by and data.holdout:
    fix = f"set config.data.holdout_by='{by}'"
  elif by:
    fix = f'keep queries whose ids have the same match of {by!r} in one file'
  have, their = ('has', 'its') if counts['same_judgements'] == 1 else ('have', 'their')
  raise UserError(
    f'config.data.test={data.test!r}: {counts["same_judgements"]:,} of its '
    f'{amount(counts["of_queries"], "query", "queries")} ({share:.0%}) {have} the same relevant '
    f'documents and grades as judged queries, so {their} labels would be learned; {fix} '
    f'(docs/data.md); config.data.allow_overlap={data.allow_overlap:g} is the share that is allowed'
  )


def count_topics(config, tests: Records, judged: Records) -> dict:
  """Test queries with the same relevant documents and grades as a judged query of another text."""
  texts = {holdout.normalized(group.query) for group in tests}
  trained = {text for group in judged if (text := holdout.normalized(group.query)) in texts}
  others = [group for group in tests if holdout.normalized(group.query) not in trained]
  topics = holdout.topics(others, judged)
  count = sum(len(on_test) for on_test, _ in topics)
  ids = [group.query_id for group in tests]
  by = ''
  if topics:
    by = next(iter(holdout.patterns([[*a, *b] for a, b in topics], ids)), '')
    say(f'prepare: {topics_line(topics, by)}')
  return {'same_judgements': count, 'holdout_by': by}


def topics_line(topics: Sequence[tuple[Iterable[str], Iterable[str]]], by: str) -> str:
  """What is shared, with an example, and what the ids of a topic have in common."""
  count = sum(len(list(on_test)) for on_test, _ in topics)
  [first, *_], [second, *_] = topics[0]
  line = (
    f'{amount(count, "test query has", "test queries have")} the same relevant documents and '
    f'grades as judged queries of {amount(len(topics), "topic")}, such as {first} and {second}: '
    f'{"its" if count == 1 else "their"} labels are learned'
  )
  return f'{line}; the ids of a topic have the same match of {by!r}' if by else line
