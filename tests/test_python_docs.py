"""The built-in collection: the same everywhere, with disjoint splits and labels by rule."""

import hashlib
import importlib.metadata
import math
import os
import pathlib
import subprocess
import sys

import pytest

from disranker_jax.data import docstrings, python_docs, sources
from disranker_jax.data.records import UNJUDGED
from disranker_jax.errors import UserError

KINDS = ('judgements', 'candidates', 'test')

DIGEST = """
import hashlib
from disranker_jax.data import python_docs
everything = [python_docs.documents(), list(python_docs.clicks())]
everything += [list(python_docs.groups(kind)) for kind in ('judgements', 'candidates', 'test')]
print(hashlib.sha256(repr(everything).encode()).hexdigest())
"""


@pytest.fixture(scope='module')
def groups():
  return {kind: list(python_docs.groups(kind)) for kind in KINDS}


@pytest.fixture(scope='module')
def pages():
  return {page.doc.doc_id: page for page in python_docs._pages(python_docs.LIBRARY)}


def test_it_is_big_enough_and_every_page_has_a_title():
  documents = python_docs.documents()
  assert len(documents) > 4500
  assert len({doc.doc_id for doc in documents}) == len(documents)
  assert [doc.doc_id for doc in documents] == sorted(doc.doc_id for doc in documents)
  assert all(doc.title.strip() for doc in documents)
  assert max(len(doc.summary) for doc in documents) <= python_docs.MAX_SUMMARY_CHARS


def test_known_pages_are_there(pages):
  page = pages['textwrap.shorten']
  assert page.sentence == 'Collapse and truncate the given text to fit in the given width'
  assert page.doc.title == 'textwrap shorten'
  assert page.doc.summary.startswith('shorten(text, width, **kwargs) The text first has its')
  assert pages['http.client.HTTPConnection.putrequest'].doc.title == (
    'http client HTTP Connection putrequest'
  )
  # Written in C, so imported; and one page for an object that exists in C and in Python.
  assert pages['math.sqrt'].sentence == 'Return the square root of x'
  assert pages['builtins.str.isalnum'].owner == 'builtins.str'
  assert ('asyncio.Task.cancelling' in pages) + ('asyncio.tasks.Task.cancelling' in pages) == 1


def test_nothing_outside_the_standard_library_is_read(pages):
  tops = {page.module.partition('.')[0] for page in pages.values()}
  assert tops <= set(sys.stdlib_module_names)
  assert not tops & {'test', 'idlelib', 'lib2to3', 'antigravity', 'this', 'turtledemo'}


