"""GRPO: the rewriter learns from the rewards of its own rewrites.

Each step samples rewrites of `prompts` queries, rewards them, and raises the probability of those
that are better than the others of their query (arXiv:2402.03300; TongSearch QR, arXiv:2506.11603).
It starts from what cpt trained.
"""

import functools
from collections.abc import Sequence

from disranker_jax.config.settings import (
  Key,
  above,
  at_least,
  between,
  boolean,
  finite,
  one_of,
  text,
  zero_or_at_least,
)
from disranker_jax.data import sources
from disranker_jax.data.records import Group
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.models.load import TextModel, open_model
from disranker_jax.models.writing import Texts
from disranker_jax.pipeline import inputs, manifest
from disranker_jax.pipeline.stage import Run, Stage, Use, Writing
from disranker_jax.progress import amount, say
from disranker_jax.rewriting import (
  engines,
  gain,
  objective,
  packed,
  queries,
  rewards,
  rewriter,
  start,
)
from disranker_jax.rewriting.policy import PolicyLoss
from disranker_jax.rewriting.prompts import RewritePrompt
from disranker_jax.rewriting.queries import Query
from disranker_jax.rewriting.rollouts import Rollouts, check_count, draws
from disranker_jax.rewriting.sampling import Sampler
from disranker_jax.rewriting.searches import Searches
from disranker_jax.stages import held_out, prepare, roles
from disranker_jax.training import optimizer, train
from disranker_jax.training.panels import Line, Panel
from disranker_jax.training.settings import VALIDATION, shortened, training
from disranker_jax.training.validation import STEP, described


def open_rewriter(config) -> TextModel:
  return open_model(config.rewriter, 'lm')


def longest(config) -> int:
  """Tokens of the longest prompt there can be."""
  return config.rewriter.max_len - config.rewrite.max_new


def task(config, network) -> train.Task:
  """The loss and the batch shape of the stage."""
  return task_of(config, network, packed.shape_of(
    config.rewrite, network, longest(config), config.rewriter.row_len
  ))  # fmt: skip


def task_of(config, network, shape: packed.Shape) -> train.Task:
  c, options = config.rewrite, {}
  if packed.has_reference(c):
    options['more'] = lambda variables: optimizer.start(variables, c.trainable)
  return train.Task(PolicyLoss(network, c, shape.facts), shape, **options)


def job(
  run, model: TextModel, learned: Sequence[Query], reward: rewards.Reward
) -> tuple[train.Job, Rollouts, train.Task]:
  """The stage on some queries."""
  config, c = run.config, run.config.rewrite
  seed = config.seed + config.rewriter.seed
  prompt = RewritePrompt(model, longest(config))
  texts = [query.text for query in learned]
  most = longest_prompt(prompt, texts)
  if cut := prompt.cut(texts):
    say(f'rewrite: {cut}')
  shape = packed.shape_of(c, model.network, most, config.rewriter.row_len, run.mesh)
  computed = task_of(config, model.network, shape)
  sampler = Sampler(
    model.network, run.mesh, prompt.stops, c.prompts, most, c.max_new, draws(c), c.temperature,
    c.top_p, seed, c.top_k,
  )  # fmt: skip
  feed = Rollouts(c, learned, prompt, reward, sampler, shape, run.mesh, seed)
  logs = config.tensorboard, config.wandb_project
  fewer = f', samples or drawn (now {c.drawn})' if c.drawn else ' or samples'
  todo = train.Job(
    'rewrite', run.folder('rewrite'), computed.loss, c, steps(c, len(learned)), 'samples',
    config.watchdog_s, *logs, f'lower config.rewrite.prompts (now {c.prompts}){fewer}',
    'rewriter', config.rewriter,
  )  # fmt: skip
  return todo, feed, computed


def longest_prompt(prompt: RewritePrompt, texts: Sequence[str]) -> int:
  """Tokens of the longest prompt there is; queries are shorter than they could be."""
  return max(len(prompt(text)) for text in texts)


def steps(c, count: int) -> int:
  """Updates for the configured passes over so many queries; at least one."""
  wanted = max(1, round(c.epochs * count * c.iterations / c.prompts))
  return min(wanted, c.max_steps) if c.max_steps else wanted


