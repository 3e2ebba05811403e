"""Generated queries: which are kept, why others are not, and the prompt before them."""

import pytest

from disranker_jax.data import query_filters, query_prompt
from disranker_jax.data.prompts import render
from disranker_jax.data.query_filters import Filters, tidy
from disranker_jax.data.records import Click, Document

DOC = Document('d', 'Apple trees', 'Prune them in winter. Подрезка')
CHINESE = Document('c', '苹果树', '冬天修剪')
JAPANESE = Document(
  'j', '', '\u732b\u306e\u3048\u3055\u3084\u308a\u3068\u30d6\u30e9\u30b7\u306f Cats'
)
CODE = Document(
  'k', '\u6587\u4ef6\u8bfb\u53d6', 'with open(path) as file: text = file.read(); print(text)'
)
CAMERA = Document(
  'e', '\u30c7\u30b8\u30bf\u30eb\u4e00\u773c\u30ec\u30d5',
  '\u3053\u306e\u30ab\u30e1\u30e9\u306fNikon D750\u3067\u3059\u3002'
  + '\u3068\u3066\u3082\u4f7f\u3044\u3084\u3059\u3044' * 9,
)  # fmt: skip
RUSSIAN = Document(
  'r', 'Установка',
  'Выполните команду `pip install numpy`, чтобы установить библиотеку в вашем окружении. Чехол '
  'для iPhone 15 Pro защищает телефон, материал не желтеет, покупатели довольны.',
)  # fmt: skip
DIGITS = Document('n', '4711', '0815 42')


@pytest.mark.parametrize(
  'doc, query, ended, why',
  [
    (DOC, 'when to prune apples', True, ''),
    (DOC, '...', True, query_filters.EMPTY),
    (DOC, '', True, query_filters.EMPTY),
    (DOC, 'prune \ufffd now', True, query_filters.BROKEN),
    (DOC, 'when to prune', False, query_filters.LONG),
    (DOC, 'a b c d e f', True, query_filters.LONG),
    (DOC, 'APPLE  trees!', True, query_filters.TITLE),
    (DOC, '苹果树', True, query_filters.SCRIPT),
    (DOC, 'Подрезка яблонь', True, ''),
    (CHINESE, '修剪', True, ''),
    (CHINESE, 'when to prune', True, query_filters.SCRIPT),
    (CHINESE, 'apple \u4fee\u526a', True, ''),  # a word of another script beside the page's own
    (JAPANESE, '\u732b', True, ''),
    (JAPANESE, '\u30d6\u30e9\u30b7', True, ''),
    (JAPANESE, 'how to feed', True, ''),  # a quarter of its letters
    (
      Document('j', '', f'{JAPANESE.summary} {JAPANESE.summary[:12]}'),
      'feed',
      True,
      query_filters.SCRIPT,
    ),
    (CODE, '\u600e\u6837\u8bfb\u6587\u4ef6', True, ''),  # of the title
    (CODE, 'read a file', True, ''),
    # Words of the document itself, in a script that has little of it.
    (CAMERA, 'Nikon D750', True, ''),
    (CAMERA, 'nikon d750!', True, ''),
    (CAMERA, 'Nikon D850', True, query_filters.SCRIPT),
    (CAMERA, 'Nikon camera', True, query_filters.SCRIPT),
    (RUSSIAN, 'iPhone 15 Pro', True, ''),
    (RUSSIAN, 'pip install numpy', True, ''),
    (RUSSIAN, 'how to install numpy', True, query_filters.SCRIPT),
    (DIGITS, '42', True, ''),
    (DIGITS, 'forty two', True, query_filters.SCRIPT),
    (DOC, 'How are trees PRUNED', True, query_filters.TEST),
  ],
)
def test_each_fault_has_its_reason(doc, query, ended, why):
  filters = Filters(['how are trees pruned?'], max_words=5)
  assert filters.reason(doc, query, ended) == why
  assert filters.by_reason() == ({why: 1} if why else {})


def test_queries_that_differ_in_case_and_punctuation_are_the_same_and_vowel_signs_are_not():
  key = query_filters.key
  assert key('Prune in winter') == key('prune, in WINTER?') != key('prune in winters')
  assert key('पेड़ काटें') == key('पेड़ काटें?') != key('पेड़ कटे')


def test_counts_add_up_when_a_query_is_left_out_later():
  filters = Filters([], max_words=5)
  for query in ('Prune in winter', 'in winter', 'winter', ''):
    filters.reason(DOC, query, True)
  filters.leave_out('d#1', query_filters.DUPLICATE)
  filters.leave_out('d#2', query_filters.NOT_FOUND)
  assert filters.by_reason() == {
    query_filters.EMPTY: 1, query_filters.NOT_FOUND: 1, query_filters.DUPLICATE: 1,
  }  # fmt: skip
  assert filters.counts.total() == 4
  assert filters.later == {'d#1': query_filters.DUPLICATE, 'd#2': query_filters.NOT_FOUND}


