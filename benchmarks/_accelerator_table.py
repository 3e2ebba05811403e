"""The table of `bench accelerator`: what was measured, and what is only computed."""

import concurrent.futures
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._rows import Row
from disranker_jax.report import tables

HEADS = ('work', 'device', 'ours', 'torch bf16', 'ours is faster', 'MFU', 'step GB', 'peak GB',
         'remarks')  # fmt: skip
UNITS = {'pairs': 'pairs_per_s', 'tokens': 'tokens_per_s'}
# For computed figures: an H200's measured bf16 matrix product, and shares of it that were reached.
PEAK, EFFICIENCY = 790e12, {'pairs': 0.55, 'tokens': 0.5}
MEASURED = 'measured'


def text(rows: Sequence[Row], records: dict[str, dict | None]) -> str:
  """The Markdown table of all rows, measured or not, and what the columns are."""
  open_rows = [r for r in rows if r.kind in UNITS and not is_measured(records.get(r.name))]
  small = any(record and record['small'] for record in records.values())
  computed = {} if small else planned(open_rows)
  lines = [line(row, records, computed.get(row.name)) for row in rows]
  known = [record for record in records.values() if is_measured(record)]
  about = sorted({f'commit {r["commit"] or "unknown"}, {r["date"]}' for r in known})
  head = 'Measured with ' + '; '.join(about) if about else 'Nothing is measured'
  head += '. Tiny models: the figures show only that the rows work' if small else ''
  note = (
    f'Planned figures are computed: FLOPs at {EFFICIENCY["pairs"]:.0%} (scoring) or '
    f'{EFFICIENCY["tokens"]:.0%} (training) of {PEAK / 1e12:.0f} TFLOP/s.'
  )
  return '\n\n'.join([f'{head}.', tables.markdown(HEADS, lines), *([note] if computed else [])])


def is_measured(record: dict | None) -> bool:
  return bool(record) and record['status'] == MEASURED


def line(row: Row, records: dict[str, dict | None], computed: float | None) -> list[str]:
  """The cells of a row."""
  record = records.get(row.name)
  if not is_measured(record):
    unit = 'pairs/s' if row.kind == 'pairs' else 'tokens/s'
    figure = f'planned: {computed:,.0f} {unit}' if computed else 'planned'
    return [row.what, '', figure, '', '', '', '', '', record['reason'] if record else 'not run']
  cells = {'latency': latency, 'start': start, 'run': whole}.get(row.kind, rates)
  return [row.what, record['device'], *cells(row, record, records)]


def rates(row: Row, record: dict, records: dict) -> list[str]:
  answer, key = record['answer'], UNITS[row.kind]
  unit = 'pairs/s' if row.kind == 'pairs' else 'tokens/s'
  torch = answer['sides'].get('torch_bf16')
  remarks = []
  if (base := records.get(row.base)) and is_measured(base):
    remarks.append(f'{answer[key] / base["answer"][key]:.2f} times {row.base}')
  if 'pairs_per_kwh' in answer:
    remarks.append(f'{answer["watts"]:,.0f} W, {answer["pairs_per_kwh"]:,.0f} pairs per kWh')
  if 'checkpoint_stall_s' in answer:
    remarks.append(f'a checkpoint stalls the loop for {answer["checkpoint_stall_s"]:.2f} s')
  gb = lambda k: f'{answer[k] / 1e9:.1f}' if answer.get(k) else ''  # noqa: E731
  return [
    f'{answer[key]:,.0f} {unit}', f'{torch[key]:,.0f}' if torch else '',
    f'{torch["first_is_faster"]["median"]:.2f}' if torch else '',
    f'{answer["mfu"]:.0%}' if 'mfu' in answer else '',
    gb('compiled_bytes'), gb('device_bytes'), '; '.join(remarks),
  ]  # fmt: skip


def latency(row: Row, record: dict, records: dict) -> list[str]:
  systems = record['answer']
  ours, (name, torch) = systems['ours jax'], next(x for x in systems.items() if 'torch' in x[0])
  remarks = f'95 %: {ours["p95_ms"]:.1f} ms' + '; torch.compile' * name.endswith('compiled')
  ratio = f'{torch["first_is_faster"]:.2f}'
  return [f'{ours["p50_ms"]:.1f} ms', f'{torch["p50_ms"]:.1f}', ratio, '', '', '', remarks]


def start(row: Row, record: dict, records: dict) -> list[str]:
  cold, warm = (record['answer']['start'][k] for k in ('cold', 'warm'))
  remarks = f'{warm["start_s"]:.1f} s with a filled compile cache'
  return [f'{cold["start_s"]:.1f} s', '', '', '', '', '', remarks]


def whole(row: Row, record: dict, records: dict) -> list[str]:
  return [f'{record["seconds"]:,.0f} s', '', '', '', '', '', '']


def planned(rows: Sequence[Row]) -> dict[str, float]:
  """{row: computed rate}; a process of its own traces the steps, on the CPU."""
  if not rows:
    return {}
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    return pool.submit(_planned, rows).result()


def _planned(rows: Sequence[Row]) -> dict[str, float]:
  import jax

  jax.config.update('jax_platforms', 'cpu')
  known = [row for row in rows if not row.key]  # 8 bits have another peak
  return {row.name: EFFICIENCY[row.kind] * PEAK / flops_of(row) for row in known}


def flops_of(row: Row) -> float:
  """The model's FLOPs per pair or token of a row's command."""
  from benchmarks import _compare, _ours, _work
  from disranker_jax.devices import sharding
  from disranker_jax.pipeline import steps, systems

  _, bench, *words = row.words
  stages = _work.TRAINING if bench == 'train' else _work.SCORING
  args = _compare.parse(_compare.parser(bench, '', stages, 1), words)
  config, mesh = args.config, sharding.make_mesh(args.config.mesh, None)
  with tempfile.TemporaryDirectory() as folder:
    work = _work.open_work(args, Path(folder))
    network = work.open_side().network
    if bench == 'train':
      step = steps.training(config, systems.find(config, args.stage), network, mesh)
    else:
      count = config[args.stage].batch_rows
      opened = steps.by_pairs(work.settings, work.scorer, count, mesh)
      step = steps.scoring(work.settings, network, opened, mesh)
  each = _ours.model_flops(step.network, step.batch, step.trained) / step.batch['tokens_BT'].size
  return each * (args.tokens if row.kind == 'pairs' else 1)