def test_same_in_another_process_folder_and_hash_seed(tmp_path, groups):
  everything = [python_docs.documents(), list(python_docs.clicks()), *groups.values()]
  (tmp_path / 'chess.py').write_text('"""A trap in the current directory."""')
  (tmp_path / 'shelve.py').write_text('"""Another, with a name of the standard library."""')
  root = pathlib.Path(sources.__file__).parents[2]
  env = os.environ | {'PYTHONHASHSEED': '4711', 'PYTHONPATH': str(root)}
  script = tmp_path / 'digest.py'
  script.write_text(DIGEST)
  run = subprocess.run(
    [sys.executable, str(script)],
    cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert run.stdout.strip() == hashlib.sha256(repr(everything).encode()).hexdigest()


def test_splits_share_no_query_and_have_their_shares(groups):
  queries = {kind: [python_docs._key(g.query) for g in groups[kind]] for kind in KINDS}
  queries['clicks'] = [python_docs._key(click.query) for click in python_docs.clicks()]
  everything = [key for keys in queries.values() for key in keys]
  assert len(everything) == len(set(everything))
  for kind, keys in queries.items():
    assert {python_docs.split_of(key) for key in keys} == {kind}
  asked = python_docs.statistics()['queries_per_split']
  for kind, share in python_docs.SHARES.items():
    assert abs(asked[kind] / sum(asked.values()) - share) < 0.04


def test_split_hash_is_pinned():
  # A change would put test queries of earlier runs into training.
  keys = ['return the square root of x', 'a', 'b', 'c', 'd', 'e']
  assert [python_docs.split_of(key) for key in keys] == [
    'candidates', 'judgements', 'test', 'judgements', 'clicks', 'clicks',
  ]  # fmt: skip


def test_labels_follow_the_rule(groups, pages):
  seen = set()
  for group in groups['judgements'] + groups['test']:
    own = pages[group.query_id]
    assert [doc.label for doc in group.docs].count(4) == 1
    for doc in group.docs:
      page = pages[doc.doc_id]
      if doc.doc_id == group.query_id:
        expected = 4
      elif page.key == own.key:
        expected = 3
      elif own.owner and page.owner == own.owner:
        expected = 2
      else:
        expected = int(page.module == own.module)
      assert doc.label == expected
      seen.add(doc.label)
  assert seen == {0, 1, 2, 3, 4}


def test_groups_carry_the_first_stage(groups):
  for kind in KINDS:
    for group in groups[kind]:
      assert 1 <= len(group.docs) <= 20
      assert [doc.rank for doc in group.docs] == list(range(1, len(group.docs) + 1))
      scores = [doc.score for doc in group.docs]
      assert scores == sorted(scores, reverse=True) and min(scores) > 0
      assert all(doc.in_pool for doc in group.docs)
  assert {doc.label for group in groups['candidates'] for doc in group.docs} == {UNJUDGED}
  assert max(len(group.docs) for group in python_docs.groups('test', depth=3)) == 3


def test_for_retrieval_every_query_has_its_own_page_as_the_only_judged_one(groups):
  for kind in ('judgements', 'test'):
    found = list(sources.read('python_docs:?judged=page', kind))
    queries = [page.doc.doc_id for page in python_docs._queries(kind, python_docs.LIBRARY)]
    assert [group.query_id for group in found] == queries
    assert {group.query_id for group in groups[kind]} < set(queries)
    by_rule = {group.query_id: group for group in groups[kind]}
    for group in found:
      assert group.grades == {group.query_id: 1}
      *others, last = group.docs
      if group.query_id in by_rule:  # BM25 finds the page: the same documents, ranks and scores
        ranked = [(d.doc_id, d.rank, d.score) for d in by_rule[group.query_id].docs]
        assert [(d.doc_id, d.rank, d.score) for d in group.docs] == ranked
        assert all(doc.in_pool for doc in group.docs)
      else:
        assert (last.doc_id, last.rank, last.in_pool) == (group.query_id, 0, False)
        assert math.isnan(last.score) and all(doc.rank and doc.in_pool for doc in others)
  plain, other = (
    list(sources.read(f'python_docs:{o}', 'candidates')) for o in ('', '?judged=page')
  )
  assert plain == other
  with pytest.raises(UserError, match='judged=pages is none of rule, page'):
    list(sources.read('python_docs:?judged=pages', 'test'))


def test_several_splits_are_read_as_one(groups):
  address = 'python_docs:?splits=clicks,candidates&judged=page'
  got = list(sources.read(address, 'judgements'))
  clicks = [click.query for click in python_docs.clicks()]
  assert [group.query for group in got][: len(clicks)] == clicks
  assert [group.query for group in got][len(clicks) :] == [g.query for g in groups['candidates']]


@pytest.mark.parametrize(
  ('options', 'kind', 'message'),
  [
    ('splits=train', 'test', 'splits=train is none of clicks, judgements, candidates, test'),
    ('splits=test', 'clicks', 'clicks are one split'),
    ('split=test', 'test', "cannot use the option 'split=test'"),
  ],
)
def test_wrong_options(options, kind, message):
  with pytest.raises(UserError, match=message):
    sources.read(f'python_docs:?{options}', kind)


def test_own_page_does_not_contain_its_query(groups, pages):
  clicks = [(c.query, c.summary) for c in python_docs.clicks()]
  # A few docstrings repeat themselves word for word further down.
  assert sum(query in summary for query, summary in clicks) < 0.02 * len(clicks)
  assert all(len(c.query.split()) >= 4 for c in python_docs.clicks())
  assert all(len(pages[g.query_id].doc.summary) >= 40 for g in groups['test'])


def test_first_sentences():
  split = python_docs._first_sentence
  assert split('Do it. Then rest.') == ('Do it', 'Then rest.')
  assert split('Do it, e.g. now, at 3.5 speed!  Rest\n\n  here') == (
    'Do it, e.g. now, at 3.5 speed!', 'Rest here',
  )  # fmt: skip
  assert split('Do it\nnow\n\nRest.') == ('Do it now', 'Rest.')


def test_a_package_can_be_added_without_importing_it(tmp_path, monkeypatch):
  (tmp_path / 'mypkg' / 'tests').mkdir(parents=True)
  (tmp_path / 'mypkg' / '__init__.py').write_text('"""My package."""\nraise RuntimeError')
  (tmp_path / 'mypkg' / 'mod.py').write_text('def f(a, *, b=1):\n  """Frob it well. Twice."""')
  (tmp_path / 'mypkg' / 'broken.py').write_text('def (')
  (tmp_path / 'mypkg' / 'tests' / '__init__.py').write_text('"""Not this."""')
  monkeypatch.syspath_prepend(tmp_path)
  entries = {e.name: e for e in docstrings.find(('mypkg',))}
  assert sorted(entries) == ['mypkg', 'mypkg.mod.f']
  assert entries['mypkg.mod.f'].signature == 'f(a, *, b=1)'


def test_an_unknown_package_is_clear():
  with pytest.raises(UserError, match='nosuchpkg: is not installed as a package'):
    list(sources.read('python_docs:?packages=nosuchpkg', 'clicks'))


def test_packages_are_added_to_the_library_or_replace_it():
  titles = {}
  for options in ('', '?packages=numpy', '?only=numpy'):
    titles[options] = {c.title for c in sources.read(f'python_docs:{options}', 'clicks')}
  alone = titles['?only=numpy']
  assert alone and all(title.startswith('numpy') for title in alone)
  assert titles['?packages=numpy'] - titles[''] and not titles[''] & alone


def test_another_version_of_a_package_is_other_data(monkeypatch):
  before = [sources.fingerprint(f'python_docs:{o}') for o in ('', '?only=numpy')]
  version = importlib.metadata.version
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: version(name) + '.post1')
  after = [sources.fingerprint(f'python_docs:{o}') for o in ('', '?only=numpy')]
  assert before[0] == after[0] and before[1] != after[1]
