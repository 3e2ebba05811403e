"""The two sides of distillation, teacher and student: opening one, and where its parameters are."""

import dataclasses
import functools
from pathlib import Path

import jax
from transformers import AutoTokenizer

from disranker_jax.data import batches
from disranker_jax.data.prompts import PairPrompt, TextPrompt
from disranker_jax.devices import processor, sharding
from disranker_jax.errors import UserError
from disranker_jax.models import hf, tree, weights
from disranker_jax.models.network import Network, from_hf
from disranker_jax.rankers.pointwise import Scorer
from disranker_jax.training import checkpoint, train


@dataclasses.dataclass(frozen=True)
class Side:
  """A network, its tokenizer and its settings; parameters are asked for separately."""

  settings: object
  folder: Path  # the Hugging Face folder it came from
  network: Network
  tokenizer: object

  def prompt(self, template: str = '', predict: str | None = None) -> PairPrompt | TextPrompt:
    """How this side reads a query and a document; `template` and `predict` are for a decoder."""
    s = self.settings
    if not self.network.is_decoder:
      return PairPrompt(self.tokenizer, s.max_len, s.max_query_len)
    template = template or s.template
    if predict is None:
      predict = 'query' if 'likelihood' in s.scorer else 'document'
    return TextPrompt(self.tokenizer, s.max_len, s.max_query_len, template, predict)

  def pretrained(self, seed: int, mesh) -> dict:
    """The folder's parameters on the mesh; what it lacks (a head) is drawn from the seeds' sum."""
    shapes = jax.eval_shape(self.network.init, jax.random.key(0))
    variables = hf.load(
      self.folder,
      self.network,
      jax.random.key(seed + self.settings.seed),
      layers=list(self.settings.layers) or None,
      dtype=self.settings.param_dtype,
      shardings=tree.flatten(sharding.shardings(shapes, mesh)['params']),
    )
    return sharding.put(variables, mesh)


# The heads that the teacher's ways of scoring need.
HEADS = {'eos': 'rank', 'likelihood': 'lm', 'eos+likelihood': 'both'}


def open_ranker(folder: Path, settings, head: str = 'rank') -> Network:
  """The network of a folder's config.json, as the settings want it run."""
  return from_hf(
    folder,
    precision=precision(settings.precision),
    lora_rank=settings.lora_rank,
    lora_alpha=settings.lora_alpha,
    remat=settings.remat,
    scan=settings.scan_layers,
    layers=list(settings.layers) or None,
    head=head,
    attention=settings.attention,
    sequence=settings.shard_sequence,
  )


def open_side(settings, head: str = 'rank') -> Side:
  """Finds the model by name and reads its config and tokenizer; no parameters yet."""
  folder = weights.find(settings.model)
  network = open_ranker(folder, settings, head)
  return Side(settings, folder, network, open_tokenizer(folder))


def open_tokenizer(folder: Path):
  """A folder's tokenizer, which cuts nothing: prompts cut to length themselves."""
  try:
    tokenizer = AutoTokenizer.from_pretrained(folder)
  except (OSError, ValueError) as e:
    raise UserError(f'{folder}: no usable tokenizer: {checkpoint.first_line(e)}') from e
  if not tokenizer.is_fast:
    raise UserError(f'{folder}: needs a tokenizer.json (a fast tokenizer)')
  tokenizer.model_max_length = 1 << 30
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.backend_tokenizer.no_padding()
  return tokenizer


def open_teacher(config) -> Side:
  """The teacher with the heads that its way of scoring needs."""
  return open_side(config.teacher, HEADS[config.teacher.scorer])


def precision(asked: str, platform: str | None = None) -> str:
  """What 'auto' means on a platform ('cpu', 'tpu', 'gpu'; None: where this process computes).

  bfloat16 on an accelerator. A CPU is fast only with fp32 sums, and has bf16 operands where its
  processor is faster with them.
  """
  if asked != 'auto':
    return asked
  if (platform or jax.default_backend()) != 'cpu':
    return 'bfloat16'
  return 'bfloat16_dots' if processor.multiplies_bf16_faster() else 'float32'


# The stages that train each side, in the order in which their parameters build on each other.
TEACHER_STAGES = ('cpt', 'sft')


def student_stages(config) -> dict[str, tuple[str, ...]]:
  """For each trained student the stages whose parameters lie over the pretrained ones, in order."""
  start = (config.distill.init_from,) if config.distill.init_from else ()
  return {'student_sft': ('student_sft',), 'student': (*start, 'distill')}


def trained(run, side: Side, stages: tuple[str, ...]) -> dict:
  """The pretrained parameters with those that the given stages trained laid over them, in order.

  Stages that the config does not list are passed over.
  """
  flat = tree.flatten(side.pretrained(run.config.seed, run.mesh))
  for stage in stages:
    if stage in run.config.stages:
      saved = checkpoint.load_params(run.folder(stage) / 'checkpoints', run.mesh)
      # Another stage may have trained a head that this side does not have.
      flat |= {k: v for k, v in tree.flatten(saved).items() if k in flat}
  return tree.unflatten(flat)


def job(run, stage: str, task: train.Task, source, encode, draw=None, unit='pairs') -> train.Job:
  """A stage's task on its records, for as many steps as its settings ask."""
  from disranker_jax.pipeline import systems  # which imports the stages

  c = run.config[stage]
  seed = run.config.seed + systems.model_settings(run.config, stage).seed
  data = batches.training(source, encode, task.shape, seed=seed, draw=draw, blocks=c.data_shards)
  steps = train.steps(c, data, len(source))
  folder, watchdog_s = run.folder(stage), run.config.watchdog_s
  return train.Job(stage, folder, task.loss, data, c, steps, unit, watchdog_s)


def scorer(
  run, side: Side, variables, rows: int, kind: str = 'eos', prompt=None, workers: int = 0
) -> Scorer:
  """A side with parameters, ready to score groups in batches of `rows` packed rows."""
  prompt = prompt or side.prompt()
  network, variables = merged(side.network, variables)
  row_len, watchdog_s = side.settings.row_len, run.config.watchdog_s
  return Scorer(network, variables, prompt, run.mesh, rows, row_len, kind, watchdog_s, workers)


def merged(network: Network, variables: dict) -> tuple[Network, dict]:
  """The network with its adapters added to fp32 kernels, which is faster: arrays or shapes.

  Adapters of bf16 kernels stay beside them, since a sum in bf16 would round them away.
  """
  kernels = [v for k, v in tree.flatten(variables['params']).items() if k.endswith('kernel')]
  if not network.lora_rank or any(k.dtype != 'float32' for k in kernels):
    return network, variables
  shapes = isinstance(kernels[0], jax.ShapeDtypeStruct)
  add = functools.partial(jax.eval_shape, network.merge_lora) if shapes else network.merge_lora
  params = add(variables['params'], variables['lora'])
  return dataclasses.replace(network, lora_rank=0), {'params': params}
