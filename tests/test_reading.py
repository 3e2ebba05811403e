"""Messages about what the models of a run do not read: unknown tokens, cut texts and queries."""

import types

import pytest
from transformers import AutoTokenizer

from disranker_jax import config as configs
from disranker_jax.data.prompts import PairPrompt
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.models import weights
from disranker_jax.pipeline import reading
from disranker_jax.pipeline.stage import Run


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield AutoTokenizer.from_pretrained(weights.find('tiny-encoder'))


def said(tokenizer, monkeypatch, capsys, records, to_come=(), own=()) -> list[str]:
  """The lines about a student that reads 16 tokens of a pair and 4 of a query.

  records, to_come: records by kind, each of which one stage reads, and kinds yet to be made.
  own: the kinds whose stage makes its own inputs.
  """
  c = configs.defaults()
  c.student.update(model='tiny-encoder', max_len=16, max_query_len=4)
  prompt = PairPrompt(tokenizer, c.student.max_len, c.student.max_query_len)
  model = types.SimpleNamespace(prompt=lambda: prompt)
  opened = [
    types.SimpleNamespace(
      stage=None, model=model, step=types.SimpleNamespace(texts=None),
      use=types.SimpleNamespace(role='student', kinds=(kind,), tokens=kind in own or None),
    )
    for kind in records
  ]  # fmt: skip
  monkeypatch.setattr(reading.prepare, 'is_to_come', lambda run, kind: kind in to_come)
  reading.say_losses(Run(c, None, None), opened, records.get)
  return capsys.readouterr().err.splitlines()


def groups(query: str, *summaries: str) -> list[Group]:
  return [Group('q', query, (Document('d', 'list', text),)) for text in summaries]


SHORT, LONG = 'file', 'file ' * 30


def test_shares_of_cut_texts_and_queries_are_those_of_the_records(tokenizer, monkeypatch, capsys):
  records = {'a': groups('list', SHORT, SHORT, SHORT, LONG), 'b': [Click(LONG, 'list', SHORT)]}
  assert said(tokenizer, monkeypatch, capsys, {'a': records['a']}) == [
    'student: 25% of the texts are cut; if that matters, raise config.student.max_len=16'
  ]
  assert said(tokenizer, monkeypatch, capsys, {'b': records['b']}) == [
    'student: 100% of the queries are cut; if that matters, raise config.student.max_query_len=4'
  ]
  both = {'a': groups('list', LONG), 'b': records['b']}
  assert said(tokenizer, monkeypatch, capsys, both) == [
    'student: 50% of the texts and 50% of the queries are cut; if that matters, raise '
    'config.student.max_len=16 and max_query_len=4'
  ]


def test_little_that_is_cut_and_queries_that_are_not_written_yet_are_no_line(
  tokenizer, monkeypatch, capsys
):
  few = {'a': groups('list', *[SHORT] * 9, LONG), 'b': groups(LONG, SHORT)}
  assert not said(tokenizer, monkeypatch, capsys, few, to_come=('b',))
  assert said(tokenizer, monkeypatch, capsys, {'b': groups(LONG, LONG)}, to_come=('b',)) == [
    'student: 100% of the texts are cut; if that matters, raise config.student.max_len=16'
  ]


def test_a_model_of_another_language_is_a_warning(tokenizer, monkeypatch, capsys):
  [line] = said(tokenizer, monkeypatch, capsys, {'a': groups('list', '\u732b \u72ac')})
  assert line == (
    'warning: student: 50% of the tokens are unknown to config.student.model='
    "'tiny-encoder'; take a model of this language, such as 'bert-multilingual' or 'mmbert-base'"
  )
  few = groups('list', '\u732b', *['file file file file file'] * 4)
  assert not said(tokenizer, monkeypatch, capsys, {'a': few})


def test_of_a_stage_that_makes_its_own_inputs_only_unknown_tokens_are_said(
  tokenizer, monkeypatch, capsys
):
  long = groups(LONG, LONG)
  assert not said(tokenizer, monkeypatch, capsys, {'a': long}, own=('a',))
  # A stage of the same model that reads the records through the prompt counts, and counts alone.
  both = {'a': long, 'b': groups('list', SHORT, SHORT, LONG)}
  assert said(tokenizer, monkeypatch, capsys, both, own=('a',)) == [
    'student: 33% of the texts are cut; if that matters, raise config.student.max_len=16'
  ]
  [line] = said(tokenizer, monkeypatch, capsys, {'a': groups('list', '\u732b')}, own=('a',))
  assert '33% of the tokens are unknown' in line
