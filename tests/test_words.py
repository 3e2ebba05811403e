"""Words in any script: those of ASCII are as they always were, pairs of letters without blanks."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax.data import first_stage, words
from disranker_jax.data.records import Document

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)


@settings(deadline=None)
@given(ASCII)
def test_the_words_of_ascii_are_those_of_bm25s_and_of_re(text):
  library = first_stage.library()
  expected = library.tokenize([text], stopwords='en', return_ids=False, show_progress=False)
  assert first_stage.tokens([text]) == expected
  assert words.all_of(text) == re.findall(r'\w+', text)
  # Another character beside them changes nothing.
  assert words.long(f'{text} \u2013')[: len(words.long(text))] == words.long(text)


# '|' stands where the first sentence ends; what is before it is kept.
@pytest.mark.parametrize(
  'text',
  [
    # English
    'how to prune trees|. Go on',
    'how to prune trees|.',
    'how to prune trees',
    'what now| ?! Then',
    'what now|! it is',
    'is it "old|"? "Yes"',
    'a file (or two)|. It',
    'how to learn C++|. It',
    'what is new in C#|? A',
    'prune trees|... Then',
    'prune trees... then go|. It',
    '... then go|. It',
    '-- . --',
    'open a file with os.path|. It',
    'set x_i|. The',
    'a USB-C|. It',
    "I don't|. You",
    'no|.\nYes',
    'no|.\x1cYes',
    # One letter is an initial.
    'the book of J. R. R. Tolkien|. It',
    'see e.g. The Guide|. It',
    'vitamin C. It',
    # Abbreviations
    'Windows 10 vs. Windows 11|. It',
    'cats VS. Dogs|. It',
    'Mr. Bean and Mrs. Smith|. It',
    'Dr. No by Prof. X',
    'hotels in St. Louis|. It',
    'the first of the list|. It',
    'on the 1 st|. It',
    'devs|. The',
    'a timeout of 30 ms|. The user',
    'what is MS|. It is',
    'hotels in Los Angeles, CA|. The',
    'approx. every 30 days|. Then',
    # Numbers and versions
    'use the No. 5 needle|. It',
    'what is new in Python 3.11|. It',
    'is it Windows 11|. It',
    'a jack of 3.5 mm|. It',
    'approx. 3.5 mm|. It',
    '7. How to prune|. It',
    ' 12. How to prune|. It',
    '2020. The year',
    # Lists
    'how to prune trees|. 1. Go on 2. Cut',
    'how to prune trees|.\n1) Go on',
    'how to prune trees|. 1.',
    'how to prune trees. 1.5 m above|. It',
    # German
    'Filter z. B. nach 30 Tagen reinigen|. Dann',
    'u. \u00fc. d. M. hoch',
    'B\u00e4ume bzw. Hecken schneiden|. Dann',
    'ca. Zehn Minuten|. Dann',
    'Gr\u00f6\u00dfe|! \u00dcber',
    'Preis inkl. Versand|? Ja',
    # Other scripts
    '\u732b\u306e\u98fc\u3044\u65b9|\u3002\u300c\u72ac\u300d',
    '\u732b\u306f\u4f55\u3092\u98df\u3079\u308b|\uff1f\u9b5a',
    '\u5186\u5468\u7387\u306f\uff13\uff0e\uff11\uff14\u3067\u3042\u308b',
    '\u092a\u0947\u0921\u093c \u0915\u093e\u091f\u0947\u0902|\u0964 \u0914\u0930',
  ],
)
def test_where_the_first_sentence_ends(text):
  wanted, sign, rest = text.partition('|')
  found = words.END.search(wanted + rest)
  assert (found and found.start()) == (len(wanted) if sign else None)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('पेड़ कब काटें', ['पेड़', 'कब', 'काटें']),
    ('व और क्या', ['व', 'और', 'क्या']),
    ('猫 と 犬', ['猫', 'と', '犬']),
    ('a b 猫', ['猫']),
    ('Zoe\u0308 là à la', ['Zoe\u0308', 'là', 'la']),  # à is one letter, as a is
    ('如何读取文件, C语言', ['如何', '何读', '读取', '取文', '文件', '语言']),
    ('サーバー3台', ['サー', 'ーバ', 'バー', '台']),
    ('Python的os.path', ['Python', '的', 'os', 'path']),
    ('파일 읽기', ['파일', '읽기']),  # Korean has blanks
    ('ต้นไม้', ['ต้น', 'นไ', 'ไม้']),
    ('x² ½ ½½', ['x²', '½½']),
  ],
)
def test_words_of_other_scripts(text, expected):
  assert words.long(text) == expected


@pytest.mark.parametrize(
  'text',
  [
    'Café Größe',
    'ΐ Ϊ́ \u0384\u0399',
    '\uff46\uff55\uff4c\uff4c ﬁsh №',
    '\u0958लम',
    'e\u0301 \u1e9b\u0323',
    'İstanbul',
  ],
)
def test_texts_of_any_case_and_form_are_folded_to_the_same(text):
  forms = {text, *(unicodedata.normalize(f, text) for f in ('NFC', 'NFD', 'NFKC', 'NFKD'))}
  assert len({words.folded(form) for form in forms}) == 1
  assert words.folded(words.folded(text)) == words.folded(text)
  assert len(forms) > 1


def test_upper_case_is_folded_as_lower_case():
  for text in ('Größe', 'ΐ', 'Ünïcode', '\u017f'):
    assert words.folded(text.upper()) == words.folded(text)


def test_bm25_finds_a_part_of_a_sentence_without_blanks():
  docs = ['文件读取功能', '列表的排序', '网络服务器']
  index = first_stage.BM25([Document(doc, doc, '') for doc in docs])
  found = index.top(['如何读取文件', '列表排序方法'], 3)
  assert [[index for index, _ in hits] for hits in found] == [[0], [1]]
