"""The settings that every training stage has."""

from ml_collections import ConfigDict

from disranker_jax.config.settings import (
  Key,
  Section,
  above,
  at_least,
  between,
  boolean,
  build,
  one_of,
  regex,
  share,
  with_defaults,
)

LEAST = 10  # held-out queries; fewer say nothing
# A `trainable` that trains adapters and the heads of every model family, and no other parameter.
ADAPTERS = 'lora|params/(score|classifier|pooler|dense|head_norm)/'
# What is held out, for all training stages: their values can be compared.
HELD_OUT: Section = {
  'share': Key(
    0.05, share(below_one=True),
    'Share of the queries, by a hash of the text, that no stage learns from: they are for '
    'validation. 0: none. docs/results.md says what the curves tell about data, optimisation and '
    'capacity.',
  ),
  'max_queries': Key(
    100, between(LEAST, 100_000), 'Held-out queries that a stage measures, at most.'
  ),
  'documents': Key(
    10, between(2, 10_000),
    'Documents of a held-out query that are ranked: one of each grade, the rest random; of more '
    'grades the best, the worst and random ones.',
  ),
}  # fmt: skip
# What a training stage does with it.
VALIDATION: Section = {
  'every': Key(
    0, at_least(0),
    'Steps between validations; 0: 2 to 20 in all, for about 5 % of the time of training.',
  ),
  'metric': Key(
    '', one_of('', 'loss', 'ndcg@5', 'pnr', 'tau'),
    "Which held-out value decides: '' is ndcg@5 where there are labels, else the loss.",
  ),
  'keep_best': Key(
    False, boolean(),
    'The result is the checkpoint of the best validation, not the last one. It is kept on disk.',
  ),
  'patience': Key(
    0, at_least(0),
    'Stop after so many validations without gain; 0: never. The last checkpoint is then not the '
    'best one, so set keep_best too.',
  ),
}  # fmt: skip
# A batch is `batch_rows` rows of `row_len` packed tokens.
SETTINGS: Section = {
  'epochs': Key(1.0, at_least(0), "Passes over the stage's data; may be a fraction."),
  'max_steps': Key(0, at_least(0), 'Stop after this many steps; 0: epochs decide.'),
  'batch_rows': Key(64, at_least(1), 'Rows of row_len tokens per step, over all devices.'),
  'data_shards': Key(
    1, at_least(1),
    'Parts of a batch that are packed independently, each read by the host that holds it: 1, or a '
    'multiple of mesh data x fsdp. It decides what is in a batch: keep it when the mesh changes.',
  ),
  'gradient_accumulation_steps': Key(
    1, at_least(1), 'Micro-batches of batch_rows rows whose gradients are summed for one update.'
  ),
  'learning_rate': Key(1e-5, above(0), 'Peak learning rate.'),
  'warmup_ratio': Key(0.03, share(), 'Share of the steps with a rising learning rate.'),
  'schedule': Key(
    'cosine', one_of('cosine', 'linear', 'constant'),
    "Learning rate after the warm-up: to zero ('cosine', 'linear') or 'constant'.",
  ),
  'weight_decay': Key(0.0, at_least(0), 'Decoupled weight decay of matrices.'),
  'max_grad_norm': Key(1.0, at_least(0), 'Largest global gradient norm; 0: no clipping.'),
  'optimizer': Key(
    'adamw', one_of('adamw', 'adafactor'), "'adafactor' keeps almost no optimizer state."
  ),
  'adam_b2': Key(0.999, share(below_one=True), "Adam's second decay rate."),
  'adam_mu_dtype': Key(
    'float32', one_of('float32', 'bfloat16'),
    "Type of Adam's first moment; 'bfloat16' saves 2 bytes per parameter.",
  ),
  'ema': Key(
    0.0, share(below_one=True),
    "Decay of an exponential moving average of the trained parameters, which is the stage's "
    'result, and what validation, keep_best and patience measure; such as .99, which looks back '
    "about 100 steps. 0: off, the result is the last step's. After step t = 0, 1, ... the decay is "
    '(1 + t) / (10 + t) at most, so that the start counts little. Training goes on from the '
    'parameters themselves, which also sample rewrites (rewrite) and search again (refresh). Takes '
    '4 bytes per trained parameter.',
  ),
  'skip_step_norm_ratio': Key(
    100.0, at_least(0),
    'A step whose gradient norm is this many times the running mean is skipped; 0: only steps '
    'that are not finite are skipped.',
  ),
  'trainable': Key(
    '.*', regex(),
    "Regular expression over parameter paths, such as 'lora/.*' or 'params/blocks/.*'. What it "
    'trains is float32, with its moments, whatever param_dtype of the model is.',
  ),
  'save_every': Key(500, at_least(1), 'Steps between checkpoints.', affects_results=False),
  'validation': VALIDATION,
}  # fmt: skip
# Stages that draw some documents of each query.
GROUPS: Section = {
  'group_size': Key(
    8, between(2, 10_000),
    'Documents per query in a step; a pair needs two. One of each grade, the rest random; of more '
    'grades the best, the worst and random ones.',
  )
}  # fmt: skip


def shortened(config, epoch: float) -> str:
  """That `max_steps` ends a stage before its epochs, as the end of its number of steps.

  Args:
    epoch: steps of one epoch.
  """
  if not 0 < config.max_steps < round(config.epochs * epoch):
    return ''
  return f' (max_steps; one epoch is {max(1, round(epoch)):,})'


def training(**defaults) -> Section:
  """The section with other defaults."""
  return with_defaults(SETTINGS, **defaults)


def defaults(**changes) -> ConfigDict:
  """A training section as a ConfigDict, for code that trains without the pipeline."""
  return build(SETTINGS, **changes)