def execute(run: Run) -> dict:
  config, c = run.config, run.config.rewrite
  model = open_rewriter(config)
  every, documents = queries.training(run), queries.collection(config)
  split = held_out.split(run, 'rewrite', every, query=as_group)
  index = engines.ENGINES[c.engine](documents)
  reward = rewards.make(c, documents, index)
  todo, feed, computed = job(run, model, split.learned, reward)
  searches = Searches(run, model, split.measured, documents, index, reward)
  checked = held_out.validation('rewrite', todo, searches if split.measured else None)
  variables = roles.trained(run, 'rewriter', model, ('cpt',), trains='rewrite')
  results, before = {'rows': len(split.learned)}, {}
  if checked:
    results['before'] = searches(variables)
    before = searches.by_query
    say(f'rewrite: before the first step: {described(results["before"])}')
  variables = train.fit(todo, feed, variables | computed.more(variables), run.mesh, checked)
  if checked:  # with keep_best the last measured ones can be of another step
    searches(variables)
    results['gain'] = gain.gained(before, searches.by_query)
    count = len(split.measured)
    say(
      f'rewrite: on {amount(count, "held-out query", "held-out queries")}: '
      f'{gain.described(results["gain"])}'
    )
  elif some := [split.learned[i] for i in range(min(len(split.learned), c.shown))]:
    Searches(run, model, some, documents, index, reward)(variables)
  return results | held_out.results(todo, checked)


def as_group(query: Query) -> Group:
  """A query as it is held out."""
  return Group(query.query_id, query.text, query.positives)


def check(config) -> None:
  """Raises: UserError for settings that contradict each other."""
  c, settings = config.rewrite, config.rewriter
  if settings.bidirectional:
    raise UserError('config.rewriter.bidirectional: such a model writes no text; set it to False')
  if longest(config) < 1:
    raise UserError(
      f'config.rewrite.max_new={c.max_new}: must be below config.rewriter.max_len='
      f'{settings.max_len}, which holds the prompt too'
    )
  if draws(c) < c.samples:
    raise UserError(
      f'config.rewrite.drawn={c.drawn}: must be 0 or at least config.rewrite.samples={c.samples}, '
      'which are chosen from them'
    )
  parts = c.gradient_accumulation_steps * c.data_shards
  if c.prompts % parts:
    raise UserError(
      f'config.rewrite.prompts={c.prompts}: must be a multiple of gradient_accumulation_steps x '
      f'data_shards = {parts}'
    )
  if c.beta and c.kl == 'k1':
    raise UserError(
      "config.rewrite.kl='k1': has a gradient of zero on average, so beta would do nothing; write "
      "'k3' or 'k2', or set beta=0"
    )
  if c.think and c.max_new < 32:
    raise UserError(
      f'config.rewrite.max_new={c.max_new}: holds no thoughts and an answer (think=True); raise it'
    )
  rewards.parse(c.reward)
  start.check(config)
  if c.engine != config.search.engine and 'search' in config.stages:
    say(
      f'rewrite: learns from searches by config.rewrite.engine={c.engine!r}, and the table is of '
      f'config.search.engine={config.search.engine!r}'
    )
  held_out.check(config, 'rewrite', Searches.names)


def check_models(config, models) -> None:
  """Raises: UserError for a template that leaves no room, and for an embedder that is missing."""
  for model in models.values():
    try:
      RewritePrompt(model, longest(config))
    except UserError as e:
      raise UserError(f'config.rewriter.{e}') from e
  if 'embedding' in rewards.parse(config.rewrite.reward):
    try:
      weights.find(config.rewrite.embedder)
    except UserError as e:
      raise UserError(f'config.rewrite.embedder={config.rewrite.embedder!r}: {e}') from e


def check_records(run: Run) -> None:
  """Raises: UserError, before the first model runs, for queries that cannot be learned from."""
  found = queries.training(run)
  groups = [as_group(query) for query in found]
  kept = held_out.left(run, groups)
  check_count(run.config.rewrite, kept, len(found) - kept)
  known = {doc.doc_id for doc in queries.collection(run.config)}
  queries.check_collection(found, known, queries.address(run.config))
  held_out.check_records(run, 'rewrite', 'judgements', records=lambda: groups)


