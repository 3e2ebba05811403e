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


@settings(deadline=None)
@given(ASCII)
def test_a_sentence_of_ascii_ends_at_a_point_that_is_not_of_a_word(text):
  found = words.END.search(text)
  assert (found and found.span()) == sentence_end(text)


def sentence_end(text: str) -> tuple[int, int] | None:
  """(end of its last word, end) of the first sentence of an ASCII text; None if it goes on."""
  for sign in re.finditer(r'[.!?](?=\s|$)', text):
    before, i = text[: sign.start()], sign.start()
    last = re.search(r'[^\W_](?=[\W_]*$)|^[\W_]*?_', before)
    of_word = re.search(r"(?:(?:^|[^\w'-])[a-zA-Z]|^\s*[0-9]+)$", before)
    short = re.search(rf'(?<!\w)(?i:{words.SHORT})$', before)
    goes_on = re.match(r'\s+[a-z0-9]', text[i + 1 :])
    if last and (sign[0] != '.' or not (of_word or short or goes_on)):
      return last.end(), i + 1
  return None


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
