"""Prepared data: read back exactly, in order, by index, in Grain, and the same twice."""

import math
import pickle

import grain
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from disranker_jax.data import store
from disranker_jax.data.records import Click, Document, Group
from disranker_jax.errors import UserError

CLICKS = [Click('größe 猫 🦊', 'title', '', 3), Click('b', '', 'only a summary\nof two lines')]
GROUPS = [
  Group('q1', 'größe 猫', (Document('d1', 'a', '', 4, 1, 0.1), Document('d\t2', 'é\x00', 's'))),
  Group('q2', 'one', (Document('d3', '', 's', 0, 0, -1e-300, in_pool=False),)),
  Group('q3', 'none', ()),
]
RECORDS = {'clicks': CLICKS, 'judgements': GROUPS, 'candidates': GROUPS, 'test': GROUPS}


@pytest.mark.parametrize('kind', store.KINDS)
def test_records_come_back_exactly(kind, tmp_path, capfd):
  records = RECORDS[kind]
  assert store.write(kind, iter(records), tmp_path / 'deep' / kind) == len(records)
  source = store.open(kind, tmp_path / 'deep' / kind)
  # As text, because NaN does not equal itself.
  assert repr(list(source)) == repr(records)
  assert repr(source[-1]) == repr(records[-1])
  assert len(source) == len(records)
  if kind != 'clicks':
    assert math.isnan(source[0].docs[1].score) and type(source[0].docs[0].label) is int
  with pytest.raises(IndexError):
    source[len(records)]
  assert capfd.readouterr().out == ''


def test_order_is_kept_and_grain_reads_it(tmp_path):
  clicks = [Click(f'q{i}', 't', 's') for i in range(300)]
  store.write('clicks', clicks, tmp_path / 'c')
  source = pickle.loads(pickle.dumps(store.open('clicks', tmp_path / 'c')))
  assert list(source) == clicks
  dataset = grain.MapDataset.source(source).seed(0).shuffle()
  shuffled = [dataset[i] for i in range(len(dataset))]
  assert shuffled != clicks and sorted(map(repr, shuffled)) == sorted(map(repr, clicks))


def test_tfds_itself_reads_it(tmp_path):
  store.write('clicks', CLICKS, tmp_path / 'c')
  rows = tfds.builder_from_directory(str(tmp_path / 'c')).as_data_source('rows')
  assert rows[0]['query'].decode() == CLICKS[0].query and rows[0]['count'] == 3


def test_fingerprint_depends_on_the_content_only(tmp_path):
  for name in ('a', 'b'):
    store.write('test', GROUPS, tmp_path / name)
  store.write('test', GROUPS[::-1], tmp_path / 'c')
  a, b, c = (store.fingerprint(tmp_path / name) for name in 'abc')
  assert a == b != c
  assert len(a) == 64


def test_writing_again_replaces(tmp_path):
  store.write('clicks', CLICKS, tmp_path / 'c')
  store.write('clicks', CLICKS[:1], tmp_path / 'c')
  assert len(store.open('clicks', tmp_path / 'c')) == 1
  assert [path.name for path in tmp_path.iterdir()] == ['c']


def test_a_failure_leaves_the_old_data_and_no_debris(tmp_path):
  def broken():
    yield CLICKS[0]
    raise UserError('f.jsonl:2:label: is bad; correct it')

  store.write('clicks', CLICKS, tmp_path / 'c')
  before = store.fingerprint(tmp_path / 'c')
  with pytest.raises(UserError, match=r'^f\.jsonl:2:label: is bad; correct it$'):
    store.write('clicks', broken(), tmp_path / 'c')
  assert store.fingerprint(tmp_path / 'c') == before
  assert [path.name for path in tmp_path.iterdir()] == ['c']


def test_mistakes_of_users_are_clear(tmp_path):
  with pytest.raises(UserError, match='there are no clicks'):
    store.write('clicks', [], tmp_path / 'c')
  assert list(tmp_path.iterdir()) == []
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('x')
  with pytest.raises(UserError, match='contains something that is not prepared data'):
    store.write('clicks', CLICKS, tmp_path / 'mine')
  with pytest.raises(UserError, match='is not prepared data'):
    store.open('clicks', tmp_path / 'nowhere')
  with pytest.raises(UserError, match='is not prepared data'):
    store.fingerprint(tmp_path / 'mine')
  store.write('clicks', CLICKS, tmp_path / 'c')
  with pytest.raises(UserError, match='contains clicks, not test'):
    store.open('test', tmp_path / 'c')


def test_a_damaged_folder_is_clear(tmp_path):
  store.write('clicks', CLICKS, tmp_path / 'c')
  (tmp_path / 'c' / 'dataset_info.json').write_text('{')
  with pytest.raises(UserError, match='damaged'):
    store.open('clicks', tmp_path / 'c')
  store.write('clicks', CLICKS, tmp_path / 'd')
  for path in (tmp_path / 'd').glob('*array_record*'):
    path.unlink()
  with pytest.raises(UserError, match='damaged'):
    store.open('clicks', tmp_path / 'd')


@pytest.mark.parametrize('kind', store.KINDS)
def test_examples_are_byte_for_byte_those_of_tfds(kind):
  features = store.features(kind)
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  for record in RECORDS[kind]:
    example = serializer.get_tf_example(features.encode_example(store.to_row(record)))
    assert store.serialize(record) == example.SerializeToString(deterministic=True)
    assert repr(store.parse(store.serialize(record))) == repr(record)


def test_several_shards_are_one_dataset(tmp_path, monkeypatch):
  monkeypatch.setattr(store, 'SHARD_BYTES', 2000)
  clicks = [Click(f'q{i}', 't', 's', i + 1) for i in range(300)]
  store.write('clicks', clicks, tmp_path / 'c')
  assert len(list((tmp_path / 'c').glob('clicks-rows.array_record-*-of-*'))) > 3
  assert list(store.open('clicks', tmp_path / 'c')) == clicks
  rows = tfds.builder_from_directory(str(tmp_path / 'c')).as_data_source('rows')
  assert [int(rows[i]['count']) for i in (0, 150, 299)] == [1, 151, 300]


def test_files_without_the_newest_field_can_be_read():
  group = GROUPS[0]
  example = tf_example_pb2.Example.FromString(store.serialize(group))
  del example.features.feature['docs/teacher']
  assert repr(store.parse(example.SerializeToString())) == repr(group)