def uses(config) -> tuple[Use, ...]:
  rows = config.rewrite.prompts * config.rewrite.samples
  opened = functools.partial(open_rewriter, config)
  return (Use('rewriter', 'rewriter', opened, rows, tokens=tokens, writes=writes),)


def asked(run: Run, model: TextModel) -> tuple[int, int]:
  """(queries that are learned, tokens of the longest prompt), for the estimate."""
  texts = [group.query for group in prepare.records(run, 'judgements')]
  return len(texts), longest_prompt(RewritePrompt(model, longest(run.config)), texts)


def tokens(run: Run) -> tuple[float, str]:
  """(tokens of updates and of passes of the reference, as tokens of training; '')."""
  c, model = run.config.rewrite, open_rewriter(run.config)
  count, most = asked(run, model)
  shape = packed.shape_of(c, model.network, most, run.config.rewriter.row_len, run.mesh)
  updated = shape.rows * shape.row_len * c.gradient_accumulation_steps
  return steps(c, count) * updated * (1 + reference(c)), ''


def reference(c) -> float:
  """The pass of the policy of the start, as a share of an update."""
  return 1 / STEP / c.iterations if packed.has_reference(c) else 0.0


def writes(run: Run, model: TextModel) -> tuple[Writing, str]:
  """(the samples of all steps, what the stage does), for the estimate."""
  c = run.config.rewrite
  count, most = asked(run, model)
  updates = steps(c, count)
  texts, short = rollout(c, most), shortened(c, count * c.iterations / c.prompts)
  return [(texts, updates / c.iterations)], (
    f'{amount(updates, "step")}{short} of {amount(texts.rows, "sample")}'
  )


def rollout(c, most: int) -> Texts:
  """What is written for a step; `most`: tokens of the longest prompt."""
  return Texts(c.prompts, draws(c), most, c.max_new)


def outside(config, workdir) -> dict[str, str]:
  """The documents that are searched, and the embedder."""
  c, found = config.rewrite, {}
  if 'embedding' in rewards.parse(c.reward):
    found = inputs.of_model('rewrite.embedder', c.embedder)
  return found | {
    'data.documents': manifest.digest(sources.fingerprint(queries.address(config)))
  }  # fmt: skip


