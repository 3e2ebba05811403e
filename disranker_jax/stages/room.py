"""Whether the documents that a step takes of a query fit into a batch, known before the first step.

A query is never split between batches. Otherwise a long one would end the training at the step that
meets it, hours later, and with other batch_rows the stage begins again.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from disranker_jax.data.batches import EncodedGroup, Shape, first_fit
from disranker_jax.errors import UserError
from disranker_jax.pipeline import systems
from disranker_jax.pipeline.stage import Run
from disranker_jax.progress import Count, amount


def check(
  run: Run,
  stage: str,
  shape: Shape,
  learned: Callable[[], Sequence],
  encoder: Callable[[], Callable[..., EncodedGroup]],
) -> None:
  """Raises: UserError that names a query of the records which does not fit, and values that do.

  Reads no text where even the longest ones would fit, and none of a stage that continues from a
  checkpoint: its first start has read them. `shape` is that of a whole batch; `learned()` gives the
  records that the stage learns, and `encoder()` opens what encodes one with all documents of which
  a step draws.
  """
  c, side = run.config[stage], systems.model_settings(run.config, stage)
  block = shape.block(c.data_shards)
  if is_enough(block, side) or systems.find(run.config, stage).kept(run):
    return
  records = learned()
  encode, large, rows, docs = encoder(), [], block.rows, block.docs
  with Count(f'{stage}: queries whose texts are measured', 'queries') as progress:
    for record in records:
      progress.add(1)
      group = encode(record)
      if fits(group, block):
        continue
      large.append(group.name)
      sizes = (dataclasses.replace(block, rows=n) for n in itertools.count(rows))
      rows = next(size.rows for size in sizes if fits(group, size))
      while docs > 1 and not fits(group, dataclasses.replace(block, docs=docs)):
        docs -= 1
  if large:
    raise UserError(message(stage, c, block, large, len(records), rows, docs))


def message(
  stage: str, c: ConfigDict, block: Shape, large: list, count: int, rows: int, docs: int
) -> str:
  """The error for queries that do not fit into a block; `rows` or `docs` instead would do."""
  advice = [f'batch_rows={rows * c.data_shards}']
  if 'group_size' in c and docs > 1:
    advice.append(f'group_size={docs}')
  return (
    f'{unfit(stage, c, block, large, count)} with {"its" if len(large) == 1 else "their"} '
    f'{f"{block.docs} longest documents" if block.docs > 1 else "longest document"}; set '
    f"config.{stage}.{' or '.join(advice)}, or lower the model's max_len"
  )


def unfit(stage: str, c: ConfigDict, block: Shape, large: Sequence[str], count: int) -> str:
  """The start of an error for the queries `large` of so many."""
  which = f'{large[0]!r}, does' if len(large) == 1 else f'such as {large[0]!r}, do'
  return (
    f'{described(stage, c, block)}, into which {len(large):,} of '
    f'{amount(count, "query", "queries")}, {which} not fit'
  )


def described(stage: str, c: ConfigDict, block: Shape) -> str:
  """The start of such an error: the key, and what a batch has room for."""
  part = f'each of data_shards={c.data_shards} parts of a batch' if c.data_shards > 1 else 'a batch'
  return (
    f'config.{stage}.batch_rows={c.batch_rows}: {part} has {amount(block.rows, "row")} of '
    f'{block.row_len} tokens'
  )


def is_enough(block: Shape, side: ConfigDict) -> bool:
  """Whether documents of any length that the model's settings allow fit into a block."""
  if block.rows * (block.row_len // side.max_len) < block.docs:
    return False
  # One token more, since a token can begin before the query.
  most = block.docs * (side.max_query_len + 1)
  return block.predicted in (0, block.row_len) or most <= block.predicted * block.rows


def fits(group: EncodedGroup, block: Shape) -> bool:
  """Whether the longest documents that can be drawn of a query fit into an empty block."""
  lengths = sorted(map(len, group.docs))[-block.docs :]
  predictions = sorted(doc.predictions for doc in group.docs)[-block.docs :]
  if block.predicted and sum(predictions) > block.predicted * block.rows:
    return False
  return first_fit(lengths, [block.row_len] * block.rows) is not None
