"""Words in any script: those of ASCII are as they always were, marks do not split a word."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disranker_jax.data import first_stage, words

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
def test_a_sentence_of_ascii_ends_where_it_always_did(text):
  found = re.search(r'(?<=\w)[\W_]*?[.!?](?=\s|$)', text)
  end = words.END.search(text)
  assert (end and end.span()) == (found and found.span())


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('पेड़ कब काटें', ['पेड़', 'कब', 'काटें']),
    ('व और क्या', ['व', 'और', 'क्या']),
    ('猫 と 犬', ['猫', 'と', '犬']),
    ('a b 猫', ['猫']),
    ('Zoe\u0308 là à la', ['Zoe\u0308', 'là', 'la']),  # à is one letter, as a is
    ('ต้นไม้', ['ต้นไม้']),
    ('x² ½ ½½', ['x²', '½½']),
  ],
)
def test_marks_belong_to_words_and_a_letter_without_case_is_one(text, expected):
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
