"""ir_datasets with the real library, on the home next to this checkout; no downloads."""

import collections
import pathlib
import shutil
import sys

import pytest

from disranker_jax.data import sources
from disranker_jax.data.records import NEGATIVE, UNJUDGED, BadRows
from disranker_jax.data.source import DOCUMENTS
from disranker_jax.errors import UserError

HOME = pathlib.Path(__file__).parents[1].parent / 'shared' / 'ir_datasets'
COLLECTIONS = HOME.parent / 'data'


@pytest.fixture(scope='module', autouse=True)
def ir_datasets(tmp_path_factory):
  """The library with this home, which it reads once, at import."""
  if not HOME.is_dir():
    pytest.skip(
      'needs an ir_datasets home in ../shared/ir_datasets, which is not part of the repository'
    )
  folder = shutil.copytree(HOME, tmp_path_factory.mktemp('home') / 'ir')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('IR_DATASETS_HOME', str(folder))
    for name in [n for n in sys.modules if n.split('.')[0] == 'ir_datasets']:
      patch.delitem(sys.modules, name)
    yield pytest.importorskip('ir_datasets', reason="needs ir_datasets: pip install -e '.[data]'")


def read(address, kind, **options):
  return list(sources.read(f'ir_datasets:{address}', kind, **options))


@pytest.mark.slow
def test_judgements_are_those_of_the_same_collection_as_files():
  if not (COLLECTIONS / 'nfcorpus').is_dir():
    pytest.skip(
      'needs the collection nfcorpus in ../shared/data, which is not part of the repository'
    )
  library = read('beir/nfcorpus/test', 'judgements')
  files = list(sources.read(f'trec:{COLLECTIONS}/nfcorpus', 'judgements'))
  assert len(library) == 323

  def table(groups):
    # Not the texts, because the files have other white space.
    return {g.query_id: {(d.doc_id, d.label) for d in g.docs} for g in groups}

  assert table(library) == table(files)


def test_bm25_finds_candidates_if_the_dataset_has_no_run():
  groups = read('beir/nfcorpus/test', 'candidates', depth=10)
  assert len(groups) > 290
  for group in groups:
    assert [doc.rank for doc in group.docs] == list(range(1, len(group.docs) + 1))
    scores = [doc.score for doc in group.docs]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0
    assert all(doc.label == UNJUDGED and doc.title for doc in group.docs)


def test_test_sets_pool_the_run_and_keep_the_judged_outside():
  judged = {
    g.query_id: {d.doc_id for d in g.docs} for g in read('beir/nfcorpus/test', 'judgements')
  }
  for group in read('beir/nfcorpus/test', 'test', depth=5):
    inside = [doc for doc in group.docs if doc.in_pool]
    outside = {doc.doc_id for doc in group.docs if not doc.in_pool}
    assert len(inside) <= 5 and outside <= judged[group.query_id]
    assert judged[group.query_id] <= {doc.doc_id for doc in group.docs}


def test_a_run_of_the_whole_collection_works_for_a_part_of_it(tmp_path, capsys):
  run = tmp_path / 'other.run'
  run.write_text('PLAIN-2 Q0 MED-10 1 2.5 x\nPLAIN-2 Q0 MED-14 2 1 x\nnobody Q0 MED-10 1 1 x\n')
  (group,) = read(f'beir/nfcorpus/test?run={run}', 'candidates')
  assert [(doc.doc_id, doc.rank, doc.score) for doc in group.docs] == [
    ('MED-10', 1, 2.5), ('MED-14', 2, 1.0),
  ]  # fmt: skip
  assert 'left out 1 line of the run' in capsys.readouterr().err


def test_other_datasets_queries_can_be_held_out(ir_datasets):
  everything = read('beir/nfcorpus', 'candidates', depth=1)
  without = read('beir/nfcorpus?exclude=beir/nfcorpus/test', 'candidates', depth=1)
  held_out = {query.query_id for query in ir_datasets.load('beir/nfcorpus/test').queries_iter()}
  kept = {group.query_id for group in everything} - held_out
  assert {group.query_id for group in without} == kept < {g.query_id for g in everything}


def test_documents_without_a_title_and_queries_with_line_ends():
  groups = read('vaswani', 'judgements')
  assert len(groups) == 93 and all(not doc.title and doc.summary for g in groups for doc in g.docs)
  assert all('\n' not in group.query and group.query.strip() for group in groups)


def test_negative_grades_are_not_relevant_and_counted(ir_datasets, tmp_path):
  bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
  groups = read('cranfield', 'judgements', bad_rows=bad_rows)
  grades = collections.Counter(q.relevance for q in ir_datasets.load('cranfield').qrels_iter())
  assert bad_rows.notes[NEGATIVE] == grades[-1] > 0
  assert min(doc.label for group in groups for doc in group.docs) == 0


def test_mistakes_are_one_line(tmp_path):
  for address, kind, says in [
    ('beir/nfcorpse', 'test', 'is not a known dataset'),
    ('', 'test', 'has no dataset id'),
    ('beir/nfcorpus', 'judgements', 'has no qrels'),
    ('beir/nfcorpus/test', 'clicks', 'has no clicks'),
    ('beir/nfcorpus/test?runs=x', 'test', 'cannot use the option'),
    ('beir/nfcorpus/test?run=scoreddocs', 'test', 'has no scoreddocs'),
    (f'beir/nfcorpus/test?run={tmp_path}/none', 'test', 'does not exist'),
  ]:
    with pytest.raises(UserError) as caught:
      read(address, kind)
    assert says in str(caught.value) and '\n' not in str(caught.value), caught.value


def test_a_check_looks_at_what_its_kind_is_read_from(tmp_path):
  lacking = f'?run={tmp_path}/none.run&exclude=beir/nfcorpse'
  documents = sources.open(f'ir_datasets:vaswani{lacking}')
  documents.check(DOCUMENTS)
  assert next(documents.documents(BadRows()))[2].summary
  for address, kind, says in [
    (f'vaswani?run={tmp_path}/none.run', 'candidates', 'none.run: does not exist'),
    (f'vaswani?run={tmp_path}/none.run', 'judgements', 'none.run: does not exist'),
    ('vaswani?run=scoreddocs', 'test', 'has no scoreddocs'),
    ('vaswani?exclude=beir/nfcorpse', 'test', 'beir/nfcorpse: is not a known dataset'),
    ('vaswani?only=beir/nfcorpus', 'test', 'ir_datasets:beir/nfcorpus: has no qrels'),
    ('beir/nfcorpus', 'judgements', 'has no qrels'),
    ('beir/nfcorpus', 'clicks', 'has no clicks'),
  ]:
    with pytest.raises(UserError, match=says):
      sources.open(f'ir_datasets:{address}').check(kind)
