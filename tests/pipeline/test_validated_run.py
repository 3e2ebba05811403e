"""A run whose training queries are many enough for validation: what is held out, and exported."""

import helpers
import pytest

import disranker_jax
from disranker_jax.data import holdout, store
from disranker_jax.evaluation import runs
from disranker_jax.pipeline import runner
from disranker_jax.stages import fused_rows, held_out
from disranker_jax.training import train

STAGES = ('prepare', 'student_sft', 'distill', 'evaluate', 'export', 'report')
QUERIES = 240


def rows(kind: str, queries: int) -> list[dict]:
  """Queries that differ; a document with the query's word is better."""
  made = []
  for i in range(queries):
    word = helpers.WORDS[i % len(helpers.WORDS)]
    query = f'how to open {kind if kind == "test" else "training"} {word} {i}'
    for j in range(3):
      title = helpers.WORDS[(i + j) % len(helpers.WORDS)]
      row = {'query_id': f'{kind}{i}', 'query': query, 'doc_id': f'{kind}{i}-{j}', 'title': title}
      row |= {'summary': f'Opens a {title}, page {i}.', 'rank': 3 - j}
      made.append(row if kind == 'candidates' else row | {'label': 2 - j})
  return made


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """(workdir, the names of the queries that were learned by stage)."""
  folder, learned = tmp_path_factory.mktemp('validated'), {}
  data = {
    f'data__{kind}': f'jsonl:{helpers.write_jsonl(folder / f"{kind}.jsonl", rows(kind, count))}'
    for kind, count in (('judgements', QUERIES), ('candidates', QUERIES), ('test', 6))
  }
  scores = [
    {'query_id': r['query_id'], 'doc_id': r['doc_id'], 'score': len(r['title'])}
    for r in rows('candidates', QUERIES)
  ]
  teacher = f'jsonl:{helpers.write_jsonl(folder / "scores.jsonl", scores)}'
  config = helpers.config(
    **data, stages=STAGES, data__teachers=(teacher,), data__limit__judgements=0,
    data__limit__candidates=0, data__limit__test=0, distill__hard_label_weight=0.0,
    evaluate__models=('bm25', 'student_sft', 'student', 'fused'), evaluate__min_relevance=1,
    export__models=('best',), export__formats=(), student_sft__max_steps=40, distill__max_steps=20,
  )  # fmt: skip
  late = train.Report.late

  def noted(self, step, names, metrics):
    learned.setdefault(self._label, set()).update(names)
    return late(self, step, names, metrics)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.Report, 'late', noted)
    patch.setattr(fused_rows, 'FEWEST', 10)
    runner.run(config, folder / 'run')
  return folder / 'run', learned


def results(workdir, stage: str) -> dict:
  return helpers.load(workdir / stage / 'manifest.json')['results']


def test_no_stage_learns_a_query_by_which_the_students_are_compared(done):
  workdir, learned = done
  found = [results(workdir, stage)['validation'] for stage in ('student_sft', 'distill')]
  assert found[0]['made_of'] == found[1]['made_of'] and found[0]['labelled'] >= 10
  rows_of = [results(workdir, stage)['rows'] for stage in ('student_sft', 'distill')]
  assert rows_of == [QUERIES - found[0]['labelled']] * 2  # the same texts are judged and scored
  texts = {
    group.query_id: holdout.normalized(group.query)
    for kind in ('judgements', 'candidates')
    for group in store.open(kind, workdir / 'data' / kind)
  }
  seen = {stage: {texts[name] for name in names} for stage, names in learned.items()}
  held_out_texts = {text for text in texts.values() if held_out.salted(text) < 0.05}
  assert len(held_out_texts) == found[0]['labelled']
  for stage in ('student_sft', 'distill'):
    assert len(seen[stage]) > 30 and not seen[stage] & held_out_texts


def test_the_student_that_ranks_them_better_is_exported_and_named(done):
  workdir, _ = done
  ndcg = {
    row: results(workdir, stage)['validation']['ndcg@5']
    for row, stage in (('student_sft', 'student_sft'), ('student', 'distill'))
  }
  best = max(reversed(ndcg), key=ndcg.get)
  exported = results(workdir, 'export')
  assert exported['best']['row'] == best and list(exported['served']) == [best]
  assert exported['folders'] == {'student': 'export/student'}
  title = {'student_sft': 'student, labels only', 'student': 'distilled student'}[best]
  card = (workdir / 'export/student/README.md').read_text()
  report = (workdir / 'report/report.md').read_text()
  assert f'It is the {title}: nDCG@5 {ndcg[best]:.3f} on' in card
  assert f'the folder export/student has "{title}": nDCG@5 {ndcg[best]:.3f} on' in report
  # Its scores are those of the row.
  ranked = runs.read_run(workdir / 'evaluate' / f'{best}.run')
  [group, *_] = store.open('test', workdir / 'data' / 'test')
  ranker = disranker_jax.load(workdir / 'export/student')
  scores = ranker.score([(group.query, f'{d.title} : {d.summary}') for d in group.docs])
  wanted = [ranked[group.query_id][d.doc_id] for d in group.docs]
  assert list(scores) == pytest.approx(wanted, abs=1e-4)


def test_the_weight_of_the_fused_row_is_exported_and_gives_its_scores(done):
  workdir, _ = done
  row = results(workdir, 'evaluate')['fused']
  how, best = row['fusion'], results(workdir, 'export')['best']['row']
  assert how['row'] == best and how['signal'] == 'ranks' and row['against'] == ['bm25', best]
  # The first stage's order is the reverse of the labels', and the weight is not of the test.
  assert how['queries'] == results(workdir, 'distill')['validation']['labelled']
  assert how['fused'] >= max(how['model'], how['first_stage'])
  ranker = disranker_jax.load(workdir / 'export/student')
  assert ranker.fusion.to_dict() == {k: v for k, v in how.items() if k != 'row'}
  ranked = runs.read_run(workdir / 'evaluate' / 'fused.run')
  [group, *_] = store.open('test', workdir / 'data' / 'test')
  texts = [f'{d.title} : {d.summary}' for d in group.docs]
  found = ranker.rank(group.query, texts, first_ranks=[d.rank for d in group.docs])
  wanted = ranked[group.query_id]
  assert {group.docs[i].doc_id: score for i, score in found} == pytest.approx(wanted, abs=1e-3)
  card = (workdir / 'export/student/README.md').read_text()
  assert '## With the first stage' in card and f'on {how["queries"]} held-out' in card
  report = (workdir / 'report/report.md').read_text()
  assert f'weight {how["weight"]:g} of the model' in report


def test_the_logs_and_the_page_have_the_values(done):
  workdir, _ = done
  for stage in ('student_sft', 'distill'):
    lines = (workdir / stage / 'metrics.jsonl').read_text().splitlines()
    last = helpers.json.loads(lines[-1])
    found = results(workdir, stage)['validation']
    assert last['validation/ndcg@5'] == found['ndcg@5'] and last['validation/loss'] == found['loss']
  assert 'held-out nDCG@5 from' in (workdir / 'report/index.html').read_text()
