"""`disranker rerank`: transformers' scores, the output formats, and the error messages."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from disranker_jax.commands import rerank
from disranker_jax.data import store
from disranker_jax.data.first_stage import BM25
from disranker_jax.data.records import Document, Group
from disranker_jax.errors import UserError
from disranker_jax.evaluation import fusion, metrics
from disranker_jax.evaluation.fusion import Fusion

QUERY = 'return a list of names'
DOCS = [
  Document('d1', 'dir', 'Return an alphabetized list of names of the attributes of an object.'),
  Document('d2', 'len', 'Return the number of items in a container.'),
  Document('d3', '', 'Only a summary.'),
  Document('d4', 'only a title', ''),
  Document('d5', 'Ünïcode 文字', 'Other alphabets, and words that no vocabulary has.'),
]


@pytest.fixture
def docs(tmp_path):
  """DOCS as the file that --docs takes."""
  file = tmp_path / 'docs.jsonl'
  rows = [{'doc_id': d.doc_id, 'title': d.title, 'summary': d.summary} for d in DOCS]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return file


def output(capsys, *arguments) -> str:
  rerank.main([str(a) for a in arguments])
  return capsys.readouterr().out


def refused(*arguments) -> str:
  with pytest.raises(UserError) as caught:
    rerank.main([str(a) for a in arguments])
  assert '\n' not in str(caught.value)
  return str(caught.value)


class TestScores:
  def test_are_those_of_transformers_on_the_same_pairs(self, model):
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    assert type(network).__name__ == 'BertForSequenceClassification'
    expected = {}
    for doc in DOCS[:2] + DOCS[4:]:
      batch = tokenizer(QUERY, f'{doc.title} : {doc.summary}', return_tensors='pt')
      with torch.no_grad():
        [[expected[doc.doc_id]]] = network(**batch).logits.tolist()
    scores = {doc.doc_id: score for doc, score in rerank.rank(model, QUERY, DOCS)}
    assert max(expected.values()) - min(expected.values()) > 0.01  # not all equal
    for doc_id, score in expected.items():
      assert scores[doc_id] == pytest.approx(score, abs=1e-4)

  def test_of_a_document_do_not_depend_on_the_others(self, model):
    together = {doc.doc_id: score for doc, score in rerank.rank(model, QUERY, DOCS)}
    [(_, alone)] = rerank.rank(model, QUERY, DOCS[:1])
    assert alone == pytest.approx(together['d1'], abs=1e-5)

  def test_equal_ones_are_ordered_as_in_evaluation(self, model):
    twins = [Document(name, 'len', 'Return the number of items.') for name in ('b', 'c', 'a')]
    ranked = rerank.rank(model, QUERY, twins)
    assert len({score for _, score in ranked}) == 1
    assert [d.doc_id for d, _ in ranked] == metrics.ranked({d.doc_id: s for d, s in ranked})


class TestCommand:
  def test_json_is_a_list_best_first_with_raw_scores(self, model, docs, capsys):
    text = output(capsys, '--model', model, '--query', QUERY, '--docs', docs, '--json', '--top', 0)
    rows = json.loads(text)
    assert all(list(row) == ['doc_id', 'score', 'rank'] for row in rows)
    assert [row['rank'] for row in rows] == [1, 2, 3, 4, 5]
    assert {row['doc_id'] for row in rows} == {d.doc_id for d in DOCS}
    scores = [row['score'] for row in rows]
    assert scores == sorted(scores, reverse=True)
    raw = [score for _, score in rerank.rank(model, QUERY, DOCS)]
    assert scores == pytest.approx(raw, abs=1e-6)  # no sigmoid is applied

  def test_top_keeps_the_best(self, model, docs, capsys):
    common = '--model', model, '--query', QUERY, '--docs', docs, '--json', '--top'
    assert json.loads(output(capsys, *common, 2)) == json.loads(output(capsys, *common, 0))[:2]

  def test_the_text_output_has_rank_id_and_the_start_of_the_summary(self, model, docs, capsys):
    lines = output(capsys, '--model', model, '--query', QUERY, '--docs', docs, '--top', 5)
    best = rerank.rank(model, QUERY, DOCS)[0][0]
    assert lines.splitlines()[0].startswith('  1. ')
    assert lines.splitlines()[0].endswith(best.doc_id)
    assert 'Return the number of items in a container.' in lines


class TestFuse:
  def rows(self, model, docs, capsys, *more):
    common = '--model', model, '--query', QUERY, '--docs', docs, '--json', '--top', 0
    return {row['doc_id']: row['score'] for row in json.loads(output(capsys, *common, *more))}

  @pytest.mark.parametrize('more', [(), ('--depth', 3)])
  def test_scores_of_bm25_and_the_model_are_scaled_and_added_up(self, model, docs, capsys, more):
    alone = self.rows(model, docs, capsys, *more)
    bm25 = {DOCS[i].doc_id: score for i, score in BM25(DOCS).top([QUERY], 5)[0]}
    assert len(bm25) == 2  # the other three documents share no word with the query
    found = self.rows(model, docs, capsys, '--fuse', '.3', *more)
    assert found == pytest.approx(fusion.convex(alone, bm25, 0.3), abs=1e-5)
    assert list(found) == sorted(found, key=found.get, reverse=True)

  def test_the_weight_is_that_of_the_folder_and_is_said(self, model, docs, capsys, tmp_path):
    folder = shutil.copytree(model, tmp_path / 'student')
    config = json.loads((folder / 'config.json').read_text())
    config['disranker_jax']['fusion'] = Fusion(0.3, 'scores', 24, 0.7, 0.6, 0.5).to_dict()
    (folder / 'config.json').write_text(json.dumps(config))
    wanted = self.rows(model, docs, capsys, '--fuse', '.3')
    rerank.main(['--model', str(folder), '--query', QUERY, '--docs', str(docs), '--json', '--fuse'])
    said = capsys.readouterr()
    assert {r['doc_id']: r['score'] for r in json.loads(said.out)} == pytest.approx(wanted)
    assert 'chosen on 24 held-out training queries' in said.err

  @pytest.mark.parametrize(
    ('flags', 'what'),
    [
      (['--fuse'], '--fuse: the model folder records no weight'),
      (['--fuse', 'x'], '--fuse x: write a number'),
      (['--fuse', '1.5'], '--fuse: must be a number from 0'),
      (['--fuse', 'nan'], '--fuse: must be a number from 0'),
    ],
  )
  def test_a_wrong_or_missing_weight_is_named(self, model, docs, flags, what):
    assert what in refused('--model', model, '--query', QUERY, '--docs', docs, *flags)


class TestDocuments:
  """--docs takes the addresses that other commands take."""

  def ids(self, model, capsys, address, *more):
    text = output(
      capsys, '--model', model, '--query', QUERY, '--docs', address, '--json', '--top', 0, *more
    )
    return {row['doc_id']: row['score'] for row in json.loads(text)}

  def test_every_address_gives_the_same_documents(self, model, docs, tmp_path, capsys):
    plain = self.ids(model, capsys, docs)
    shutil.copy(docs, tmp_path / 'trec.jsonl')
    rows = [json.loads(line) for line in docs.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'docs.parquet')
    group = Group('q', 'x', tuple(DOCS))
    store.write('test', [group], tmp_path / 'prepared')
    for address in (f'jsonl:{docs}', f'parquet:{tmp_path}/docs.parquet', tmp_path / 'docs.parquet',
                    f'trec:{tmp_path}?docs=trec.jsonl', f'tfds:{tmp_path}/prepared'):  # fmt: skip
      assert self.ids(model, capsys, address) == plain

  def test_rows_of_queries_are_documents_too(self, model, docs, tmp_path, capsys):
    rows = [json.loads(line) for line in docs.read_text().splitlines()]
    file = tmp_path / 'rows.jsonl'
    file.write_text(''.join(
      json.dumps(row | {'query_id': q, 'query': q, 'label': 1}) + '\n' for q in 'ab' for row in rows
    ))  # fmt: skip
    assert self.ids(model, capsys, f'jsonl:{file}') == self.ids(model, capsys, docs)
    flag = {'query': 'x', 'pos': ['one text'], 'neg': ['another text']}
    file.write_text(json.dumps(flag) + '\n')
    assert len(self.ids(model, capsys, f'jsonl:{file}')) == 2

  def test_bm25_chooses_the_documents_if_a_depth_says_so(self, model, docs, capsys):
    found = self.ids(model, capsys, docs, '--depth', 1)
    assert list(found) == ['d1']  # the only one with 'list' and 'names'
    assert len(self.ids(model, capsys, docs, '--depth', 0)) == len(DOCS)

  def test_of_many_documents_bm25_chooses_some_and_says_so(self, model, docs, capsys, monkeypatch):
    monkeypatch.setattr(rerank, 'RANK_ALL', 4)
    monkeypatch.setattr(rerank, 'FIRST_STAGE', 2)
    rerank.main(['--model', str(model), '--query', QUERY, '--docs', str(docs)])
    out, err = capsys.readouterr()
    assert '(BM25: 1)' in out and '2 documents, the best of 5 by BM25,' in err

  def test_a_query_without_a_hit_says_what_to_do(self, model, docs):
    message = refused('--model', model, '--query', 'zzz', '--docs', docs, '--depth', 3)
    assert "none of the 5 documents shares a word with 'zzz'" in message and '--depth 0' in message


class TestMistakes:
  @pytest.mark.parametrize(
    'row, field',
    [('{"doc_id": "x"', 'row'), ('{"doc_id": "x", "title": "t"}', 'summary'), ('7', 'row'),
     ('{"doc_id": "d1", "title": "t", "summary": "again"}', 'doc_id')],
  )  # fmt: skip
  def test_a_bad_document_is_named_by_file_line_and_field(self, model, docs, row, field):
    with docs.open('a') as f:
      f.write(row + '\n')
    message = refused('--model', model, '--query', QUERY, '--docs', docs)
    assert message.startswith(f'{docs}:6:{field}: ')

  def test_a_missing_documents_file_is_named(self, model, tmp_path):
    file = tmp_path / 'none.jsonl'
    assert str(file) in refused('--model', model, '--query', QUERY, '--docs', file)

  def test_an_empty_documents_file_is_an_error(self, model, tmp_path):
    (tmp_path / 'empty.jsonl').write_text('')
    refused('--model', model, '--query', QUERY, '--docs', tmp_path / 'empty.jsonl')

  def test_a_missing_model_folder_is_named(self, docs, tmp_path):
    message = refused('--model', tmp_path / 'none', '--query', QUERY, '--docs', docs)
    assert str(tmp_path / 'none') in message and 'exported model folder' in message

  @pytest.mark.parametrize('query', ['', ' \t'])
  def test_an_empty_query_is_refused_before_anything_is_read(self, query, tmp_path):
    assert '--query' in refused('--model', tmp_path / 'none', '--query', query)

  def test_a_negative_top_is_refused(self, tmp_path):
    assert '--top' in refused('--model', tmp_path, '--query', QUERY, '--top', -1)

  def test_a_model_with_a_wrong_tensor_names_it(self, model, docs, tmp_path):
    folder = shutil.copytree(model, tmp_path / 'model')
    tensors = load_file(folder / 'model.safetensors')
    del tensors['bert.encoder.layer.0.output.dense.bias']
    save_file(tensors, folder / 'model.safetensors')
    message = refused('--model', folder, '--query', QUERY, '--docs', docs)
    assert str(folder) in message and 'bert.encoder.layer.0.output.dense.bias' in message