# The batch has all samples that are learned from, whatever their lengths: rows follow from
# `prompts` and `samples`.
BASE = {
  name: key
  for name, key in training(
    learning_rate=1e-6, schedule='constant', warmup_ratio=0.05, save_every=50
  ).items()
  if name != 'batch_rows'
}  # fmt: skip
SETTINGS = {
  **BASE,
  'gradient_accumulation_steps': Key(
    1, at_least(1), 'Micro-batches into which the prompts of a step are split.'
  ),
  'validation': {
    **VALIDATION,
    'metric': Key(
      '', one_of('', *Searches.names),
      "Which held-out value decides: '' is ndcg@10, of a search with the likeliest "
      "rewrites; 'reward' is their mean reward.",
    ),
  },
  'min_relevance': queries.MIN_RELEVANCE,
  'prompts': Key(8, at_least(1), 'Queries of a step.'),
  'samples': Key(8, at_least(2), 'Rewrites of each query that a step learns from.'),
  'drawn': Key(
    0, at_least(0),
    'Rewrites that are sampled of each query. `samples` of them are learned from, those whose '
    'rewards have the largest variance (PODS, arXiv:2504.13818). Sampling costs less than '
    'learning. 0: as many as `samples`.',
  ),
  **rewriter.SETTINGS,
  'temperature': Key(1.0, above(0), 'Of sampling.'),
  'top_p': Key(
    1.0, between(0, 1),
    'Tokens are drawn from the likeliest with so much probability. Below 1 samples are not those '
    'of the policy whose gradient is taken.',
  ),
  'top_k': Key(
    0, at_least(0),
    'Tokens are drawn from so many of the likeliest; 0: from all. Above 0 the same holds as for '
    'top_p below 1.',
  ),
  'reward': Key(
    'embedding', text('a reward', empty=False),
    "A weighted sum such as 'embedding+0.5*bm25', of: 'embedding', the gain in similarity to the "
    "query's documents; 'bm25', the gain in their nDCG in a search by `engine`; "
    "'repetition', minus the share of repeated words.",
  ),
  'engine': Key(
    'bm25', one_of(*engines.ENGINES),
    f'What searches for the reward and for held-out queries: {engines.WHAT} search.engine is a '
    'key of its own, so that one trained rewriter can be tested with several engines.',
  ),
  'embedder': Key('minilm-l6', text('a model', empty=False), "The encoder of 'embedding'."),
  'failure': Key(-1.0, finite(), 'The reward of a rewrite without a word, or with too many.'),
  'max_words': Key(0, at_least(0), 'Words of a rewrite; one with more fails. 0: any number.'),
  'scale': Key(
    'group', one_of(*objective.SCALES),
    "A reward counts by its distance from the mean of its query's, divided by their standard "
    "deviation ('group'), by that of the whole step ('batch'), or not divided ('none').",
  ),
  'aggregate': Key(
    'token', one_of(*objective.AGGREGATIONS),
    "The loss is the mean over tokens ('token'), over samples of their means ('sequence'), or over "
    "samples of their sums, divided by max_new ('constant').",
  ),
  'epsilon': Key(0.2, between(0, 1), 'A token counts until its probability fell by this share.'),
  'epsilon_high': Key(0.2, at_least(0), 'A token counts until its probability rose by this share.'),
  'beta': Key(
    0.02, at_least(0),
    'Weight of the divergence from the model at the start of the stage. 0 saves a forward pass '
    'and, with stop_kl=0, the copy of the trained parameters.',
  ),
  'kl': Key('k3', one_of(*objective.KLS), 'How that divergence is estimated from a token.'),
  'iterations': Key(
    1, at_least(1), 'Updates from the same samples. epsilon matters only if there are several.'
  ),
  'sampler_correction': Key(
    0.0, zero_or_at_least(1, usual=2),
    "A token's loss is multiplied by how much likelier it was for the trainer than for the "
    'sampler, at most by this. 0: off, as both compute the same but for rounding, '
    'which sampler_difference in metrics.jsonl shows.',
  ),
  'mask_truncated': Key(False, boolean(), 'Rewrites that were cut off are not learned from.'),
  'stop_kl': Key(
    0.0, at_least(0),
    'Training ends with an error if a rewrite is so many nats from the model at the start; 0: '
    'never.', affects_results=False,
  ),
  'shown': Key(
    20, at_least(0), 'Queries whose rewrites are listed in samples.md.', affects_results=False
  ),
}  # fmt: skip
PANELS = (
  Panel(
    'reward', (
      Line('reward', 'mean', 'mean reward', spread='reward_std'),
      Line('reward_best', 'best', 'best reward of a query'),
    ),
    held_out=('reward',),
    note="Reward: the mean of the samples, with a band of the standard deviation of a query's "
    'samples, and the best sample of a query, means over the queries; held out, of the likeliest '
    'rewrites.',
  ),
  Panel(
    'held-out queries', held_out=('ndcg',),
    note='Held-out queries: searches with the likeliest rewrites, in the whole collection.',
  ),
  Panel(
    'KL', (Line('kl', 'KL'),), unit='nats per rewrite',
    note='KL: from the model at the start of the stage.',
  ),
  Panel('entropy', (Line('entropy', 'entropy'),), unit='nats per token'),
  Panel('length', (Line('length', 'length'),), unit='tokens per rewrite'),
  Panel(
    'shares', (
      Line('equal_groups', 'equal', 'share of queries with equal rewards'),
      Line('cut', 'cut off', 'share of rewrites that are cut off'),
      Line('failures', 'failed', 'share of rewrites that failed'),
    ),
    note='Shares: queries whose samples all have the same reward, so they teach nothing; samples '
    'that are cut off; samples that fail.',
  ),
)  # fmt: skip
STAGE = Stage(
  'rewrite', 'the rewriter learns from the rewards of its rewrites (GRPO)', execute,
  settings=SETTINGS, check=check, check_models=check_models, check_records=check_records,
  role='rewriter', reads_stages=('prepare', 'cpt'), reads_records=lambda config: ('judgements',),
  uses=uses, outside=outside, addresses=queries.addresses, rows='prompts or samples',
  head=lambda config: 'lm', task=task,
  panels=PANELS, paper_rows=1_800,  # 150 steps of 12
)  # fmt: skip
