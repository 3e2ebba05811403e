"""`disranker describe`: counts, percentiles, truncation, bad rows."""

import json

import numpy as np
import pytest

from disranker_jax.commands import describe
from disranker_jax.data import sources, survey
from disranker_jax.data.records import BadRow, BadRows
from disranker_jax.errors import UserError

ROW = {
  'query_id': 'q1',
  'query': 'red fox',
  'doc_id': 'd1',
  'title': 'Foxes',
  'summary': 'All red.',
}


def write(path, rows):
  path.write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in rows))
  return f'jsonl:{path}'


def report(*arguments):
  return describe.look(describe.parse_args(list(map(str, arguments))))


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DISRANKER_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield


def test_percentiles_are_numpys():
  values = np.random.default_rng(0).integers(0, 50, 777)
  histogram = survey.Histogram()
  for value in values.tolist():
    histogram.add(value)
  assert list(histogram.percentiles().values()) == [
    np.percentile(values, p, method='inverted_cdf') for p in survey.PERCENTILES
  ]


def test_labels_duplicates_and_useless_queries(tmp_path):
  address = write(
    tmp_path / 'a.jsonl',
    [
      ROW | {'label': 2}, ROW | {'doc_id': 'd2', 'label': 0}, ROW | {'doc_id': 'd3', 'title': 'x'},
      ROW | {'query_id': 'q2', 'label': 1, 'title': 'other'},
      ROW | {'query_id': 'q3', 'query': 'dog'},
      ROW | {'query_id': 'q4', 'query': 'cat', 'label': 1},
      ROW | {'query_id': 'q4', 'query': 'cat', 'label': 0, 'doc_id': 'd5', 'summary': 'y'},
    ],
  )  # fmt: skip
  found = report(address)
  assert (found['queries'], found['pairs'], found['rows'], found['bad_rows']) == (4, 7, 7, 0)
  assert found['labels'] == {'0': 2, '1': 2, '2': 1} and found['unjudged_pairs'] == 2
  assert (found['judged_queries'], found['queries_with_one_grade']) == (3, 1)
  assert found['duplicates'] == {
    'query_texts_with_several_ids': 1,
    'doc_ids_with_several_texts': 1,  # d1 is another page for q2
    'texts_repeated_in_a_query': 1,
    'of_those_with_different_labels': 1,
  }


def test_clicks(tmp_path):
  address = write(tmp_path / 'a.jsonl', [ROW, ROW, ROW | {'title': 'x'}, ROW | {'query': 'dog'}])
  found = report(address, '--kind', 'clicks')
  assert found['clicks'] == 4
  assert found['duplicates'] == {'queries_with_several_clicks': 1, 'same_click_again': 1}


def test_bad_rows_of_one_kind_are_one_line_with_a_place_and_the_status_is_1(tmp_path, capsys):
  rows = [
    ROW, '{"broken', ROW | {'doc_id': 'd2', 'label': -1}, ROW | {'doc_id': 'd3', 'label': -7},
    ROW | {'label': 1}, ROW | {'title': 'x'}, ROW,
  ]  # fmt: skip
  address = write(tmp_path / 'a.jsonl', rows)
  found = report(address)
  reasons = {row['reason'].partition(':')[0]: row for row in found['reasons']}
  assert (reasons['label']['count'], reasons['label']['first']) == (2, f'{tmp_path}/a.jsonl:3')
  assert reasons['row']['count'] == 1
  # A repeated document with another label has a reason of its own.
  twice = [row for row in found['reasons'] if row['reason'].startswith('doc_id')]
  assert sorted('with label' in row['reason'] for row in twice) == [False, True]
  assert found['bad_rows'] == 5 and found['pairs'] == 1
  for flags in ([], ['--json']):
    with pytest.raises(SystemExit) as ended:
      describe.main([*flags, address])
    assert ended.value.code == 1
  assert '1 pair of 7 rows; 5 bad rows' in (out := capsys.readouterr().out)
  assert '1  repeated rows or documents dropped' in out


