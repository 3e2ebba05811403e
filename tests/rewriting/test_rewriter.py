"""What a rewriter reads and what of its text is the rewrite; tokens of a real tokenizer."""

import dataclasses
import runpy
from pathlib import Path

import llm_models
import pytest
import small_tokenizers

from disranker_jax.data.prompts import TextPrompt
from disranker_jax.data.records import Document
from disranker_jax.errors import UserError
from disranker_jax.models.load import open_model
from disranker_jax.models.settings import defaults
from disranker_jax.rewriting import prompts
from disranker_jax.rewriting.prompts import RewritePrompt

ROOT = Path(__file__).parents[2]
TEMPLATE = '{query} : {title} : {summary}'


def opened(template=TEMPLATE, max_len=48, max_query_len=16):
  settings = defaults(
    model='tiny-decoder', max_len=max_len, max_query_len=max_query_len, row_len=64
  )
  settings.template = template
  return open_model(settings, 'lm')


@pytest.fixture(scope='module')
def model():
  return opened()


def test_the_prompt_ends_where_cpt_taught_the_title_to_begin(model):
  prompt = RewritePrompt(model, 32)
  ids = prompt('open a file')
  assert model.tokenizer.decode(ids) == '<s>open a file :'
  [click] = model.prompt('document').encode('open a file', [Document('', 'io', 'opens')])
  assert ids == click.ids[: click.predict[0]].tolist()
  assert click.ids[-1] in prompt.stops


@pytest.mark.parametrize('template', ['{query} : {title}', 'Rewrite {query}\n\nQuery: {title}'])
def test_a_prompt_of_a_sentencepiece_tokenizer_has_the_tokens_of_its_whole_text(model, template):
  names = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  tokenizer = small_tokenizers.opened(small_tokenizers.llama_bpe(), **names)
  settings = model.settings.copy_and_resolve_references()
  settings.template = template
  prompt = RewritePrompt(dataclasses.replace(model, tokenizer=tokenizer, settings=settings), 48)
  for query in ('return the string', 'Is x found?'):
    text = template.partition(' {title}')[0].format(query=query)
    assert prompt(query) == tokenizer(text).input_ids
  written = tokenizer(' a string', add_special_tokens=False).input_ids
  assert prompt.texts([[*written, 2]]) == ['a string']


def test_the_papers_prompt_is_what_the_models_chat_template_writes(model):
  """Of the message that the released code sends, with an empty system text."""
  c = runpy.run_path(str(ROOT / 'configs/tongsearch_qwen_1_5b.py'))['get_config']()
  special = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
  tokenizer = small_tokenizers.opened(
    small_tokenizers.byte_bpe(special), eos_token='<|im_end|>', pad_token='<|endoftext|>',
    chat_template=llm_models.CHATML,
  )  # fmt: skip
  settings = model.settings.copy_and_resolve_references()
  settings.update(max_len=1536, max_query_len=900)
  settings.template = c.rewriter.template
  prompt = RewritePrompt(dataclasses.replace(model, tokenizer=tokenizer, settings=settings), 1036)
  for query in ('Why is the sky blue?', ' two\nlines\n', 'a <|im_end|> b'):
    message = (
      'Instructions:\n1. Identify the essential problem.\n2. Think step by step to reason and '
      'describe what information could be relevant and helpful to address the questions in '
      'detail.\n3. Draft an answer with as many thoughts as you have.\n'
      f'Query: {query}\n\n'
    )
    chat = [{'role': 'system', 'content': ''}, {'role': 'user', 'content': message}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)['input_ids']
    if '<|im_end|>' in query:  # the name of a control token in a query is text
      assert prompt(query) != ids and tokenizer.decode(prompt(query)) == tokenizer.decode(ids)
    else:
      assert prompt(query) == ids
  assert tokenizer.convert_tokens_to_ids('<|im_end|>') in prompt.stops


def test_long_queries_lose_their_end_and_the_prompt_keeps_its_length(model):
  assert len(RewritePrompt(model, 32)('file ' * 50)) < 32  # max_query_len decides
  prompt = RewritePrompt(model, 9)
  for query in ('file ' * 50, 'x' * 300, 'é' * 80):
    ids = prompt(query)
    assert len(ids) == 9 and ids[0] == prompt('a')[0] and ids[-1:] == prompt('a')[-1:]


def test_queries_without_their_end_are_counted(model):
  long = 'file ' * 50
  prompt = RewritePrompt(model, 32)
  assert prompt.cut(['open a file', '']) == ''
  said = 'the end of 2 of 3 queries is not read; raise config.rewriter.max_query_len or config.'
  assert prompt.cut(['open a file', long, long]).startswith(said)
  # By the limit of the query, and by what the template leaves of the whole prompt.
  for query in ('file ' * n for n in range(1, 12)):
    for most in (9, 32):
      limited = RewritePrompt(model, most)
      whole = opened(max_len=128, max_query_len=100)
      assert limited.is_cut(query) == (limited(query) != RewritePrompt(whole, 100)(query))


def test_without_a_summary_cpt_learns_the_title_and_its_end(model):
  short = TextPrompt(model.tokenizer, 32, 16, '{query} : {title}')
  doc = Document('1', 'str.split', 'long ' * 5000)
  [encoded] = short.encode('how to split', [doc])
  start, stop = encoded.predict
  assert (
    model.tokenizer.decode(encoded.ids[start:stop], skip_special_tokens=True).strip() == 'str.split'
  )
  assert stop == len(encoded.ids) and encoded.ids[-1] == short.ends[1][-1]
  [lengths] = short.lengths('how to split', [doc])
  assert lengths['summary'] == 0 and lengths['input'] == len(encoded.ids)
  with pytest.raises(UserError, match='each once'):
    TextPrompt(model.tokenizer, 32, 16, '{title} : {summary}')


def test_an_empty_query_and_names_of_control_tokens_are_text(model):
  prompt = RewritePrompt(model, 32)
  assert prompt('') and 2 not in prompt('a </s> b') and prompt('a </s> b').count(1) == 1


def test_templates_and_lengths_that_leave_no_room_are_refused(model):
  with pytest.raises(UserError, match='max_len=48: leaves no token for a query'):
    RewritePrompt(model, 2)


def test_texts_are_one_line_without_special_tokens(model):
  ids = model.tokenizer.encode('split \n\n a  string', add_special_tokens=False)
  assert RewritePrompt(model, 32).texts([[*ids, 2], [2]]) == ['split a string', '']


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('<think>two\nlines</think>\n<answer> csv  reader </answer> more', 'csv reader'),
    ('<think></think><answer></answer>', ''),
    ('<answer>without thoughts</answer>', ''),
    ('<think>cut off', ''),
    ('csv reader', ''),
  ],
)
def test_with_thoughts_only_the_answer_counts(text, expected):
  assert prompts.rewrite(text, think=True) == expected
  assert prompts.rewrite(text, think=False) == ' '.join(text.split())
