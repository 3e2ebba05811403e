"""Continued pre-training: the decoder learns to write the page that a query's user clicked.

Paper section 3.1: the query is the prompt; the loss is on title and summary. `predict = 'query'`
swaps the two, as a warm start for a likelihood scorer. `objective = 'masked'` hides tokens of the
whole text instead, which a bidirectional decoder learns to name (LLM2Vec).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from disranker_jax import escaping
from disranker_jax.config.settings import Key, at_least, between, one_of, text
from disranker_jax.data import batches
from disranker_jax.data.masking import RULES, masking
from disranker_jax.data.prompts import template_fields
from disranker_jax.data.records import Click
from disranker_jax.devices import processes
from disranker_jax.errors import UserError
from disranker_jax.models.generate import generate
from disranker_jax.models.load import TextModel, open_model
from disranker_jax.pipeline.stage import Run, Stage
from disranker_jax.progress import amount, say
from disranker_jax.rankers.pointwise import predicted_per_row
from disranker_jax.stages import held_out, held_out_measures, prepare, roles, room
from disranker_jax.stages.teacher import check_template
from disranker_jax.training import train
from disranker_jax.training.feed import OfflineFeed
from disranker_jax.training.settings import training


def next_token_loss(network, variables, batch):
  """Negative log-probability of the predicted tokens: (sum, tokens, metrics)."""
  hidden_BTD = network.hidden(variables, batch)
  real_AP = batch['owner_AP'] >= 0
  predicted = batch['index_AP'], batch['targets_AP'], real_AP
  total, tokens = -jnp.sum(network.logprobs(variables, hidden_BTD, *predicted)), jnp.sum(real_AP)
  perplexity = jnp.exp(total / jnp.maximum(tokens, 1))
  return total, tokens, {'perplexity': perplexity, 'examples': jnp.sum(batch['mask_GN'])}


def task(config, network, role: str = 'teacher') -> train.Task:
  """The loss and the batch shape of the stage that trains a role's model."""
  return _task(config.cpt, network, config[role].row_len)


def _task(c, network, row_len: int) -> train.Task:
  if network.causal == (c.objective == 'masked'):
    what = 'causal' if network.causal else 'bidirectional'
    raise UserError(
      f"objective={c.objective!r}: does not fit a {what} model; 'masked' is for bidirectional "
      "ones, 'next_token' for causal ones"
    )
  return train.Task(functools.partial(next_token_loss, network), shape_of(c, row_len))


def shape_of(c, row_len: int) -> batches.Shape:
  """The shape of a batch."""
  predict = 'query' if c.objective == 'masked' else c.predict  # half of a row is enough
  return batches.Shape(c.batch_rows, row_len, 1, predicted_per_row(predict, row_len))


def encoder(run, model: TextModel):
  """click -> what the model reads and predicts; for masked tokens (click, seed) -> it."""
  c = run.config.cpt
  plain = functools.partial(batches.encode_click, model.prompt(predict=c.predict))
  if c.objective != 'masked':
    return plain
  vocabulary = model.network.config.vocab
  hide = masking(model.tokenizer, vocabulary, c.mask_token, c.mask_share, c.mask_rule)

  def masked(drawn: tuple[Click, int]) -> batches.EncodedGroup:
    click, seed = drawn
    group = plain(click)
    return dataclasses.replace(group, docs=[hide(group.docs[0], np.random.default_rng(seed))])

  return masked


def draw(click: Click, rng: np.random.Generator) -> tuple[Click, int]:
  """The click with a seed of the tokens to hide, a new one in each epoch."""
  return click, int(rng.integers(2**32))


def job(run, model: TextModel, clicks=None) -> tuple[train.Job, OfflineFeed]:
  """The stage on some clicks; None: all prepared ones."""
  clicks = prepare.records(run, 'clicks') if clicks is None else clicks
  computed = _task(run.config.cpt, model.network, model.settings.row_len)
  choose = draw if run.config.cpt.objective == 'masked' else None
  return roles.job(run, 'cpt', computed, clicks, encoder(run, model), choose, unit='clicks')


def measure(run, model: TextModel, clicks) -> held_out_measures.MeanLoss | None:
  """The loss on held-out clicks; None without any."""
  computed = _task(run.config.cpt, model.network, model.settings.row_len)
  encode = encoder(run, model)
  if run.config.cpt.objective == 'masked':
    clicks = [(click, i) for i, click in enumerate(clicks)]
  documents = [encode(click) for click in clicks]
  return (
    held_out_measures.MeanLoss(run, computed.loss, documents, computed.shape) if clicks else None
  )


def execute(role: str, run: Run) -> dict:
  c = run.config.cpt
  model = open_model(run.config[role], 'lm')
  variables = roles.trained(run, role, model, (), trains='cpt')
  clicks = prepare.records(run, 'clicks')
  split = held_out.split(run, 'cpt', clicks)
  todo, feed = job(run, model, split.learned)
  checked = held_out.validation('cpt', todo, measure(run, model, split.measured))
  variables = train.fit(todo, feed, variables, run.mesh, checked)
  if c.samples and c.objective != 'masked':
    write_samples(run, model, variables, [clicks[i] for i in range(min(c.samples, len(clicks)))])
  return {'rows': len(split.learned)} | held_out.results(todo, checked)


