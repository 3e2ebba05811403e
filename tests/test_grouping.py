"""Rows to queries: in any order of rows, in first-seen order, through files if needed."""

import json
import random

import pytest

from disranker_jax.data import beam, grouping, preparation, preparing, records, sources, store
from disranker_jax.data.records import BadRows, Document, Group
from disranker_jax.errors import UserError

GOOD = {
  'query_id': 'q1', 'query': 'red fox', 'doc_id': 'd1', 'title': 'Foxes', 'summary': 'All red.',
  'label': 3, 'rank': 2, 'score': 1.5,
}  # fmt: skip


def changed(**fields):
  return GOOD | fields


def grouped(*dicts, bad_rows=None, memory=1 << 20):
  bad_rows = bad_rows or BadRows()
  parsed = (
    ('f.jsonl', i, row)
    for i, raw in enumerate(dicts, 1)
    if (row := bad_rows.parse('f.jsonl', i, raw, records.judgement))
  )
  return list(grouping.of_rows(parsed, bad_rows, memory=memory))


def test_rows_of_a_query_are_grouped_in_first_seen_order():
  rows = [
    changed(query_id='b', doc_id='2'),
    changed(query_id='a'),
    changed(query_id='b', doc_id='1'),
  ]
  groups = grouped(*rows)
  assert [(g.query_id, [d.doc_id for d in g.docs]) for g in groups] == [
    ('b', ['2', '1']), ('a', ['d1']),
  ]  # fmt: skip


def test_a_document_twice_and_a_query_with_two_texts_are_bad():
  with pytest.raises(UserError, match=r"f\.jsonl:2:doc_id: 'd1' appears twice.* different summary"):
    grouped(GOOD, changed(summary='other'))
  with pytest.raises(UserError, match=r"f\.jsonl:2:query: query_id 'q1' was 'red fox' before"):
    grouped(GOOD, changed(doc_id='d2', query='x'))


def test_quarantine_keeps_bad_rows_with_reasons_and_counts(tmp_path):
  bad_rows = BadRows('quarantine', tmp_path / 'deep' / 'bad.jsonl')
  rows = [
    GOOD, changed(label=-2), changed(title=''), changed(doc_id='d2'), changed(query='\ud800')
  ]  # fmt: skip
  groups = grouped(*rows, bad_rows=bad_rows)
  assert [d.doc_id for g in groups for d in g.docs] == ['d1', 'd2']
  assert (bad_rows.rows_in, bad_rows.kept, bad_rows.quarantined) == (5, 2, 3)
  entries = [json.loads(line) for line in bad_rows.path.read_text().splitlines()]
  # Errors that need the whole query come last.
  assert [(e['line'], e['field']) for e in entries] == [(2, 'label'), (5, 'query'), (3, 'doc_id')]
  assert entries[0]['row'] == changed(label=-2) and 'is -2' in entries[0]['reason']


def test_a_bad_row_leaves_no_query_behind(tmp_path):
  bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
  assert grouped(changed(query_id='q9', label=-1), bad_rows=bad_rows) == []


@pytest.mark.parametrize('memory', [1, 20_000, 1 << 30])
def test_any_order_and_any_memory_give_what_a_dict_gives(memory):
  rng = random.Random(0)
  rows = [
    changed(query_id=f'q{q}', query=f'text {q}', doc_id=f'd{d}', label=(q * d) % 5)
    for q in range(40)
    for d in range(rng.randrange(1, 30))
  ]
  rng.shuffle(rows)
  expected = {}
  for row in rows:
    expected.setdefault(row['query_id'], []).append((row['doc_id'], row['label']))
  found = {g.query_id: [(d.doc_id, d.label) for d in g.docs] for g in grouped(*rows, memory=memory)}
  assert list(found.items()) == list(expected.items())


def test_a_document_with_two_labels_says_both():
  with pytest.raises(UserError, match='with label 3 and now 1'):
    grouped(GOOD, changed(label=1))


