"""The report's first paragraph: what came out, and how sure one may be of it."""

from disranker_jax.data.holdout import clusters
from disranker_jax.report.facts import Facts
from disranker_jax.report.intervals import FEWEST, MAIN, Intervals

ALPHA = 0.05
LEAST = 0.001  # p-values below it are not told apart
SPACE = '\N{NO-BREAK SPACE}'
MINUS = '\N{MINUS SIGN}'
FEW = 30  # queries, or clusters of them, below which a bootstrap interval is too narrow


def sentences(facts: Facts, intervals: Intervals) -> list[str]:
  """Each says one thing; those for which a model is missing are left out."""
  if not facts.results:
    return ['Nothing has been evaluated yet; this page shows what the finished stages left.']
  said = [best(facts, intervals), ahead(intervals), handed_on(intervals), over_labels(intervals)]
  said += [cheaper(facts), few(facts)]
  return [s.replace(' %', f'{SPACE}%') for s in said if s]


def number(value: float) -> str:
  return f'{value:.3f}'.replace('-', MINUS)


def span(cell: dict) -> str:
  return f'{number(cell["low"])} to {number(cell["high"])}'


def best(facts: Facts, intervals: Intervals) -> str:
  values = {model: float(v[MAIN]) for model, v in facts.results.items()}
  top = max(values, key=values.get)
  interval = intervals.means.get((top, MAIN))
  sure = f' (95 % interval {span(interval)})' if interval else ''
  queries = facts.results[top].get('queries', 0)
  over = f' over {queries:,} held-out quer{"y" if queries == 1 else "ies"}'
  only = len(values) == 1
  first = f'{named(facts, top)} is the only ranking that was evaluated' if only else (
    f'The best of the {len(values)} rankings is that of {named(facts, top)}'
  )  # fmt: skip
  return f'{first[0].upper()}{first[1:]}: nDCG@5 {number(values[top])}{sure}{over}.'


def named(facts: Facts, model: str) -> str:
  """Its title in a sentence."""
  title = facts.title(model)
  others = {
    'bm25': title,
    'random': 'a random order',
    'student_sft': 'the student that saw labels only',
  }
  return others.get(model, f'the {title}')


def against(intervals: Intervals, baseline: str) -> str:
  """'is 0.092 above (95 % interval 0.017 to 0.169; p = 0.021, 0.201 corrected for 14 tests)'."""
  apart = intervals.differences[baseline, 'student', MAIN]
  way = 'above' if apart['value'] > 0 else 'below'
  tests = len(intervals.differences)
  p = f'p {"" if apart["p"] < LEAST else "= "}{chance(apart["p"])}'
  if tests > 1:
    p += f', {chance(apart["p_holm"])} corrected for {tests} tests'
  text = f'{number(abs(apart["value"]))} {way} {{}} (95 % interval {span(apart)}; {p})'
  if apart['p'] >= ALPHA:
    return f'{text}, which may be the luck of these queries'
  return text if apart['p_holm'] < ALPHA else f'{text}, not certain after that correction'


def chance(p: float) -> str:
  return f'{p:.3f}' if p >= LEAST else '< 0.001'


def ahead(intervals: Intervals) -> str:
  if ('bm25', 'student', MAIN) not in intervals.differences:
    return ''
  return f'The distilled student is {against(intervals, "bm25").format("BM25")}.'


def handed_on(intervals: Intervals) -> str:
  lead, kept = intervals.lead, intervals.kept
  if lead is None:
    return ''
  if kept is None and not lead['low'] > 0:
    return (
      f'The teacher itself is not clearly better than BM25 ({number(lead["value"])}, '
      f'{span(lead)}), so there is no lead of which the student could keep a share.'
    )
  if kept is None:
    return f"The teacher's lead over BM25 is {number(lead['value'])} ({span(lead)})."
  return (
    f"It keeps {percent(kept['value'])} of the teacher's lead of {number(lead['value'])} over BM25 "
    f'(95 % interval of the share {percent(kept["low"])} to {percent(kept["high"])}).'
  )


def percent(share: float) -> str:
  return f'{100 * share:.0f}{SPACE}%'.replace('-', MINUS)


def over_labels(intervals: Intervals) -> str:
  if ('student_sft', 'student', MAIN) not in intervals.differences:
    return ''
  text = against(intervals, 'student_sft').format('the student that saw labels only')
  return f'Distillation itself: it is {text}.'


def cheaper(facts: Facts) -> str:
  """What a pair costs with the student, in the teacher's terms."""
  student, teacher = (facts.results.get(m, {}) for m in ('student', 'teacher'))
  times = [v.get('ms_per_pair', 0) for v in (student, teacher)]
  if not all(times):
    return ''
  text = f'It takes {times[0]:.3g} ms a pair where the teacher takes {times[1]:.3g}'
  sizes = [v.get('parameters', 0) for v in (student, teacher)]
  if all(sizes):
    text += f', with {percent(sizes[0] / sizes[1])} of its parameters'
  return text + '.'


def few(facts: Facts) -> str:
  rows = next(iter(facts.rows.values()), {})
  drawn = len(set(clusters(rows, facts.cluster)))
  what = 'queries' if drawn == len(rows) else 'clusters of queries'
  sure = drawn < FEWEST or drawn >= FEW  # below FEWEST there are no intervals
  return '' if sure else f'With so few {what} ({drawn}) intervals are narrower than they should be.'


def tiles(facts: Facts, intervals: Intervals) -> list[tuple[str, str, str]]:
  """The few figures to remember: (figure, of what, its interval)."""
  found = []
  student, teacher = (facts.results.get(m) for m in ('student', 'teacher'))
  if student:
    mean = intervals.means.get(('student', MAIN))
    value = number(float(student[MAIN]))
    found.append((value, 'nDCG@5 of the distilled student', span(mean) if mean else ''))
  if kept := intervals.kept:
    sure = f'{percent(kept["low"])} to {percent(kept["high"])}'
    found.append((percent(kept['value']), "of the teacher's lead over BM25 kept", sure))
  if student and teacher and student.get('ms_per_pair') and teacher.get('ms_per_pair'):
    times = teacher['ms_per_pair'] / student['ms_per_pair']
    found.append((f'{times:.1f} \N{MULTIPLICATION SIGN}', 'as fast as the teacher', ''))
  return found
