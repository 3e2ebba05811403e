"""Pages as tokens, prompts, spans and lessons."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import small_tokenizers

from disranker_jax import config as configs
from disranker_jax.config import settings
from disranker_jax.data import tokenising
from disranker_jax.data.records import Document
from disranker_jax.devices import memory
from disranker_jax.errors import UserError
from disranker_jax.generative import pages as collection
from disranker_jax.generative import prompts as prompting
from disranker_jax.generative.lessons import Lessons, Teaching
from disranker_jax.generative.prompts import Prompts
from disranker_jax.generative.stages import index
from disranker_jax.generative.stages.index import check_views
from disranker_jax.generative.suffixes import Suffixes
from disranker_jax.models.load import open_model
from disranker_jax.models.settings import SETTINGS as MODEL
from disranker_jax.pipeline.stage import Run

DOCS = (
  Document('a', 'str count', 'Return the number of times that a substring is found.'),
  Document('b', 'list sort', 'Sort the list in ascending order and return nothing at all.'),
  Document('c', '', 'A page without a title.'),
  Document('d', 'list sort', ''),
)
QUERIES = {'a': ['how often is a text found'], 'b': ['order a list', 'sort in place']}


def opened(**changes):
  section = {**MODEL, **prompting.SETTINGS}
  found = settings.build(section, model='tiny-decoder', max_len=128, row_len=128, **changes)
  return Prompts(open_model(found, 'lm'))


def built(docs=DOCS, queries=QUERIES, **changes):
  prompts = opened(**changes)
  return prompts, *collection.build(docs, queries, prompts)


def text(prompts, tokens):
  return prompts.model.tokenizer.decode(list(map(int, tokens)))


def test_every_view_of_a_page_is_found_again():
  prompts, pages, _ = built(title_length=15, query_length=15)
  page = pages[1]
  assert text(prompts, page.title[:-1]) == ' list sort'
  assert text(prompts, page.body) == ' ' + DOCS[1].summary
  assert page.title[-1] == page.queries[0][-1] == prompts.end
  full = prompts.texts(['order a list'])[0]
  assert page.queries[0][:-1].tolist() == full[:14].tolist()
  assert len(pages[0].queries) == 1 and len(pages[1].queries) == 2 and not pages[2].queries


def test_a_page_without_title_or_text_keeps_its_place():
  prompts, pages, counts = built()
  assert not len(pages[2].title) and text(prompts, pages[2].body) == ' A page without a title.'
  assert text(prompts, pages[3].title[:-1]) == ' list sort' and not len(pages[3].body)
  assert pages[3].of_view('body') == () and pages[2].of_view('title') == ()
  assert counts['without a title'] == 1 and counts['without a text'] == 1
  assert counts['with the title of another page'] == 1 and counts['without a pseudo-query'] == 2


def test_anchors_stand_before_titles_and_pseudo_queries_only():
  _, pages, _ = built()
  assert (pages.text_N == pages.vocab).sum() == 3
  assert (pages.text_N == pages.vocab + 1).sum() == 3
  assert (pages.text_N[pages.starts_P[:2]] == pages.vocab).all()
  # One end per title, body and pseudo-query.
  assert (pages.text_N == pages.end).sum() == 3 + 4 + 3


def test_views_that_are_not_listed_are_not_in_the_text():
  _, pages, counts = built(views=('title',))
  assert not (pages.text_N == pages.vocab + 1).any()
  assert 'without a pseudo-query' not in counts


def test_pages_that_no_search_finds_are_counted(capsys):
  _, pages, counts = built(views=('title', 'query'))
  assert counts[collection.NOTHING] == 1  # 'c' has a body alone
  collection.say_counts(pages, counts)
  assert '1 with nothing of any view, so no search finds them' in capsys.readouterr().err
  assert built(views=('body',))[2][collection.NOTHING] == 1  # 'd' has a title alone
  assert collection.NOTHING not in built()[2]


def test_a_long_title_is_cut_with_its_end_and_counted():
  _, pages, counts = built(title_length=3)
  assert len(pages[0].title) == 3 and pages[0].title[-1] == pages.end
  assert counts['with a cut title'] >= 1


def test_pages_with_a_long_pseudo_query_are_counted():
  assert 'with a cut pseudo-query' not in built(queries={'a': ['list sort']})[2]
  _, pages, counts = built(queries={'a': ['list sort', 'a b c d', 'e f g h'], 'b': ['a b c d']},
                           query_length=4)  # fmt: skip
  assert counts['with a cut pseudo-query'] == 2 and len(pages[0].queries[1]) == 4
  assert 'with a cut pseudo-query' not in built(views=('title', 'body'))[2]


def watch_tokenizer(monkeypatch) -> list[int]:
  """Small pieces; the characters that the tokenizer is given in each call from now on."""
  text_ids, sizes = tokenising.text_ids, []

  def watched(tokenizer, texts):
    sizes.append(sum(map(len, texts)))
    return text_ids(tokenizer, texts)

  monkeypatch.setattr(tokenising, 'text_ids', watched)
  monkeypatch.setattr(collection, 'PIECE', 150)
  return sizes


def test_the_tokenizer_gets_little_text_at_once_and_the_pages_are_the_same(monkeypatch):
  """What it returns takes more memory than anything else of the stage."""
  docs = [dataclasses.replace(doc, doc_id=f'{i}{doc.doc_id}') for i in range(10) for doc in DOCS]
  queries = {doc.doc_id: QUERIES.get(doc.doc_id[-1], ()) for doc in docs}
  _, whole, counts = built(docs, queries)
  sizes = watch_tokenizer(monkeypatch)
  _, pages, again = built(docs, queries)
  assert len(sizes) > 40 and max(sizes) < 300  # blanks and marks count too
  for name in collection.ARRAYS:
    np.testing.assert_array_equal(getattr(pages, name), getattr(whole, name))
    assert getattr(pages, name).dtype == getattr(whole, name).dtype
  assert (pages.doc_ids, again) == (whole.doc_ids, counts)


def test_pseudo_queries_count_towards_what_is_tokenised_at_once(monkeypatch):
  """Also where they are most of a page: titles alone, with 8 queries each."""
  docs = [Document(f'{i}', 'list sort', '') for i in range(40)]
  queries = {doc.doc_id: ['sort'] * 8 for doc in docs}
  sizes = watch_tokenizer(monkeypatch)
  built(docs, queries)
  assert max(sizes) < 300  # blanks and marks count too
  whole = len(sizes)
  sizes.clear()
  built(docs, queries, views=('title', 'body'))
  assert len(sizes) < whole  # queries that are not read count nothing


def test_control_tokens_in_a_page_are_text():
  prompts = opened()
  pages, _ = collection.build([Document('x', 'a</s>b', 'before </s> after <s>')], {}, prompts)
  assert (pages.text_N == prompts.end).sum() == 2
  assert text(prompts, pages[0].body) == ' before </s> after <s>'


SENTENCEPIECE = {
  'llama': (small_tokenizers.llama_bpe, [1]),
  'unigram': (lambda: small_tokenizers.unigram(('<unk>', '<s>', '</s>')), [1]),
}


@pytest.fixture(params=SENTENCEPIECE)
def sentencepiece(request):
  """(prompts of a model whose tokenizer is made from SentencePiece, what a text starts with)."""
  make, start = SENTENCEPIECE[request.param]
  names = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  tokenizer = small_tokenizers.opened(make(), **names)

  def of(**changes):
    prompts = opened(**changes)
    return dataclasses.replace(
      prompts, model=dataclasses.replace(prompts.model, tokenizer=tokenizer)
    )

  return of, start


def ids_of(prompts, text):
  """As transformers reads a text."""
  return prompts.model.tokenizer(text, add_special_tokens=False).input_ids


class TestSentencePiece:
  @pytest.mark.parametrize('query', ['return the string', 'Is x found?', ''])
  def test_a_prompt_has_the_tokens_of_its_whole_text(self, sentencepiece, query):
    of, start = sentencepiece
    prompts = of(body_template='Find the page: {query}\n\nText:')
    for view, text in (
      ('title', f'{query}\n\nTitle:'),
      ('body', f'Find the page: {query}\n\nText:'),
    ):
      if query or view == 'body':
        assert prompts(query, view) == [*start, *ids_of(prompts, text)]
      assert len(prompts(query * 50, view)) <= prompts.longest

  def test_what_follows_a_prompt_has_the_tokens_that_it_has_there(self, sentencepiece):
    of, start = sentencepiece
    prompts = of(title_length=15)
    pages, _ = collection.build(DOCS, QUERIES, prompts)
    whole = ids_of(prompts, f'return the string\n\nTitle: {DOCS[0].title}')
    learned = prompts.encoded('return the string', 'title', pages[0].title)
    assert learned.ids.tolist() == [*start, *whole, prompts.end]
    assert text(prompts, pages[0].body) == DOCS[0].summary

  def test_spans_begin_with_a_word(self, sentencepiece):
    of, _ = sentencepiece
    prompts = of(length=8)
    pages, _ = collection.build(DOCS, QUERIES, prompts)
    teaching = Teaching.of(pages, prompts)
    for seed in range(20):
      start = teaching.spans.place(pages[1].body, np.random.default_rng(seed))
      span = teaching.spans.at(pages[1].body, start)
      assert prompts.model.tokenizer.convert_ids_to_tokens(int(span[0]))[0] == '▁'


def test_pages_are_read_as_they_were_saved(tmp_path):
  _, pages, _ = built()
  pages.save(tmp_path)
  again = collection.Pages.load(tmp_path)
  assert again.doc_ids == pages.doc_ids and again.end == pages.end
  for number in range(len(pages)):
    for view in ('title', 'body', 'query'):
      for a, b in itertools.zip_longest(again[number].of_view(view), pages[number].of_view(view)):
        assert a.tolist() == b.tolist()
  assert again.find(DOCS[1].title, DOCS[1].summary) == 1
  assert again.find(DOCS[1].title, 'another text') is None


def test_a_missing_index_and_an_empty_collection_are_errors(tmp_path):
  with pytest.raises(UserError, match='has no readable index'):
    collection.Pages.load(tmp_path)
  with pytest.raises(UserError, match='has no document'):
    built(())


@pytest.mark.parametrize(
  'change',
  [
    lambda facts: {k: v for k, v in facts.items() if k != 'doc_ids'},
    lambda facts: facts | {'doc_ids': None},
    lambda facts: facts | {'doc_ids': facts['doc_ids'][1:]},
    lambda facts: facts | {'vocab': 'many'},
    lambda facts: [facts],
  ],
)
def test_an_index_whose_facts_are_of_another_kind_is_refused(tmp_path, change):
  _, pages, _ = built()
  pages.save(tmp_path)
  file = tmp_path / 'pages.json'
  file.write_text(json.dumps(change(json.loads(file.read_text()))))
  with pytest.raises(UserError, match=r'has no readable index .*; build it with the stage index'):
    collection.Pages.load(tmp_path)


def test_a_view_that_no_page_has_is_refused_before_it_is_learned():
  _, pages, counts = built(DOCS[2:3], {})
  with pytest.raises(UserError, match=r"config\.retriever\.views: has 'title', but every page"):
    check_views(('title', 'body'), counts, len(pages))
  with pytest.raises(UserError, match=r"has 'query', but every page is without a pseudo-query"):
    check_views(('body', 'query'), counts, len(pages))
  check_views(('body',), counts, len(pages))
  _, pages, counts = built()
  check_views(('title', 'body', 'query'), counts, len(pages))


def test_the_memory_of_the_index_is_said_before_it_is_built_and_its_size_after(
  tmp_path, capsys, monkeypatch
):
  docs, c = tmp_path / 'documents.jsonl', configs.defaults('dgr')
  rows = ({'doc_id': d.doc_id, 'title': d.title, 'summary': d.summary or 'x'} for d in DOCS)
  docs.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  c.data.documents = f'jsonl:{docs}'
  c.retriever.update(model='tiny-decoder', max_len=64, row_len=64, views=('title', 'body'))
  c.index.window = 2
  before, build = [], Suffixes.build

  def watched(*arguments, **options):
    before.append(capsys.readouterr().err)
    return build(*arguments, **options)

  monkeypatch.setattr(Suffixes, 'build', watched)
  found = index.build(Run(c, tmp_path, None))
  tokens = found['tokens']
  assert (
    f'index: a device will hold {memory.size(8 * tokens)} of it, and tables of frequent n-grams; '
    f'the host holds {memory.size(32 * tokens)} at most while it is built'
  ) in before[0]
  arrays = [np.load(f).nbytes for f in (tmp_path / 'index' / 'suffixes').glob('*.npy')]
  assert len(arrays) == 7 and sum(arrays) > 8 * tokens
  after = capsys.readouterr().err
  assert f'index: is built; it has {memory.size(sum(arrays))}, of which' in after
  assert f' {memory.size(sum(arrays) - 8 * tokens)} are tables of frequent n-grams' in after


def test_prompts_differ_by_view_and_cut_the_query_only():
  prompts = opened(max_query_len=3)
  long = prompts('one two three four five six', 'title')
  assert text(prompts, long).endswith('\n\nTitle:')
  assert len(long) == len(prompts('one two three four', 'title')) <= prompts.longest
  endings = {view: text(prompts, prompts('a', view)).rpartition('\n')[2] for view in
             ('title', 'body', 'query')}  # fmt: skip
  assert endings == {'title': 'Title:', 'body': 'Text:', 'query': 'Query:'}


def test_the_tokens_of_a_query_that_no_prompt_reads_are_counted():
  prompts = opened(max_query_len=3)
  query = 'one two three four five six'
  whole = opened(max_query_len=50)
  for view in ('title', 'body', 'query'):
    assert prompts.lost(query) == len(whole(query, view)) - len(prompts(query, view)) > 0
  assert whole.lost(query) == prompts.lost('one') == 0


def test_queries_that_are_cut_are_counted_with_what_to_raise(monkeypatch):
  prompts = opened(max_query_len=3)
  monkeypatch.setattr(prompting, 'AT_ONCE', 2)
  asked = ['one', 'one two three four five', 'two', 'a b c d e f g h', 'three', 'x y z x y z']
  assert prompts.cut(asked) == (
    'the end of 3 of 6 queries is not read; raise config.retriever.max_query_len=3'
  )
  assert not prompts.cut(['one']) and not prompts.cut([])


def test_what_follows_a_prompt_is_predicted_and_nothing_else():
  prompts = opened()
  target = prompts.texts(['list sort'])[0]
  encoded = prompts.encoded('how', 'title', target)
  positions, tokens = encoded.predicted
  assert tokens.tolist() == target.tolist()
  assert positions[0] == len(prompts('how', 'title')) and positions[-1] == len(encoded) - 1


def test_a_prompt_too_long_for_the_rows_is_an_error():
  with pytest.raises(UserError, match=r'retriever\.max_len=128.*lower max_query_len'):
    prompting.check_model(opened(max_query_len=120).model)


def test_lessons_have_every_query_in_every_view_and_every_page():
  lessons = Lessons(4, [('q', 1), ('r', 0)], {'title': 1, 'body': 2}, 3)
  assert len(lessons) == 2 * 3 + 4 * 3 == len(list(lessons))
  assert [x.view for x in itertools.islice(lessons, 3)] == ['title', 'body', 'body']
  assert [x.page for x in lessons][6:] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
  with pytest.raises(IndexError):
    lessons[18]


def test_lessons_of_a_page_never_ask_for_what_they_show():
  prompts, pages, _ = built()
  teaching = Teaching.of(pages, prompts)
  lessons, seen = Lessons(4, [], {}, 1), set()
  for i, seed in itertools.product(range(4), range(30)):
    drawn = teaching.draw(lessons[i], np.random.default_rng(seed))
    own = [text(prompts, q[:-1]).strip() for q in pages[i].queries]
    seen.add((i, drawn.view))
    if drawn.view == 'query':
      assert drawn.query not in own
    assert len(drawn.target) and drawn.query
  # The page of a title alone learns it; one without a title has its body.
  assert {view for i, view in seen if i == 3} == {'title'}
  assert {view for i, view in seen if i == 2} == {'body'}
  assert {view for i, view in seen if i == 1} == {'title', 'body', 'query'}
