"""What reports draw of a training: panels of the values that a stage writes to metrics.jsonl.

A stage without panels of its own has those of LOSS. report/curves.py draws them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Line:
  """A value of every step; one that a stage does not write is left out.

  name    its key in metrics.jsonl
  label   in the legend
  title   what it is in words, for readers who do not see it; '' for the only line of a panel
  spread  the key of its standard deviation, which is drawn as a band; '': none
  """

  name: str
  label: str
  title: str = ''
  spread: str = ''


@dataclasses.dataclass(frozen=True)
class Panel:
  """One axis over the steps.

  label     what it measures
  unit      of its values; '' if there is none
  lines     values of every step
  held_out  kinds of values of held-out queries; 'ndcg' is nDCG at any depth
  note      what a reader must know about it
  """

  label: str
  lines: tuple[Line, ...] = ()
  held_out: tuple[str, ...] = ()
  unit: str = ''
  note: str = ''

  @property
  def name(self) -> str:
    """The label as the first words of a sentence."""
    return self.label[0].upper() + self.label[1:]

  @property
  def title(self) -> str:
    """'Length, tokens per rewrite'."""
    return ', '.join(filter(None, (self.name, self.unit)))


LOSS = (
  Panel('loss', (Line('loss', 'exponential mean'),), ('loss',)),
  Panel('held out', held_out=('ndcg', 'tau')),
)
