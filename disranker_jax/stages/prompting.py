"""LLM rankers in a run: the teacher's pretrained model as a row of the table, or as the scorer.

`evaluate.rankers` names methods that become rows, `score.method` the one that gives the teacher's
scores. Both stages have the same settings of prompts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from disranker_jax import losses
from disranker_jax.config.settings import Check, Key, Section, at_least, boolean, text
from disranker_jax.data.named_contracts import NAMED
from disranker_jax.data.records import Group
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import hf, weights
from disranker_jax.models.load import TextModel, is_language_model, open_tokenizer
from disranker_jax.pipeline.stage import Run, Use
from disranker_jax.rankers.llm import costs, methods
from disranker_jax.rankers.llm import ranker as rankers
from disranker_jax.rankers.llm.methods import METHODS, Options
from disranker_jax.rankers.llm.ranker import LLMRanker, Plan
from disranker_jax.stages import result_table, roles
from disranker_jax.stages.result_table import Ranking, Row


def is_contract(name: str) -> bool:
  return name in ('', *NAMED) or name.endswith('.json')


KEYS: Section = {
  'contract': Key(
    '', Check("a contract's name, FILE.json, or ''", is_contract),
    "The prompt, by name or as FILE.json; '': the method's own (docs/llm_rankers.md).",
  ),
  'instruction': Key('', text('an instruction'), "The contract's instruction; '': its own."),
  'chat': Key(False, boolean(), "Frame the prompt by the tokenizer's chat template."),
  'query_tokens': Key(Plan.query_tokens, at_least(1), 'Longer queries lose their end.'),
  'doc_tokens': Key(Plan.doc_tokens, at_least(1), 'Longer documents lose their end.'),
  'window': Key(Options.window, at_least(2), 'Documents of a listwise prompt.'),
  'stride': Key(Options.stride, at_least(1), 'How far apart windows begin.'),
  'passes': Key(Options.passes, at_least(1), 'Passes of windows.'),
  'top': Key(Options.top, at_least(1), 'Documents that a sort brings into order.'),
  'children': Key(
    Options.children, at_least(2), 'Documents that a setwise prompt compares with another one.'
  ),
}  # fmt: skip
# The fingerprint of a plan tells what changes a score, so no key makes a stage stale by itself.
PROMPTS: Section = {
  name: dataclasses.replace(key, affects_results=False) for name, key in KEYS.items()
}


def plan(config: ConfigDict, section: str, name: str) -> Plan:
  """What a method does with the settings of config.SECTION.prompts. Raises: UserError."""
  c = config[section].prompts
  try:
    method = methods.find(name)
    changes = {'instruction': c.instruction} if c.instruction else {}
    changes |= {'chat': True} if c.chat else {}
    own = method.contract if section == 'evaluate' and not fits(method, c.contract) else c.contract
    contract = methods.contract_of(method, own, **changes)
    options = Options(**{f.name: c[f.name] for f in dataclasses.fields(Options)})
    methods.check_size(method, options, contract)
  except UserError as error:
    raise UserError(f'config.{section}.prompts: {error}') from None
  return Plan(method, contract, options, c.query_tokens, c.doc_tokens)


def fits(method: methods.Method, contract: str) -> bool:
  """Whether a contract of the config is for this one of several rankers."""
  if not contract:
    return True
  try:
    methods.contract_of(method, contract)
  except UserError:
    return False
  return True


def stages(todo: Plan) -> tuple[str, ...]:
  """The stages whose parameters it reads: sft trains a head, but not the language model."""
  return ('cpt', 'sft') if todo.head == 'rank' else ('cpt',)


def open_model(config: ConfigDict, todo: Plan) -> TextModel:
  """The teacher's model for a plan, without parameters. Raises: UserError if it cannot do it."""
  check_decoder(config, todo)
  if todo.head == 'rank':
    model = roles.open_role(config, 'teacher')
  else:
    model = roles.open_zero_shot(config)
  rankers.check_length(todo, todo.prompt(model.tokenizer), model.network.config, model.folder)
  return model


def check_decoder(config: ConfigDict, todo: Plan) -> None:
  """Raises: UserError if the teacher's model is no decoder."""
  if not is_language_model(config.teacher.model):
    raise UserError(
      f'config.teacher.model={config.teacher.model!r}: answers no prompts, as method '
      f'{todo.method.name!r} needs it; name a decoder, or take the method out of '
      'config.evaluate.rankers and config.score.method'
    )


def check_model(config: ConfigDict, todo: Plan) -> None:
  """As `open_model`, from the model's config and tokenizer alone: no backend is started.

  Raises: UserError if the teacher's model cannot answer a plan's prompts.
  """
  check_decoder(config, todo)
  folder = weights.find(config.teacher.model)
  try:
    prompt = todo.prompt(open_tokenizer(folder))
  except UserError as error:
    raise UserError(f'config.teacher.model={config.teacher.model!r}: {error}') from None
  rankers.check_length(todo, prompt, hf.open_config(folder), folder)


def use(config: ConfigDict, section: str, name: str, label: str) -> Use:
  """What a stage declares that ranks with it; prompts of several documents are read repeatedly."""
  todo = plan(config, section, name)
  n = max(2, todo.options.window)
  times = todo.method.prompts(n, todo.options) * todo.method.docs(todo.options) / n
  rows = config[section].batch_rows
  open_it = functools.partial(open_model, config, todo)
  return Use(label, 'teacher', open_it, rows, times=max(1, round(times)))


