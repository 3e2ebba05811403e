"""The small models of random values: always the same ones, so that their scores are too."""

import builtins

import pytest
from tokenizers import Tokenizer

from disranker_jax.models import tiny


@pytest.mark.parametrize('name', tiny.CONFIGS)
def test_are_the_same_whatever_has_been_imported(name, tmp_path, monkeypatch):
  tiny.make(name, tmp_path / '0')
  # As pybind11 does; the docstring of a str is long enough to change a vocabulary.
  monkeypatch.setattr(builtins, '__internals__', '', raising=False)
  for again in ('1', '2', '3'):
    tiny.make(name, tmp_path / again)
    for file in (tmp_path / '0').iterdir():
      assert (tmp_path / again / file.name).read_bytes() == file.read_bytes(), file.name


def test_pieces_of_a_word_are_put_together_again(tmp_path):
  tiny.make('tiny-encoder', tmp_path / 'm')
  tokenizer = Tokenizer.from_file(str(tmp_path / 'm' / 'tokenizer.json'))
  found = tokenizer.encode('Return a nonwordish list')
  assert '[UNK]' not in found.tokens and any(piece.startswith('##') for piece in found.tokens)
  assert tokenizer.decode(found.ids) == 'return a nonwordish list'
