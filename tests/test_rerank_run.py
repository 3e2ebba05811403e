"""`disranker rerank --run`: scores, depth, missing texts, resume, sources of every kind."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import disranker_jax
from disranker_jax import locks
from disranker_jax.commands import rerank, rerank_run
from disranker_jax.data import store
from disranker_jax.data.records import Document, Group
from disranker_jax.data.sources import read
from disranker_jax.errors import Stopped, UserError
from disranker_jax.evaluation import fusion, runs
from disranker_jax.evaluation.fusion import Fusion
from disranker_jax.rankers import exported

ROOT = Path(__file__).parents[1]
QUERIES = {'q2': 'names of files', 'q1': 'a list of names', 'q3': 'numbers'}
TEXTS = {f'd{i}': (f'title {i}', f'word {i} list of {i} names ' * i) for i in range(1, 7)}
FIRST = [
  ('q1', 'd1', 9.0), ('q2', 'd6', 8.0), ('q1', 'd3', 7.0), ('q1', 'd2', 8.0), ('q2', 'd1', 5.0),
  ('q1', 'd4', 1.0),
]  # fmt: skip


def write_run(file, rows=FIRST):
  file.write_text(''.join(f'{q} Q0 {d} 1 {score} bm25\n' for q, d, score in rows))
  return file


def write_jsonl(file, rows):
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return file


@pytest.fixture
def folder(tmp_path):
  """A TREC folder with QUERIES and TEXTS, and a run that is not sorted."""
  folder = tmp_path / 'mine'
  folder.mkdir()
  (folder / 'queries.tsv').write_text(''.join(f'{q}\t{text}\n' for q, text in QUERIES.items()))
  rows = [{'doc_id': d, 'title': t, 'summary': s} for d, (t, s) in TEXTS.items()]
  write_jsonl(folder / 'docs.jsonl', rows)
  write_run(folder / 'first.run')
  return folder


def rerun(model, folder, *more, out='out.run', source=''):
  rerank.main([
    '--model', str(model), '--run', str(folder / 'first.run'), '--out', str(folder / out),
    '--source', source or f'trec:{folder}', *map(str, more),
  ])  # fmt: skip
  return runs.read_run(folder / out)


def refused(model, folder, *more, **options):
  with pytest.raises(UserError) as caught:
    rerun(model, folder, *more, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def expected(model, query_id, docs):
  pairs = [(QUERIES[query_id], TEXTS[doc]) for doc in docs]
  return dict(zip(docs, disranker_jax.load(model).score(pairs).tolist(), strict=True))


class TestScores:
  def test_are_those_of_the_model_for_the_texts_of_the_source(self, model, folder):
    found = rerun(model, folder)
    assert list(found) == ['q1', 'q2']  # the order of the run
    for query_id, docs in (('q1', ['d1', 'd2', 'd3', 'd4']), ('q2', ['d6', 'd1'])):
      assert found[query_id] == pytest.approx(expected(model, query_id, docs), abs=1e-4)
    assert np.std(list(found['q1'].values())) > 0.01

  def test_the_file_is_a_run_with_the_best_first(self, model, folder):
    rerun(model, folder)
    rows = [line.split() for line in (folder / 'out.run').read_text().splitlines()]
    assert all(row[1] == 'Q0' and row[5] == 'student' for row in rows)
    of_q1 = [row for row in rows if row[0] == 'q1']
    assert [int(row[3]) for row in of_q1] == [1, 2, 3, 4]
    scores = [float(row[4]) for row in of_q1]
    assert scores == sorted(scores, reverse=True)
    assert sorted(p.name for p in folder.iterdir() if 'out' in p.name) == ['out.run']

  def test_are_written_by_one_process_at_a_time(self, model, folder):
    with locks.beside(folder / 'out.run'):
      message = refused(model, folder)
    assert message.startswith(f'{folder}/out.run: another process is writing it')
    assert not list(folder.glob('*out.run*'))

  def test_replace_the_file_that_a_link_names(self, model, folder):
    (folder / 'there').mkdir()
    (folder / 'out.run').symlink_to(folder / 'there' / 'kept')
    assert rerun(model, folder) == rerun(model, folder, out='plain.run')
    assert (folder / 'out.run').is_symlink()
    assert [file.name for file in (folder / 'there').iterdir()] == ['kept']

  @pytest.mark.parametrize('devices', [1, 3])
  def test_on_the_devices_of_jax_are_the_same(self, model, folder, devices):
    flags = f'--xla_force_host_platform_device_count={devices}'
    command = [
      sys.executable, '-m', 'disranker_jax', 'rerank', '--model', model, '--backend',
      'jax', '--run', folder / 'first.run', '--source', f'trec:{folder}', '--out', folder / 'j.run',
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | {'XLA_FLAGS': flags}, check=True, cwd=ROOT)
    found = runs.read_run(folder / 'j.run')
    for query_id, scores in rerun(model, folder).items():
      assert found[query_id] == pytest.approx(scores, abs=1e-4)

  def test_are_fused_with_those_of_the_run(self, model, folder):
    alone, found = rerun(model, folder), rerun(model, folder, '--fuse', '.4')
    first = runs.read_run(folder / 'first.run')
    for query_id, scores in alone.items():
      wanted = fusion.convex(scores, first[query_id], 0.4)
      assert found[query_id] == pytest.approx(wanted, abs=1e-5)
    # Only what the model ranks is scaled; the rest stays behind in its order.
    found = rerun(model, folder, '--fuse', '.4', '--depth', '2')['q1']
    top = {doc: found[doc] for doc in ('d1', 'd2')}
    wanted = fusion.convex({doc: alone['q1'][doc] for doc in top}, {'d1': 9, 'd2': 8}, 0.4)
    assert top == pytest.approx(wanted, abs=1e-5) and list(found)[2:] == ['d3', 'd4']

  def test_are_fused_with_ranks_where_the_weight_is_for_ranks(self, model, folder, tmp_path):
    own = shutil.copytree(model, tmp_path / 'own')
    config = json.loads((own / 'config.json').read_text())
    config['disranker_jax']['fusion'] = Fusion(0.4, 'ranks', 24).to_dict()
    (own / 'config.json').write_text(json.dumps(config))
    found = rerun(own, folder, '--fuse')['q1']
    ranks = {'d1': 1 / 61, 'd2': 1 / 62, 'd3': 1 / 63, 'd4': 1 / 64}
    wanted = fusion.convex(rerun(model, folder)['q1'], ranks, 0.4)
    assert found == pytest.approx(wanted, abs=1e-5)

  def test_gzip_in_and_out(self, model, folder):
    plain = rerun(model, folder)
    first = folder / 'first.run'
    first.write_bytes(gzip.compress(first.read_bytes()))
    assert rerun(model, folder, out='out.run.gz') == plain
    assert gzip.decompress((folder / 'out.run.gz').read_bytes())


class TestDepth:
  def test_the_rest_stays_behind_in_the_order_of_the_first_stage(self, model, folder):
    found = rerun(model, folder, '--depth', 2)['q1']
    ranked = sorted(found, key=found.get, reverse=True)
    scores = expected(model, 'q1', ['d1', 'd2'])
    assert ranked == [*sorted(scores, key=scores.get, reverse=True), 'd3', 'd4']
    assert {d: found[d] for d in ('d1', 'd2')} == pytest.approx(scores, abs=1e-4)
    assert len(set(found.values())) == 4  # no ties, which trec_eval would order by id


class TestMissing:
  def test_a_document_without_a_text_is_named_by_file_and_line(self, model, folder):
    write_run(folder / 'first.run', [*FIRST, ('q1', 'gone', 8.5), ('q2', 'gone', 1.0)])
    message = refused(model, folder)
    assert f'has no text for 2 documents of queries (first: {folder}/first.run:' in message
    assert "'gone'" in message and '--missing last' in message
    assert not (folder / 'out.run').exists() and not list(folder.glob('.*'))

  def test_last_leaves_it_behind_and_counts_it(self, model, folder, capsys):
    more = ('q1', 'gone', 8.5), ('q9', 'd1', 2.0), ('q9', 'd2', 3.0)
    write_run(folder / 'first.run', [*FIRST, *more])
    found = rerun(model, folder, '--missing', 'last')
    assert min(found['q1'], key=found['q1'].get) == 'gone' and len(found['q1']) == 5
    assert sorted(found['q9'], key=found['q9'].get, reverse=True) == ['d2', 'd1']
    said = capsys.readouterr().err
    assert 'no text for 1 query (first: ' in said and '1 document of queries' in said

  def test_a_source_of_other_queries_is_refused_whatever_missing_says(self, model, folder):
    write_run(folder / 'first.run', [('x', 'd1', 1.0)])
    assert 'none of its 1 query is in trec:' in refused(model, folder, '--missing', 'last')

  def test_queries_that_the_run_lacks_are_counted(self, model, folder, capsys):
    rerun(model, folder)
    assert 'lacks 1 query of trec:' in capsys.readouterr().err

  def test_a_document_with_two_texts_is_refused(self, model, folder):
    with (folder / 'docs.jsonl').open('a') as file:
      file.write(json.dumps({'doc_id': 'd1', 'title': 'other', 'summary': 's'}) + '\n')
    assert "doc_id 'd1' has two texts" in refused(model, folder)

  def test_a_document_twice_for_a_query_names_the_line(self, model, folder):
    write_run(folder / 'first.run', [*FIRST, ('q1', 'd1', 3.0)])
    assert f"{folder}/first.run:7:doc_id: 'd1' appears twice" in refused(model, folder)


class TestRowsAsSource:
  def rows(self, snippet=''):
    return [
      {'query_id': q, 'query': QUERIES[q], 'doc_id': d, 'title': TEXTS[d][0],
       'summary': TEXTS[d][1] + (snippet and f' {snippet} {q}'), 'label': 1}
      for q, d, _ in FIRST
    ]  # fmt: skip

  def test_jsonl_and_prepared_rows_give_what_the_folder_gives(self, model, folder):
    file = write_jsonl(folder / 'rows.jsonl', self.rows())
    store.write('test', read(f'jsonl:{file}', 'test'), folder / 'prepared')
    plain = rerun(model, folder)
    for address in (f'jsonl:{file}', f'tfds:{folder}/prepared'):
      assert rerun(model, folder, source=address) == plain

  def test_a_document_has_the_text_of_its_query(self, model, folder):
    file = write_jsonl(folder / 'rows.jsonl', self.rows('seen by'))
    found = rerun(model, folder, source=f'jsonl:{file}')
    text = {q: (TEXTS['d1'][0], f'{TEXTS["d1"][1]} seen by {q}') for q in ('q1', 'q2')}
    scores = disranker_jax.load(model).score([(QUERIES[q], text[q]) for q in ('q1', 'q2')])
    assert [found[q]['d1'] for q in ('q1', 'q2')] == pytest.approx(scores.tolist(), abs=1e-4)

  def test_the_text_of_another_query_is_taken_only_if_it_is_the_only_one(self, model, folder):
    write_run(folder / 'first.run', [*FIRST, ('q2', 'd4', 4.0)])
    file = write_jsonl(folder / 'rows.jsonl', self.rows('seen by'))
    found = rerun(model, folder, source=f'jsonl:{file}')
    [score] = disranker_jax.load(model).score(
      [(QUERIES['q2'], (TEXTS['d4'][0], TEXTS['d4'][1] + ' seen by q1'))]
    )
    assert found['q2']['d4'] == pytest.approx(score, abs=1e-4)
    write_run(folder / 'first.run', [*FIRST, ('q3', 'd1', 4.0)])
    extra = {'query_id': 'q3', 'query': 'numbers', 'doc_id': 'd2', 'title': 't', 'summary': 's'}
    write_jsonl(file, [*self.rows('seen by'), extra])
    assert "'d1'" in refused(model, folder, source=f'jsonl:{file}')


class TestResume:
  @pytest.fixture
  def small_parts(self, monkeypatch):
    monkeypatch.setattr(exported, 'PART_PAIRS', 2)

  @pytest.fixture
  def many(self, folder):
    rows = [(q, d, float(i)) for q in QUERIES for i, d in enumerate(TEXTS)]
    write_run(folder / 'first.run', rows)
    return folder

  def interrupt(self, monkeypatch, after, error):
    inner = exported.by_calls

    def parts(ranker, given):
      for i, row in enumerate(inner(ranker, given)):
        if i == after:
          raise error
        yield row

    monkeypatch.setattr(exported, 'by_calls', parts)
    return lambda: monkeypatch.setattr(exported, 'by_calls', inner)

  @pytest.mark.parametrize(
    ('error', 'status'), [(KeyboardInterrupt(), 130), (Stopped('x'), 0), (Stopped('x', True), 130)]
  )
  def test_the_same_command_continues_to_the_same_bytes(
    self, model, many, small_parts, monkeypatch, capsys, error, status
  ):
    rerun(model, many, out='whole.run')
    restore = self.interrupt(monkeypatch, 2, error)
    with pytest.raises(SystemExit) as ended:
      rerun(model, many)
    said = capsys.readouterr().err
    assert ended.value.code == status and '2 queries are kept in' in said
    assert 'the same command continues' in said and not (many / 'out.run').exists()
    restore()
    scored = []
    inner = exported.by_calls
    monkeypatch.setattr(
      exported, 'by_calls',
      lambda ranker, given: (scored.append(row) or row for row in inner(ranker, given)),
    )  # fmt: skip
    rerun(model, many)
    assert 'continues after 2 queries' in capsys.readouterr().err
    assert [group.query_id for _, group, _ in scored] == ['q3']
    assert (many / 'out.run').read_bytes() == (many / 'whole.run').read_bytes()
    assert not list(many.glob('.*'))

  def test_a_kill_before_the_first_part_is_no_broken_work(
    self, model, many, small_parts, monkeypatch, capsys
  ):
    whole = rerun(model, many, out='whole.run')
    restore = self.interrupt(monkeypatch, 0, KeyboardInterrupt())
    with monkeypatch.context() as patch:
      patch.setattr(rerank_run.Work, 'leave', lambda work: None)  # SIGKILL leaves all
      with pytest.raises(SystemExit):
        rerun(model, many)
    restore()
    assert (many / '.out.run.partial').exists()
    capsys.readouterr()
    assert rerun(model, many) == whole
    said = capsys.readouterr().err
    assert 'starts again' not in said and 'continues after' not in said

  @pytest.mark.parametrize('change', ['depth', 'run', 'source', 'torn', 'gone', 'note'])
  def test_other_inputs_start_again(self, model, many, small_parts, monkeypatch, capsys, change):
    restore = self.interrupt(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(SystemExit):
      rerun(model, many)
    restore()
    if change == 'run':
      write_run(many / 'first.run')
    if change == 'source':
      write_jsonl(many / 'docs.jsonl', [
        {'doc_id': d, 'title': t, 'summary': f'new {s}'} for d, (t, s) in TEXTS.items()
      ])  # fmt: skip
    if change == 'torn':
      (many / '.out.run.partial' / 'lines').write_text('q2 Q0')
    if change == 'gone':
      (many / '.out.run.partial' / 'lines').unlink()
    if change == 'note':
      (many / '.out.run.partial' / 'note.json').write_text('[]')
    found = rerun(model, many, *(['--depth', 3] if change == 'depth' else []))
    assert 'starts again' in capsys.readouterr().err
    assert found == rerun(model, many, *(['--depth', 3] if change == 'depth' else []), out='b.run')

  @pytest.mark.parametrize('out', ['out.run', 'out.run.gz'])
  @pytest.mark.parametrize('left', [('note.json',), ('note.json', 'lines'), ('lines',)])
  def test_a_kill_while_finished_work_is_removed_loses_nothing(
    self, model, many, small_parts, monkeypatch, out, left
  ):
    whole = rerun(model, many, out='whole.run')

    def killed(folder):
      for file in list(folder.iterdir()):
        if file.name not in left:
          file.unlink()
      raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(rerank_run.unfinished, 'remove', killed)
      with pytest.raises(SystemExit):
        rerun(model, many, out=out)
    assert runs.read_run(many / out) == whole
    assert rerun(model, many, out=out) == whole and not list(many.glob('.*'))

  def test_lines_after_the_last_finished_part_are_not_kept_twice(
    self, model, many, small_parts, monkeypatch
  ):
    restore = self.interrupt(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(SystemExit):
      rerun(model, many)
    restore()
    with (many / '.out.run.partial' / 'lines').open('a') as file:
      file.write('q3 Q0 d1 1 5 student\nq3 Q0 d')
    assert rerun(model, many) == rerun(model, many, out='b.run')

  @pytest.mark.parametrize('done', range(7))
  @pytest.mark.parametrize('pairs', [1, 2, 3, 5, 100])
  def test_parts_of_another_size_repeat_and_lose_no_query(self, done, pairs):
    queries = [rerank_run.Listed(Group(f'q{i}', 'q', (Document('d', 't', 's'),) * (i % 3)), ())
               for i in range(6)]  # fmt: skip

    class Joined(list):
      queries = 6

    parts = list(rerank_run.divided(Joined(queries), done, pairs))
    assert [listed for part in parts for listed in part] == queries[done:] and all(parts)


class TestFlags:
  @pytest.mark.parametrize(
    ('more', 'message'),
    [
      (['--query', 'x'], 'either --query TEXT or --run FILE'),
      (['--top', '3'], '--top: cannot be used with --run'),
      (['--docs', 'x'], '--docs: cannot be used with --run'),
      (['--json'], '--json: cannot be used with --run'),
      (['--depth', '-1'], '--depth: must be 0'),
    ],
  )  # fmt: skip
  def test_those_of_the_other_form_are_refused(self, model, folder, more, message):
    assert message in refused(model, folder, *more)

  def test_those_of_a_run_are_refused_with_a_query(self, model):
    with pytest.raises(UserError, match='--source: cannot be used with --query'):
      rerank.main(['--model', str(model), '--query', 'x', '--source', 'python_docs:'])

  def test_a_run_needs_source_and_out(self, model, folder):
    with pytest.raises(UserError, match='needs --source ADDRESS'):
      rerank.main(['--model', str(model), '--run', str(folder / 'first.run'), '--source', 'x:'])

  def test_files_that_cannot_be_used_are_named_before_anything_is_read(self, model, folder):
    source = 'jsonl:not-read'
    assert '--out' in refused(model, folder, out='first.run', source=source)
    assert 'its folder does not exist' in refused(model, folder, out='no/out.run', source=source)
    os.mkfifo(folder / 'pipe')
    assert 'is a pipe or a device' in refused(model, folder, out='pipe', source=source)
    assert 'is a folder' in refused(model, folder, out='.', source=source)
    assert 'exported model folder' in refused(folder, folder, source=source)
    assert 'is not an address' in refused(model, folder, source='nothing')
    (folder / 'first.run').unlink()
    assert '--run' in refused(model, folder, source=source)
