"""Templates of prompts: their order of fields, braces, and what is refused."""

import pytest
from transformers import AutoTokenizer

from disranker_jax.config import check, defaults
from disranker_jax.data import prompts
from disranker_jax.data.prompts import TextPrompt
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.models import weights
from disranker_jax.stages import generate

PAPER = '{query} : {title} : {summary}'
QUERY_LAST = '{title}: {summary}\n\nSummary: {query}'


@pytest.fixture(scope='module')
def mistral():
  return AutoTokenizer.from_pretrained(weights.find('tiny-decoder'))


def shown(tokenizer, prompt: TextPrompt, query: str, title: str, summary: str) -> str:
  [encoded] = prompt.encode(query, [Document('d', title, summary)])
  return tokenizer.decode(encoded.ids)


@pytest.mark.parametrize(
  'template, text',
  [
    (PAPER, '<s>Q1 : T1 : S1</s>'),
    (QUERY_LAST, '<s>T1: S1\n\nSummary: Q1</s>'),
    ('{summary} | {query} | {title}!', '<s>S1 | Q1 | T1!</s>'),
  ],
)
def test_a_template_orders_the_fields(mistral, template, text):
  assert shown(mistral, TextPrompt(mistral, 64, 16, template), 'Q1', 'T1', 'S1') == text


@pytest.mark.parametrize(
  'template',
  ['{{{query}}} : {{title}} {title} }}{{ {summary}', '{{"q": {query} {title}\n{summary}}}'],
)
def test_double_braces_in_a_template_are_braces_as_in_str_format(mistral, template):
  fields = {'query': 'Q1', 'title': '{{', 'summary': 'S1'}
  text, spans = prompts.render(template, fields)
  assert text == template.format(**fields)
  assert {name: text[slice(*span)] for name, span in spans.items()} == fields
  prompt = TextPrompt(mistral, 64, 16, template)
  assert shown(mistral, prompt, *fields.values()) == f'<s>{text}</s>'


@pytest.mark.parametrize(
  'template, where',
  [
    ('{query} : {title} : {summary} }', "'}' at character 31;"),
    ('{query!r} {title} {summary}', "'{query!r}' at character 1;"),
    ('{query} {title:>9} {summary}', "'{title:>9}' at character 9;"),
    ('{query} {title} {summary', "'{summary' at character 17;"),
    ('{query} {} {title} {summary}', "'{}' at character 9;"),
    ('{{query} {title} {summary}', "'}' at character 8;"),
    ('{query[0]} {title} {summary}', "'{query[0]}' at character 1;"),
  ],
)
def test_a_brace_that_is_not_of_a_field_is_shown_with_its_position(mistral, template, where):
  config = defaults()
  with config.unlocked():
    config.teacher.template = template
  for attempt in (lambda: TextPrompt(mistral, 64, 16, template), lambda: check(config)):
    with pytest.raises(UserError) as caught:
      attempt()
    assert where in str(caught.value) and '\n' not in str(caught.value)
  assert str(caught.value).startswith('config.teacher.template: ')


def test_braces_and_fields_in_the_texts_are_only_text(mistral):
  found = shown(mistral, TextPrompt(mistral, 64, 32, PAPER), '{title} {0}', 'a {query}', '}{')
  assert found == '<s>{title} {0} : a {query} : }{</s>'


@pytest.mark.parametrize(
  'template', ['{query}', '{query} {title} {summary} {query}', '{query} {title} {body}', '']
)
def test_a_template_without_each_field_once_is_refused(mistral, template):
  with pytest.raises(
    UserError, match=r'must have \{query\} and \{title\} or \{summary\}, each once'
  ):
    TextPrompt(mistral, 64, 16, template)


def test_a_template_that_leaves_no_room_is_refused(mistral):
  with pytest.raises(UserError, match=r'^max_len=16: the template alone has \d+ tokens'):
    TextPrompt(
      mistral, 16, 8, '{query} is answered by this page or by none of them: {title} {summary}'
    )


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({}, ''),
    ({'generate.shots': 3}, 'give it shots=0\n'),
    (
      {'generate.template': '{title}\n{query}'},
      'give it the template of config.teacher.template\n',
    ),
    ({'generate.template': '{title}\n{query}', 'generate.model': 'smollm2-135m'}, ''),
    ({'generate.template': '{title}\n{query}', 'cpt.predict': 'document'}, ''),
    ({'generate.template': '{title}\n{query}', 'stages': ('prepare', 'generate')}, ''),
  ],
)
def test_a_prompt_for_queries_that_cpt_does_not_teach_is_said(capsys, changes, says):
  config = defaults('dgr')
  config.teacher.template = config.generate.template = QUERY_LAST
  config.update_from_flattened_dict({'cpt.predict': 'query', 'generate.shots': 0} | changes)
  generate.check(config)
  err = capsys.readouterr().err
  assert err.endswith(says) and bool(err) == bool(says)
