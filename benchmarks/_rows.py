"""What `bench accelerator` measures: each row is a command with its own time limit.

The order is that of their cost on one GPU. Variants come last; they are compared with their base.
"""

import dataclasses

from disranker_jax import config as configs
from disranker_jax.models import weights

PAPER = 'configs/disranker_mistral_7b.py'
TINY = 'configs/tiny.py'


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  name     for --rows
  what     the first column
  words    the command after `disranker`; '{out}' is the folder of the row's own files
  kind     'pairs' or 'tokens' per second, 'latency', 'start', or 'run', the time of the command
  limit_s  it is ended after so many seconds
  base     the row whose rate it is compared with, for a variant
  env      more environment
  key      a config key without which the row does not exist yet
  models   weights that must be there
  """

  name: str
  what: str
  words: tuple[str, ...]
  kind: str
  limit_s: float = 120.0
  base: str = ''
  env: tuple[tuple[str, str], ...] = ()
  key: str = ''
  models: tuple[str, ...] = ()

  def missing(self, small: bool) -> str:
    """Why it cannot run here; '' if it can."""
    if small and self.models:
      return 'there is no small one of it'
    if self.key and self.key not in configs.flatten(configs.defaults()):
      return f'there is no config.{self.key} yet'
    if absent := [name for name in self.models if not weights.unpacked(name)]:
      return f'weights {", ".join(absent)} are not here: disranker weights {absent[0]}'
    return ''

  def command(self, out: str, small: bool) -> list[str]:
    """The words after `disranker`; `small`: of tiny models, without peers, for a CPU."""
    return [word.replace('{out}', out) for word in (shrunk(self) if small else self.words)]


def shrunk(row: Row) -> list[str]:
  """The row's command on tiny models."""
  sizes = {'tokens': 24, 'batch_rows': 8, 'lora_rank': 4, 'max-len': 48, 'depth': 8, 'queries': 1}
  out = []
  for word in row.words:
    flag = word.partition('=')[0]
    name = flag.lstrip('-').rpartition('.')[2]
    out.append(f'{flag}={sizes[name]}' if name in sizes else word)
  if row.kind == 'run':
    return [*out, '--no-estimate', '--stages=prepare,student_sft']
  out = [w for w in out if not w.startswith(('--config=', '--config.mesh', '--peers', '--systems'))]
  out += [f'--config={TINY}']
  if row.kind == 'latency':
    return [*out, '--systems=ours jax,torch bf16', '--rounds=1']
  out += ['--config.mesh.data=1', '--steps=1']
  return out if row.kind == 'start' else [*out, '--peers=none']


def _bench(name: str, stage: str, *words: str, peers: str = 'none') -> tuple[str, ...]:
  common = ('--config.mesh.data=-1', '--config.mesh.fsdp=1', '--apart', '--rounds=1', '--json')
  return ('bench', name, f'--config={PAPER}', f'--stage={stage}', *words, *common,
          f'--peers={peers}', '--workdir={out}/../data')  # fmt: skip


def _score(tokens: int, *words: str, peers: str = 'none') -> tuple[str, ...]:
  low = '--config.teacher.param_dtype=bfloat16'
  return _bench('score', 'score', f'--tokens={tokens}', low, '--config.score.batch_rows=32',
                '--steps=2', *words, peers=peers)  # fmt: skip


def _train(stage: str, tokens: int, *words: str, peers: str = 'none') -> tuple[str, ...]:
  return _bench('train', stage, f'--tokens={tokens}', f'--config.{stage}.data_shards=1', *words,
                '--parts=64', peers=peers)  # fmt: skip


def _teacher(stage: str, tokens: int, *words: str, peers: str = 'none') -> tuple[str, ...]:
  return _train(stage, tokens, f'--config.{stage}.batch_rows=16', '--steps=1', *words, peers=peers)


def _whole(stage: str) -> tuple[str, ...]:
  return (f'--config.{stage}.optimizer=adafactor',)


def _lora(stage: str) -> tuple[str, ...]:
  low = '--config.teacher.param_dtype=bfloat16'  # of what is not trained
  return ('--config.teacher.lora_rank=16', f'--config.{stage}.trainable=lora|score', low)


def _student(stage: str, peers: str = 'none', scan: bool = False) -> tuple[str, ...]:
  return _train(stage, 256, f'--config.{stage}.batch_rows=64', '--no-checkpoint',
                f'--config.student.scan_layers={scan}', peers=peers)  # fmt: skip


LATENCY = (
  'bench', 'latency', f'--config={PAPER}', '--random={out}/student', '--max-len=256',
  '--depth=48', '--queries=4', '--json={out}/latency.json',
  '--systems=ours jax,torch bf16',
)  # fmt: skip
BF16 = 'torch_bf16'
# Of JAX's and NVIDIA's pages about XLA on GPUs. The first two overlap the steps of the loop over
# layers, mostly their communication; the others are about which library multiplies.
FLAGS = {
  'lhs': '--xla_gpu_enable_latency_hiding_scheduler=true '
  '--xla_gpu_enable_while_loop_double_buffering=true',
  'triton': '--xla_gpu_triton_gemm_any=true',
  'cublas': '--xla_gpu_enable_triton_gemm=false',
}


