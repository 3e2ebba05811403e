"""The settings that only a teacher has: how a decoder scores, and what it reads."""

from disranker_jax.config.settings import Key, Section, boolean, one_of, template
from disranker_jax.data.prompts import template_fields
from disranker_jax.errors import UserError
from disranker_jax.models.recorded import INPUTS

SCORERS = ('score_head', 'query_likelihood', 'score_head+query_likelihood')
SETTINGS: Section = {
  'scorer': Key(
    'score_head', one_of(*SCORERS),
    "How a decoder scores: 'score_head', the paper's dense layer on the final </s>; "
    "'query_likelihood', the mean log-probability of the query given the document (the template "
    "has to end in the query); 'score_head+query_likelihood', their sum, which starts as the "
    'zero-shot ranker and learns from there.',
  ),
  'ready': Key(
    False, boolean(),
    'The model is a reranker with a head of its own, and scores as it is: no stage trains it. '
    'False: `sft` trains it, from its own head if it has one.',
  ),
  'input': Key(
    'template', one_of(*INPUTS),
    "What a decoder with a score head reads: 'template', the template and an end token, where the "
    "score is read; 'prompt', the template alone, with the score at its last token; 'pair', the "
    "query and 'title : summary' as its tokenizer joins two texts. Ready LLM rerankers need one of "
    'the last two.',
  ),
  'template': Key('{query} : {title} : {summary}', template(), "A decoder's input."),
  'zero_shot_template': Key(
    '{title} : {summary} : {query}', template(),
    'Input of the zero-shot row, which ranks by likelihood: it has to end in the query.',
  ),
}  # fmt: skip


def check_template(key: str, value: str, why: str) -> None:
  """Raises: UserError if the query comes before the document that it has to depend on."""
  if template_fields(value)[-1] != 'query':
    raise UserError(
      f'config.{key}={value!r}: must end in {{query}}, since {why}; as it is, every document of a '
      'query gets the same score'
    )


def check_scorer(config) -> None:
  """Raises: UserError for a likelihood of queries that do not follow their documents.

  And for a ready reranker that a stage would train, or that would score without its head.
  """
  scorer = config.teacher.scorer
  for key, default in (('ready', False), ('input', 'template')):
    value = config.teacher[key]
    if value != default and scorer != 'score_head':
      raise UserError(
        f'config.teacher.{key}={value!r}: is for a score head, and config.teacher.scorer='
        f"{scorer!r} reads next-token logits; set scorer='score_head'"
      )
  for key, default in (('bidirectional', False), ('pooling', '')):
    value = config.teacher[key]
    if value != default and config.teacher.ready:
      raise UserError(
        f'config.teacher.{key}={value!r}: would change a ready reranker; leave it out, or set '
        'config.teacher.ready=False'
      )
  if config.teacher.pooling and scorer != 'score_head':
    raise UserError(
      f'config.teacher.pooling={config.teacher.pooling!r}: is for a score head, and '
      f"config.teacher.scorer={scorer!r} reads next-token logits; set scorer='score_head'"
    )
  trained = [stage for stage in ('cpt', 'sft') if stage in config.stages]
  if config.teacher.ready and trained:
    raise UserError(
      f'config.teacher.ready: the model scores as it is, and config.stages lists {trained[-1]}, '
      'which would train it; take the stage out, or set ready=False'
    )
  if 'query_likelihood' in scorer and config.teacher.bidirectional:
    raise UserError(
      f'config.teacher.scorer={scorer!r}: a bidirectional model sees the query whose probability '
      "it gives; set scorer='score_head', or bidirectional=False"
    )
  if 'query_likelihood' in scorer:
    why = f'config.teacher.scorer={scorer!r} scores the query after the document'
    check_template('teacher.template', config.teacher.template, why)