@pytest.mark.parametrize(
  'text, query',
  [
    (' "when to prune"\nmore', 'when to prune'),
    ('when   to\tprune', 'when to prune'),
    ('a tool. It is old.\nb', 'a tool. It is old.'),
    ('\n\n a\nb', 'a'),
    ('  \n ', ''),
    ('1. How to return an item\n2. b', 'How to return an item'),
    ('2) prune 3. now', 'prune 3. now'),
    ('- prune', 'prune'),
    ('1. FC K\u00f6ln Ergebnisse', 'FC K\u00f6ln Ergebnisse'),  # as of a list
    ('2. Bundesliga Tabelle', '2. Bundesliga Tabelle'),
    ('20. Jahrhundert Kunst', '20. Jahrhundert Kunst'),
    ('3.', ''),
    ("'90s kids' shows", "90s kids' shows"),
    ('\u201990s kids\u2019 shows', '90s kids\u2019 shows'),
    ('1. *Prune now*', 'Prune now'),
    ('1.', ''),
    ('3.5 mm jack', '3.5 mm jack'),
    ('-5 degrees', '-5 degrees'),
  ],
)
def test_the_first_line_without_quotes_is_the_query(text, query):
  assert tidy(text, ended=False)[0] == query


@pytest.mark.parametrize(
  ('text', 'query'),
  [
    ('"camera filter 67mm" in Google Play store', 'camera filter 67mm'),
    ('**"xeon x5550"** on Google Play', 'xeon x5550'),
    ('\u201cprune apples\u201d. The', 'prune apples'),
    ('\u201eB\u00e4ume schneiden\u201c bei Google', 'B\u00e4ume schneiden'),
    ('\u201aB\u00e4ume schneiden\u2018 bei', 'B\u00e4ume schneiden'),
    ('\u00bbB\u00e4ume\u00ab bei', 'B\u00e4ume'),
    ('\u00ab tailler un arbre \u00bb sur', 'tailler un arbre'),
    ('\u300c\u732b\u306e\u98fc\u3044\u65b9\u300d\u3067', '\u732b\u306e\u98fc\u3044\u65b9'),
    ("'don't prune in May' is", "don't prune in May"),
    ('"27" monitor stand" on Amazon', '27" monitor stand'),
    ('"5"x7" frame" or', '5"x7" frame'),
    ('"xeon 5550" or "xeon 5560"', 'xeon 5550'),
    ('"PS5"/"PS4"', 'PS5'),
    ('"PS5"-"PS4" adapter', 'PS5'),
    ('"files in /usr/" on', 'files in /usr/'),
    ('"a case (15.6") in gray" on', 'a case (15.6") in gray'),
  ],
)
def test_a_query_in_quotes_ends_where_they_close(text, query):
  assert tidy(text, ended=False) == (query, True)


@pytest.mark.parametrize(
  'text',
  [
    '"when to prune',
    "'90s shoes",
    "'90s kids' shows",
    '27" monitor',
    'a "b" c',
    '""',
    '"a case (15.6") in',
  ],
)
def test_without_a_pair_around_the_beginning_nothing_is_ended(text):
  assert tidy(text, ended=False)[1] is False and tidy(text, ended=True)[1] is True
  assert tidy('27" monitor', ended=False)[0] == '27" monitor'


def test_a_prompt_may_open_the_quotes():
  assert tidy('xeon x5550" on Google', False, 'a search for "') == ('xeon x5550', True)
  assert tidy('"xeon" on Google', False, 'a search for "') == ('xeon', True)
  assert tidy('xeon x5550 on', False, 'a search for "') == ('xeon x5550 on', False)


@pytest.mark.parametrize(
  'text, query, ended',
  [
    ('a tool in os.path. It is', 'a tool in os.path', True),
    ('a tool in os.path and', 'a tool in os.path and', False),
    ('Is it? "Yes', 'Is it', True),
    ('a tool.', 'a tool', True),
    ('... then', '... then', False),
    ('Filter z. B. nach 30 Tagen reinigen', 'Filter z. B. nach 30 Tagen reinigen', False),
    ('use the No. 5 needle. It', 'use the No. 5 needle', True),
    ('approx. every 30 days. Then', 'approx. every 30 days', True),
    ('Windows 10 vs. Windows 11. It', 'Windows 10 vs. Windows 11', True),
    ('u. \u00fc. d. M. hoch', 'u. \u00fc. d. M. hoch', False),
    ('a USB-C. It', 'a USB-C', True),
    ("I don't. You", "I don't", True),
    ('is it Windows 11. It', 'is it Windows 11', True),
    ('what now! it is', 'what now', True),
    ('पेड़ कब काटें। और', 'पेड़ कब काटें', True),
    ('怎样修剪苹果树\uff1f春天', '怎样修剪苹果树', True),
    ('猫の飼い方。「犬」', '猫の飼い方', True),
    ('متى تقلم الأشجار؟ ثم', 'متى تقلم الأشجار', True),
    ('درخت کب کاٹیں\u06d4 اور', 'درخت کب کاٹیں', True),
    ('円周率は\uff13\uff0e\uff11\uff14である', '円周率は\uff13\uff0e\uff11\uff14である', False),
  ],
)
def test_a_query_may_end_with_its_first_sentence(text, query, ended):
  assert query_filters.first_sentence(text, False) == (query, ended)
  assert query_filters.first_sentence(text, True) == (query, True)


def test_examples_stand_before_the_document_with_their_braces_as_text():
  example = Click('use {x}', 'a {title}', ' '.join(f'w{i}' for i in range(100)))
  template = query_prompt.few_shot('{title}: {summary}\nQuery: {query}', [example])
  text, spans = render(template, {'title': 't', 'summary': 's', 'query': 'q'})
  first, _, second = text.partition('\n\n')
  words = ' '.join(f'w{i}' for i in range(query_prompt.WORDS))
  assert first == f'a {{title}}: {words}\nQuery: use {{x}}'
  assert second == 't: s\nQuery: q' and spans['query'][1] == len(text)
  assert query_prompt.few_shot('{title}', []) == '{title}'