def ranker(
  run: Run, todo: Plan, section: str, trained: Sequence[str], quantize: str = ''
) -> LLMRanker:
  """The ranker, in batches of as many tokens as the section's `batch_rows` rows have.

  Each of several processes has its own, on its own devices.
  """
  model = open_model(run.config, todo)
  own = sharding.local(run.mesh)
  variables = roles.trained(run, 'teacher', model, tuple(trained), own, trains='')
  prompt = todo.prompt(model.tokenizer)
  rows = rows_of(run.config, section, todo.row_len(prompt), run.mesh) * sharding.parts(own)
  return LLMRanker(todo, model.network, variables, prompt, own, rows, quantize=quantize)


def rows_of(config: ConfigDict, section: str, row_len: int, mesh) -> int:
  """Rows of a batch on each part of the mesh."""
  tokens = config[section].batch_rows * config.teacher.row_len
  return max(1, tokens // row_len // sharding.parts(mesh))


def rows(config: ConfigDict) -> list[Row]:
  """The rows of config.evaluate.rankers."""
  return [
    Row(
      name, f'{METHODS[name].title} ({Path(config.teacher.model).name})', rank, 'teacher',
      open=lambda config, name=name: open_model(config, plan(config, 'evaluate', name)),
      reads=lambda config, name=name: plan(config, 'evaluate', name).to_dict(),
      used=lambda config, name=name: use(config, 'evaluate', name, name),
    )
    for name in config.evaluate.rankers
  ]  # fmt: skip


def rank(run: Run, row: Row, groups: Sequence[Group]) -> Ranking:
  """The pretrained teacher ranks by a method; the facts are what it cost."""
  todo = plan(run.config, 'evaluate', row.name)
  todo = todo.fitted(max((len(group.docs) for group in groups), default=0))
  made = ranker(run, todo, 'evaluate', ())
  ranking = result_table.score_all(f'evaluate {row.name}', made, groups)
  found = costs.summary([costs.of_all_processes(made.counts)])
  facts = result_table.facts(made) | {
    'ms_per_query': made.work.of_all().ms_per(found['queries']),
    'tied_rate': found['tie_rate'],  # `tie_rate` of a row is of the pairs that PNR counts
    'note': costs.as_text(found),
  }
  left_out = ('queries', 'documents', 'tie_rate')
  return ranking, facts | {k: v for k, v in found.items() if k not in left_out}


def check_rows(config: ConfigDict) -> None:
  """Raises: UserError for rankers whose settings do not fit together."""
  for name in config.evaluate.rankers:
    if plan(config, 'evaluate', name).head == 'rank' and not config.teacher.ready:
      raise UserError(
        f'config.evaluate.rankers: {name!r} reads a linear head, which a pretrained teacher lacks; '
        'set config.teacher.ready=True if the model is a reranker with a head of its own, or train '
        'a teacher with a score head'
      )
  contract, names = config.evaluate.prompts.contract, config.evaluate.rankers
  if contract and names and not any(fits(METHODS[name], contract) for name in names):
    raise UserError(
      f'config.evaluate.prompts.contract={contract!r}: fits none of config.evaluate.rankers; set '
      "it to ''"
    )

  check_instruction(config, 'evaluate', [plan(config, 'evaluate', name) for name in names])


def check_instruction(config: ConfigDict, section: str, plans: Sequence[Plan]) -> None:
  """Raises: UserError for an instruction that no prompt has a place for."""
  text = config[section].prompts.instruction
  if text and plans and not any(todo.contract.reads_instruction for todo in plans):
    names = ', '.join(dict.fromkeys(todo.contract.name for todo in plans))
    raise UserError(
      f'config.{section}.prompts.instruction={text!r}: {names} has no {{instruction}}; set it to '
      "'', or take another contract"
    )


def check_scores(config: ConfigDict) -> None:
  """Raises: UserError for a method whose scores are not what the later stages expect."""
  name = config.score.method
  if not name:
    return
  todo = plan(config, 'score', name)
  check_instruction(config, 'score', [todo])
  key = f'config.score.method={name!r}'
  if todo.head != 'rank' and 'sft' in config.stages:
    raise UserError(
      f'{key}: reads the answers of the language model, which sft does not train; take sft out of '
      'config.stages'
    )
  if todo.head != 'rank' and config.teacher.bidirectional and 'cpt' in config.stages:
    raise UserError(
      f'{key}: reads next-token logits, and cpt trains a bidirectional model; take cpt out of '
      'config.stages, or set config.teacher.bidirectional=False'
    )
  if todo.head != 'rank' and config.teacher.init_from:
    raise UserError(
      f'{key}: reads the pretrained language model of config.teacher.model, and '
      f'config.teacher.init_from={config.teacher.init_from!r} would have no effect; set it to '
      "'', or the method to ''"
    )
  if todo.head == 'rank' and 'score_head' not in config.teacher.scorer:
    raise UserError(f"{key}: reads the linear head; set config.teacher.scorer='score_head'")
  if 'distill' not in config.stages:
    return
  loss = config.distill.loss.partition('?')[0]
  if loss not in losses.ON_SCORES:  # distill refuses it
    return
  learns, gives = losses.ON_SCORES[loss].learns, methods.GIVES[todo.method.gives]
  if learns != 'order' and not gives.has_distances:
    orders = ', '.join(name for name, one in losses.ON_SCORES.items() if one.learns == 'order')
    raise UserError(
      f'{key}: gives positions, and config.distill.loss={loss!r} learns their distances, which '
      f'mean nothing; choose of {orders}'
    )
  apart = learns == 'values' and not gives.comparable
  if apart and config.distill.normalize_scores != 'query':
    raise UserError(
      f'{key}: gives scores that cannot be compared between queries; set '
      "config.distill.normalize_scores='query', or config.distill.loss='ranknet'"
    )