def _flagged(base: Row, name: str) -> Row:
  return dataclasses.replace(
    base, name=f'{base.name}_{name}', what=f'{base.what}; {FLAGS[name]}', base=base.name,
    words=tuple('--peers=none' if w.startswith('--peers=') else w for w in base.words),
    env=(('XLA_FLAGS', FLAGS[name]),),
  )  # fmt: skip


STUDENT = Row(
  'student_scores', 'student scores, 256 tokens, 64 rows',
  _bench('score', 'evaluate', '--tokens=256', '--config.evaluate.batch_rows=64', peers=BF16),
  'pairs',
)  # fmt: skip
SCORE = Row('score_128', '7B scores, 128 tokens, bf16', _score(128, peers=BF16), 'pairs')
SFT = Row(
  'sft', '7B sft, all parameters, Adafactor',
  _teacher('sft', 128, *_whole('sft'), '--no-checkpoint', peers=BF16), 'tokens', 150,
)  # fmt: skip
DOTS = '--config.teacher.remat=dots'
ROWS: tuple[Row, ...] = (
  STUDENT,
  Row('latency', 'student, one request of 48 texts of 256 tokens', LATENCY, 'latency'),
  Row('distill', 'distill, 256 tokens, 64 rows', _student('distill', BF16), 'tokens'),
  Row('student_sft', 'student_sft, 256 tokens, 64 rows', _student('student_sft'), 'tokens'),
  Row(
    'start', 'distill, from the start of the process to the end of the first step',
    ('bench', 'growth', f'--config={PAPER}', '--stage=distill', '--axes=start', '--tokens=256',
     '--config.distill.batch_rows=64', '--config.distill.data_shards=1', '--config.mesh.data=-1',
     '--config.mesh.fsdp=1', '--json', '--workdir={out}/../data'),
    'start',
  ),
  SCORE,
  Row('score_256', '7B scores, 256 tokens, bf16', _score(256, peers=BF16), 'pairs'),
  Row(
    'score_int8', '7B scores, 128 tokens, int8', _score(128, '--config.score.quantize=int8'),
    'pairs', base='score_128', key='score.quantize',
  ),
  Row(
    'score_fp8', '7B scores, 128 tokens, fp8', _score(128, '--config.score.quantize=fp8'),
    'pairs', base='score_128', key='score.quantize',
  ),
  Row('run_tiny', 'the whole pipeline, configs/tiny.py',
      ('run', f'--config={TINY}', '--workdir={out}/run'), 'run', 180),
  SFT,
  Row('cpt_lora', '7B cpt, LoRA of rank 16',
      _teacher('cpt', 256, *_lora('cpt'), '--no-checkpoint', peers=BF16), 'tokens'),
  Row('sft_lora', '7B sft, LoRA of rank 16',
      _teacher('sft', 128, *_lora('sft'), '--no-checkpoint'), 'tokens'),
  Row('cpt', '7B cpt, all parameters, Adafactor',
      _teacher('cpt', 256, *_whole('cpt'), '--no-checkpoint'), 'tokens'),
  Row(
    'sft_dots', "7B sft; remat='dots', 8 rows, two micro-batches",
    _teacher('sft', 128, *_whole('sft'), '--config.sft.batch_rows=8', DOTS,
             '--config.sft.gradient_accumulation_steps=2', '--no-checkpoint'),
    'tokens', base='sft',
  ),
  Row('sft_lora_dots', "7B sft, LoRA; remat='dots'",
      _teacher('sft', 128, *_lora('sft'), DOTS, '--no-checkpoint'), 'tokens', base='sft_lora'),
  Row('distill_scan', "distill; the layers are a loop, which compiles faster",
      _student('distill', scan=True), 'tokens', base='distill'),
  *(_flagged(SFT, name) for name in FLAGS),
  _flagged(SCORE, 'cublas'),
  Row('checkpoint', '7B sft with a checkpoint of all parameters',
      _teacher('sft', 128, *_whole('sft')), 'tokens', 180, base='sft'),
  Row('latency_compiled', 'one request beside torch.compile, which takes minutes to compile',
      (*LATENCY[:-1], '--systems=ours jax,torch bf16 compiled'), 'latency', 240),
  Row(
    'run_python_docs', 'the whole pipeline, configs/python_docs.py',
    ('run', '--config=configs/python_docs.py', '--workdir={out}/run'), 'run', 600,
    models=('smollm2-135m', 'minilm-l6'),
  ),
)  # fmt: skip