@pytest.mark.parametrize(
  ('tokenizer', 'text', 'share'),
  [('tiny-encoder', 'list file', 0), ('tiny-encoder', '\u732b', 1), ('tiny-decoder', '\u732b', 0)],
)
def test_unknown_tokens_are_counted(tmp_path, capsys, tokenizer, text, share):
  rows = [ROW | {'query': text, 'title': text, 'summary': f'{text} {text}'}]
  address = write(tmp_path / 'a.jsonl', rows)
  assert report(address, '--tokenizer', tokenizer)['lengths']['unknown'] == share
  describe.main([address, '--tokenizer', tokenizer])
  out = capsys.readouterr().out
  assert f'unknown to the tokenizer: {share:.1%} of the tokens' in out
  assert ('bert-multilingual' in out) == bool(share)


@pytest.mark.parametrize('tokenizer', ['tiny-encoder', 'tiny-decoder'])
@pytest.mark.parametrize(('max_len', 'max_query_len'), [(24, 8), (64, 16), (512, 4), (512, 64)])
def test_what_is_cut_is_what_the_prompt_cuts(tmp_path, tokenizer, max_len, max_query_len):
  rng = np.random.default_rng(0)
  words = ['list', 'file', 'string', 'path', 'number', 'return']

  def text(most):
    return ' '.join(rng.choice(words, rng.integers(1, most)))

  rows = [
    ROW | {'doc_id': f'd{i}', 'query_id': f'q{i}', 'query': text(12), 'title': text(10),
           'summary': text(40)}
    for i in range(60)
  ]  # fmt: skip
  address = write(tmp_path / 'a.jsonl', rows)
  flags = ['--tokenizer', tokenizer, '--max-len', max_len, '--max-query-len', max_query_len]
  found = report(address, *flags)
  args = describe.parse_args(list(map(str, [address, *flags])))
  prompt = describe.prompt_of(args)
  args.max_len, args.max_query_len = 4096, 2048
  everything = describe.prompt_of(args)
  cut, lengths = [], []
  for group in sources.read(address, 'test'):
    whole, seen = (len(p.encode(group.query, group.docs)[0]) for p in (everything, prompt))
    cut.append(whole > seen)
    lengths.append(whole)
  assert found['lengths']['truncated']['any'] == pytest.approx(np.mean(cut))
  assert found['lengths']['input']['max'] == max(lengths)
  assert found['lengths']['input']['p50'] == np.percentile(lengths, 50, method='inverted_cdf')
  row = found['samples'][0]
  ids = prompt.encode(rows[0]['query'], next(iter(sources.read(address, 'test'))).docs)[0].ids
  assert (row['tokens'], row['model_sees']) == (len(ids), prompt.tokenizer.decode(ids))
  assert len(found['samples']) == 3


def test_labels_that_are_no_grades_are_said(tmp_path, capsys):
  for label, is_said in ((4, False), (90, True)):
    describe.main([write(tmp_path / 'a.jsonl', [ROW | {'label': label}])])
    assert ('labels go up to 90, and the gain of nDCG' in capsys.readouterr().out) == is_said


def test_no_files_are_left_and_json_is_json(tmp_path, capsys, monkeypatch):
  address = write(tmp_path / 'a.jsonl', [ROW | {'label': 1}])
  monkeypatch.chdir(tmp_path)
  describe.main([address, '--json'])
  assert json.loads(capsys.readouterr().out)['queries'] == 1
  assert [path.name for path in tmp_path.iterdir()] == ['a.jsonl']
  with pytest.raises(UserError, match='does not exist'):
    describe.main([f'jsonl:{tmp_path}/none'])
  with pytest.raises(UserError, match='--max-len'):
    describe.main([address, '--tokenizer', 'tiny-encoder', '--max-len', '2'])


def test_reasons_lose_their_values(tmp_path):
  bad_rows = BadRows('quarantine', tmp_path / 'bad.jsonl')
  for i in range(5):
    bad_rows.reject('f', i, {}, BadRow('doc_id', f'{"its " * i!r} is there -{i}.5 times', 'mend'))
  (row,) = survey.bad_rows(bad_rows.path)
  assert row['count'] == 5 and row['first'] == 'f:0'