def write_samples(run, model, variables, clicks) -> None:
  """samples.md: for some clicks the prompt, the model's continuation and the real one."""
  tokenizer, predict = model.tokenizer, run.config.cpt.predict
  prompts, truths = [], []
  for click in clicks:
    encoded = batches.encode_click(model.prompt(predict=predict), click).docs[0]
    start, stop = encoded.predict
    if start == stop:  # nothing is written for it
      continue
    prompts.append(encoded.ids[:start].tolist())
    truths.append(tokenizer.decode(encoded.ids[start:stop], skip_special_tokens=True))
  room = 24 if predict == 'query' else 64
  if not prompts:
    return
  outputs = generate(model.network, variables, prompts, max_new=room, eos_id=tokenizer.eos_token_id)
  lines = ['# What the model writes after continued pre-training', '']
  for prompt, truth, output in zip(prompts, truths, outputs, strict=True):
    lines += [
      f'- given: {escaping.code(tokenizer.decode(prompt, skip_special_tokens=True))}',
      f'  - written: {escaping.code(tokenizer.decode(output, skip_special_tokens=True))}',
      f'  - the click: {escaping.code(truth)}',
    ]
  if processes.is_first():
    (run.folder('cpt') / 'samples.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def check(role: str, config) -> None:
  settings = config[role]
  if settings.get('input', 'template') != 'template':
    raise UserError(
      f'config.{role}.input={settings.input!r}: cpt learns to write the template and its '
      "end; take cpt out of config.stages, or set input='template'"
    )
  held_out.check(config, 'cpt', ('loss',))
  if settings.bidirectional != (config.cpt.objective == 'masked'):
    raise UserError(
      f'config.cpt.objective={config.cpt.objective!r} does not fit config.{role}.bidirectional='
      f'{settings.bidirectional}: a model that sees the whole text learns from hidden tokens '
      "(objective='masked', bidirectional=True), one that does not from the next one"
    )
  if config.cpt.predict == 'query':
    why = "config.cpt.predict='query' predicts the query from the document"
    check_template(f'{role}.template', settings.template, why)


def check_models(config, models) -> None:
  """Raises: UserError for a token that cannot stand for a hidden one."""
  c = config.cpt
  for model in models.values():
    if c.objective == 'masked':
      vocabulary = model.network.config.vocab
      masking(model.tokenizer, vocabulary, c.mask_token, c.mask_share, c.mask_rule)


def check_records(role: str, run: Run) -> None:
  """Raises: UserError, before the first model runs, for clicks that nothing can be learned from."""
  held_out.check_records(run, 'cpt', 'clicks')
  c, settings, clicks = run.config.cpt, run.config[role], prepare.records(run, 'clicks')

  def encoder():
    prompt = open_model(settings, 'lm').prompt(predict=c.predict)
    return functools.partial(batches.encode_click, prompt)

  if c.objective != 'masked':  # fewer than half of the tokens, which always fit
    learned = functools.partial(held_out.learned, run, clicks)
    room.check(run, 'cpt', shape_of(c, settings.row_len), learned, encoder)
  fields = template_fields(settings.get('template', ''))
  if c.predict != 'document' or 'summary' in fields or 'title' not in fields:
    return
  count = min(len(clicks), LOOKED_AT)
  without = sum(not clicks[i].title.strip() for i in range(count))
  if without == count:
    raise UserError(
      f'config.{role}.template={settings.template!r}: cpt would learn to write titles, and the '
      f'first {amount(count, "click has", "clicks have")} none; add {{summary}} to it'
    )
  if without:
    verbs = ('has', 'teaches') if without == 1 else ('have', 'teach')
    say(
      f'cpt: {without:,} of the first {amount(count, "click")} {verbs[0]} no title and {verbs[1]} '
      'nothing'
    )


LOOKED_AT = 10_000  # clicks that are looked at before training
SETTINGS = {
  **training(),
  'predict': Key(
    'document', one_of('document', 'query'),
    "What is learned: 'document', the paper's query -> title + summary, or 'query', the reverse.",
  ),
  'objective': Key(
    'next_token', one_of('next_token', 'masked'),
    "'next_token', or 'masked': hidden tokens of query, title and summary, each predicted at the "
    'position before it, for a bidirectional teacher (LLM2Vec).',
  ),
  'mask_token': Key('_', text('a token', empty=False), 'What stands for a hidden token.'),
  'mask_share': Key(0.2, between(0, 0.5), 'Of the tokens, how many are chosen.'),
  'mask_rule': Key(
    'bert', one_of(*RULES),
    "'bert' hides 80 % of the chosen tokens and replaces 10 %; 'all' hides all of them.",
  ),
  'samples': Key(
    4, at_least(0),
    'Clicks whose continuation is written to samples.md, unless tokens are masked.',
  ),
}  # fmt: skip


def stage(role: str) -> Stage:
  """The stage that trains a role's decoder."""
  return Stage(
    'cpt', f'the {role} reads clicks (continued pre-training)', functools.partial(execute, role),
    settings=SETTINGS, check=functools.partial(check, role), check_models=check_models, role=role,
    reads_stages=('prepare',), reads_records=lambda config: ('clicks',),
    check_records=functools.partial(check_records, role),
    head=lambda config: 'lm', task=functools.partial(task, role=role), unit='clicks',
    paper_rows=59_579_125,
  )  # fmt: skip


STAGE = stage('teacher')