@pytest.mark.parametrize('memory', [1, 1 << 20])
def test_a_document_that_is_repeated_unchanged_is_dropped_and_counted(memory):
  unranked = {name: value for name, value in GOOD.items() if name not in ('rank', 'score')}
  bad_rows = BadRows()
  rows = [GOOD, unranked | {'doc_id': 'd2'}, GOOD, unranked | {'doc_id': 'd2'}, GOOD]
  (group,) = grouped(*rows, bad_rows=bad_rows, memory=memory)
  assert [doc.doc_id for doc in group.docs] == ['d1', 'd2']
  assert bad_rows.notes == {records.REPEATED: 3} and bad_rows.rows_in == bad_rows.kept == 5


class TestDepth:
  """`depth` keeps first-stage ranks 1 to N of rows, as it does of runs."""

  ROWS = tuple(
    {'query_id': 'q', 'query': 'red fox', 'doc_id': f'd{rank}', 'title': 'T', 'summary': 's',
     'rank': rank, **({'label': 1} if rank in (2, 5) else {})}
    for rank in (4, 3, 5, 2, 1)
  )  # fmt: skip

  def address(self, tmp_path, rows):
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return f'jsonl:{tmp_path}/a.jsonl'

  def read(self, tmp_path, kind, depth):
    [group] = sources.read(self.address(tmp_path, self.ROWS), kind, depth=depth)
    return {doc.doc_id: doc.in_pool for doc in group.docs}

  def test_candidates_are_the_first_ranks(self, tmp_path):
    assert self.read(tmp_path, 'candidates', 2) == {'d1': True, 'd2': True}
    assert len(self.read(tmp_path, 'candidates', 0)) == 5

  def test_judged_documents_of_a_test_set_leave_the_pool_only(self, tmp_path):
    assert self.read(tmp_path, 'test', 2) == {'d1': True, 'd2': True, 'd5': False}

  def test_judgements_keep_all_documents(self, tmp_path):
    rows = [row | {'label': 0} for row in self.ROWS]
    [group] = sources.read(self.address(tmp_path, rows), 'judgements', depth=2)
    assert len(group.docs) == 5

  def test_rows_without_ranks_are_refused_and_not_cut_by_their_order(self, tmp_path):
    rows = [{k: v for k, v in row.items() if k != 'rank'} for row in self.ROWS]
    address = self.address(tmp_path, rows)
    [group] = sources.read(address, 'test', depth=5)
    assert len(group.docs) == 5
    with pytest.raises(UserError, match=r"a\.jsonl: depth=2: .* 'q' has 5 documents.*\"rank\""):
      list(sources.read(address, 'test', depth=2))

  def test_a_query_with_fewer_documents_is_cut_by_the_same_ranks(self, tmp_path):
    assert self.read(tmp_path, 'test', 9) == dict.fromkeys(('d4', 'd3', 'd5', 'd2', 'd1'), True)
    rows = [self.ROWS[0], self.ROWS[2], {**self.ROWS[3], 'doc_id': 'found'}]
    none = {k: v for k, v in self.ROWS[2].items() if k != 'rank'} | {'doc_id': 'none'}
    address = self.address(tmp_path, [*rows, none])
    [group] = sources.read(address, 'test', depth=4)
    pool = {doc.doc_id: doc.in_pool for doc in group.docs}
    assert pool == {'d4': True, 'd5': False, 'found': True, 'none': False}
    [group] = sources.read(address, 'candidates', depth=4)
    assert [doc.doc_id for doc in group.docs] == ['d4', 'found']

  def test_documents_that_it_leaves_out_for_want_of_a_rank_are_counted(self, tmp_path):
    unranked = [
      {name: row[name] for name in row if name != 'rank'} | {'query_id': 'a'} for row in self.ROWS
    ]
    rows = [*unranked, *self.ROWS, unranked[0] | {'query_id': 'q', 'doc_id': 'other'}]
    bad_rows = BadRows()
    groups = sources.read(self.address(tmp_path, rows), 'candidates', depth=50, bad_rows=bad_rows)
    assert [len(group.docs) for group in groups] == [5, 5]
    assert bad_rows.notes == {grouping.UNRANKED: 1}

  def test_a_query_without_a_document_that_deep_is_left_out_and_counted(self, tmp_path):
    deep = [row | {'rank': row['rank'] + 50, 'query_id': 'deep'} for row in self.ROWS]
    address = self.address(tmp_path, [*self.ROWS, *deep])
    notes = {}
    for kind, names in (('candidates', ['q']), ('test', ['q', 'deep'])):
      bad_rows = BadRows()
      found = list(sources.read(address, kind, depth=2, bad_rows=bad_rows))
      assert [group.query_id for group in found] == names
      notes[kind] = dict(bad_rows.notes)
    none = 'queries without a document of first-stage rank 1 to 2'
    assert notes['candidates'] == {f'{none} left out': 1}
    # As in a collection, its judged documents stay, and nothing of it is ranked.
    assert notes['test'] == {f'test {none}, which count as 0': 1}
    assert {(doc.doc_id, doc.in_pool) for doc in found[1].docs} == {('d2', False), ('d5', False)}
    for kind in ('candidates', 'test'):
      with pytest.raises(UserError, match=r"depth=2: no query .* rank 1 to 2, such as .*'deep'"):
        list(sources.read(self.address(tmp_path, deep), kind, depth=2))

  def test_is_named_where_beam_has_nothing_left(self, tmp_path):
    empty = ValueError('The number of generated examples is 0')  # of TFDS
    for depth, says in (
      (2, '; check the address, and the ranks: --depth 2 keeps 1 to 2'),
      (0, '; check the address'),
    ):
      job = preparation.Job('jsonl:a', 'candidates', tmp_path / 'a', tmp_path / 'bad', depth=depth)
      assert str(beam._user_error(empty, job)).endswith(says)

  @pytest.mark.parametrize(
    ('depth', 'kept'),
    [(9, 'a b c own f g'), (5, 'a b c own f'), (3, 'a b own'), (1, 'own')],
  )
  def test_labeled_candidates_keep_what_is_relevant_and_fill_up_as_generate_does(
    self, tmp_path, depth, kept
  ):
    places = {'c': 3, 'a': 1, 'f': 0, 'own': 0, 'b': 2, 'g': 0, 'deep': 10}
    docs = [Document(name, 't', 's', int(name == 'own'), rank) for name, rank in places.items()]
    unfound = [Document(name, 't', 's', 0) for name in 'vwxyz']
    unfound.append(Document('own', 't', 's', 1))
    groups = [Group('q', 'x', tuple(docs)), Group('unranked', 'y', tuple(unfound))]
    store.write('candidates', groups, tmp_path / 'made')
    found, none = sources.read(f'tfds:{tmp_path}/made', 'candidates', depth=depth)
    assert [doc.doc_id for doc in found.docs] == [n for n in places if n in kept.split()]
    assert len(none.docs) == min(depth, 6) and none.docs[-1].label == 1

  def test_a_test_without_anything_to_rank_is_only_refused_if_depth_is_the_reason(self):
    outside = Group('q', 'x', (Document('d', 't', 's', 1, 3, in_pool=False),))
    assert list(grouping.cuts([outside], 'test', 0, BadRows(), 'jsonl:a')) == [outside]
    with pytest.raises(UserError, match='jsonl:a: depth=2: no query'):
      list(grouping.cuts([outside], 'test', 2, BadRows(), 'jsonl:a'))

  def test_prepare_and_a_prepared_source_use_it_too(self, tmp_path):
    address = self.address(tmp_path, self.ROWS)
    for source, depth, name in ((address, 3, 'a'), (f'tfds:{tmp_path}/a', 2, 'b')):
      job = preparation.Job(source, 'candidates', tmp_path / name, tmp_path / 'bad', depth=depth)
      preparing.prepare(job)
    kept = [store.open('candidates', tmp_path / name)[0].docs for name in ('a', 'b')]
    assert [sorted(doc.rank for doc in docs) for docs in kept] == [[1, 2, 3], [1, 2]]