def test_reasons_keep_what_to_do(tmp_path):
  rows = [ROW | {'label': -1}, ROW | {'label': -7}, {k: v for k, v in ROW.items() if k != 'title'}]
  reasons = {row['reason'] for row in report(write(tmp_path / 'a.jsonl', rows))['reasons']}
  assert any(reason.endswith('; write an integer of 0 or more') for reason in reasons)
  assert any(reason.endswith('; add "title" as a string, which may be empty') for reason in reasons)


def test_rows_of_another_kind_are_recognised(tmp_path, capsys):
  click = {'query': 'red fox', 'title': 'Foxes', 'summary': 'All red.'}
  address = write(tmp_path / 'a.jsonl', [click, click])
  with pytest.raises(SystemExit):
    describe.main([address])
  assert 'no row is of kind test; try --kind clicks\n' in capsys.readouterr().out
  assert report(write(tmp_path / 'b.jsonl', [ROW]), '--kind', 'judgements')['other_kinds'] == [
    'clicks', 'candidates', 'test', 'documents',
  ]  # fmt: skip
  # A row with another mistake is not of another kind, nor is a file with good rows.
  assert 'other_kinds' not in report(write(tmp_path / 'c.jsonl', [ROW, {'query': 'x'}]))
  assert report(write(tmp_path / 'd.jsonl', ['{"broken']))['other_kinds'] == []


def test_a_source_that_has_no_rows_is_not_said_to_have_none_of_them(tmp_path, capsys):
  found = report(write(tmp_path / 'a.jsonl', [ROW]))
  describe.show(found)
  assert '1 query, 1 pair of 1 row; 0 bad rows' in capsys.readouterr().out
  describe.show(found | {'rows': 0})  # as of python_docs:
  assert capsys.readouterr().out.splitlines()[1] == '1 query, 1 pair'


def candidates(queries: int, docs: int = 3) -> list[dict]:
  return [
    ROW | {'query_id': f'q{i}', 'query': f'fox {i}', 'doc_id': f'd{n}'}
    for i in range(queries) for n in range(docs)
  ]  # fmt: skip


def test_a_limit_reads_no_row_behind_the_queries_that_it_takes(tmp_path, capsys):
  rows = candidates(50)
  some, whole = write(tmp_path / 'a.jsonl', rows[:12]), write(tmp_path / 'b.jsonl', rows)
  found, wanted = report(whole, '--limit', 4), report(some)
  assert found['rows'] == 13  # the first row of the fifth query ends the reading
  for name in ('queries', 'pairs', 'documents_of_a_query', 'lengths', 'samples', 'duplicates'):
    assert found[name] == wanted[name], name
  # A message tells that there may be more of them.
  describe.main([whole, '--limit', '4'])
  assert '       13  rows read; documents that these queries' in capsys.readouterr().out
  assert not report(some, '--limit', 4)['notes'] and not report(whole)['notes']
  # Rows with all documents of a query, and clicks, which need no other row.
  packed = [{'query': f'fox {i}', 'pos': ['a', 'b'], 'neg': ['c']} for i in range(50)]
  address = write(tmp_path / 'c.jsonl', packed)
  found = report(address, '--kind', 'judgements', '--limit', 4)
  assert (found['queries'], found['pairs']) == (4, 12) and found['rows'] < 20
  found = report(whole, '--kind', 'clicks', '--limit', 4)
  assert (found['clicks'], found['rows']) == (4, 4) and not found['notes']


def test_a_limit_ends_after_as_many_bad_rows(tmp_path):
  address = write(tmp_path / 'a.jsonl', [{'text': 'no query'}] * 50)
  for kind in ('test', 'clicks'):
    found = report(address, '--kind', kind, '--limit', 4)
    assert (found['rows'], found['bad_rows']) == (4, 4) and found['reasons'][0]['count'] == 4
