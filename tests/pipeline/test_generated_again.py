"""Which changes leave the texts that `generate` has written, in the same workdir or another one."""

import shutil

import helpers
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_generated import config, copying, records, shards

from disranker_jax import config as configs
from disranker_jax.config.settings import flatten
from disranker_jax.data import query_filters
from disranker_jax.data.records import Document
from disranker_jax.devices import sharding
from disranker_jax.errors import UserError
from disranker_jax.models import tree, weights
from disranker_jax.pipeline import inputs, manifest, runner
from disranker_jax.stages import generate, writer

STAGES = ['prepare', 'generate', 'score']


@pytest.fixture
def asked(monkeypatch) -> list[int]:
  """The batches that the writer was given, as numbers of documents."""
  found: list[int] = []

  def counted(network, variables, prompts, **options):
    found.append(len(prompts))
    return copying(network, variables, prompts, **options)

  monkeypatch.setattr(writer, 'generate', counted)
  return found


@pytest.fixture
def run(tmp_path, asked):
  """(config, workdir) of a run with generated queries and their scores."""
  c, workdir = config(tmp_path), tmp_path / 'run'
  runner.run(c, workdir, stages=STAGES)
  asked.clear()
  return c, workdir


def write_test(folder, label: int = 0, query: str = '') -> None:
  """The test with another label of its first row, or another text of its first query."""
  rows = helpers.own_rows('test')
  rows[0]['label'] = label or rows[0]['label']
  first = [row for row in rows if row['query_id'] == rows[0]['query_id']]
  for row in first if query else ():
    row['query'] = query
  helpers.write_jsonl(folder / 'test.jsonl', rows)


def test_another_label_of_the_test_writes_and_scores_nothing_again(run, asked, tmp_path, capsys):
  c, workdir = run
  wanted = shards(workdir)
  write_test(tmp_path, label=2)
  message = helpers.refused(c, workdir, stages=STAGES)
  assert (
    '--rerun=prepare (also deletes and repeats score; the texts of generate stay), or keep it: '
    f'give another --workdir, and --reuse={workdir} to' in message
  )
  capsys.readouterr()
  runner.run(c, tmp_path / 'other', stages=STAGES, reuse=[workdir])
  said = capsys.readouterr().err
  assert f'generate: the same as in {workdir}' in said and 'generate: done before' in said
  assert f'score: the same as in {workdir}' in said
  runner.run(c, workdir, stages=STAGES, rerun=['prepare'])
  said = capsys.readouterr().err
  assert f'--rerun in {workdir}: deletes prepare, score; the texts of generate stay\n' in said
  assert shards(workdir) == shards(tmp_path / 'other') == wanted and not asked


def test_other_test_queries_filter_the_texts_that_are_there(run, asked, tmp_path, capsys):
  c, workdir = run
  [stolen, *_] = records(workdir)
  write_test(tmp_path, query=stolen.query)
  other = tmp_path / 'other'
  runner.run(c, other, stages=STAGES, reuse=[workdir])
  said = capsys.readouterr().err
  assert f'generate: the same as in {workdir}' in said
  assert 'generate (2/3): continues' in said and 'score: the same as' not in said
  counts = helpers.load(other / 'generate' / 'manifest.json')['results']['left_out']
  assert counts[query_filters.TEST] == 1 and not asked
  assert {group.query for group in records(workdir)} - {g.query for g in records(other)} == {
    stolen.query
  }


def test_texts_of_a_run_that_has_not_finished_are_taken(run, asked, tmp_path, capsys):
  c, workdir = run
  (workdir / 'generate' / 'manifest.json').unlink()
  broken = workdir / 'generate' / 'shards' / '000000004-000000008.parquet'
  wanted, groups = shards(workdir), records(workdir)
  broken.write_bytes(broken.read_bytes()[:-1])
  before = shards(workdir)
  other = tmp_path / 'other'
  runner.run(c, other, stages=STAGES[:2], reuse=[workdir])
  assert f'the texts from 24 documents are those of {workdir}' in capsys.readouterr().err
  assert asked == [4] and shards(other) == wanted and repr(records(other)) == repr(groups)
  assert shards(workdir) == before


def test_texts_of_another_writer_are_written_again(run, asked, tmp_path, capsys):
  c, workdir = run
  c.teacher.layers = (1,)
  runner.run(c, tmp_path / 'other', stages=STAGES[:2], reuse=[workdir])
  said = capsys.readouterr().err
  assert asked == [4] * 6 and f'prepare: the same as in {workdir}' in said
  assert f'generate: the same as in {workdir}' not in said and 'the texts from' not in said


def test_it_needs_the_test_before_a_text_is_written(run, tmp_path):
  c, workdir = run
  message = helpers.refused(c, tmp_path / 'other', stages=['generate'])
  assert 'stage generate needs prepare' in message and '--stages=prepare,generate' in message
  before = helpers.snapshot(workdir)
  for stage in ('generate', 'score'):  # prepare would be deleted
    message = helpers.refused(c, workdir, stages=[stage], rerun=['prepare'])
    assert f'stage {stage} needs prepare' in message
  assert helpers.snapshot(workdir) == before


# Another value of each key of a teacher that results depend on.
OTHERS = {
  'seed': 7, 'layers': (1,), 'precision': 'bfloat16', 'param_dtype': 'bfloat16',
  'bidirectional': True, 'pooling': 'mean', 'lora_rank': 8, 'lora_alpha': 8.0, 'max_len': 300,
  'max_query_len': 9, 'row_len': 512, 'scorer': 'score_head', 'ready': True, 'input': 'pair',
  'template': '{summary} {query}', 'zero_shot_template': '{summary} {query}',
}  # fmt: skip
WRITERS = {
  'teacher': {},
  'another model': {'generate__model': 'tiny-decoder'},
  'teacher after cpt': {
    'stages': ('prepare', 'cpt', 'generate', 'score', 'distill', 'evaluate'),
    'cpt__predict': 'query', 'teacher__lora_rank': 4,
  },
}  # fmt: skip


def opened(c):
  """The network, the prompts and the untrained parameters of a writer; None if it is refused."""
  try:
    model = writer.open_writer(c)
  except UserError:
    return None
  pretrained = tree.flatten(model.pretrained(c.seed, sharding.make_mesh(c.mesh)))
  arrays = {path: np.asarray(value) for path, value in pretrained.items()}
  return (
    model.network,
    writer.prompts(model, [Document('d', 'a title', 'and a text')]),
    {path: (array.dtype, array.tobytes()) for path, array in arrays.items()},
  )


def made_from(c, workdir) -> tuple[dict, dict]:
  wanted = manifest.settings_of(c, generate.STAGE.sections(c))
  return wanted, inputs.outside(c, generate.STAGE, workdir)


@pytest.mark.parametrize('name', WRITERS)
def test_a_teachers_settings_repeat_the_texts_if_they_change_the_writer(name, tmp_path):
  known = flatten(configs.sections('disranker')['teacher'])
  others = OTHERS | {'model': str(tmp_path / 'other')}
  assert others.keys() == {key for key, setting in known.items() if setting.affects_results}
  folder = shutil.copytree(weights.find('tiny-decoder'), tmp_path / 'other')
  tensors = load_file(folder / 'model.safetensors')
  save_file({k: 2 * v for k, v in tensors.items()}, folder / 'model.safetensors')
  usual = {'teacher__precision': 'float32', **WRITERS[name]}
  before = config(tmp_path, **usual)
  read = opened(before), made_from(before, tmp_path)
  assert read[0]
  stale = {}
  for key, value in others.items():
    c = config(tmp_path, **usual | {f'teacher__{key}': value})
    stale[key] = made_from(c, tmp_path) != read[1]
    assert stale[key] == (opened(c) != read[0]), key
  assert stale['precision'] and not stale['max_len'] and not stale['template']
  assert stale['model'] == (name != 'another model') and stale['lora_rank'] == ('cpt' in name)


def test_what_a_teacher_starts_from_is_no_input_of_another_writer(tmp_path):
  c = config(tmp_path, teacher__init_from=str(tmp_path / 'gone'))
  assert inputs.outside(c, generate.STAGE, tmp_path)['teacher.init_from'] is None
  c.generate.model = 'tiny-decoder'
  assert inputs.outside(c, generate.STAGE, tmp_path).keys() == {'data.documents'}
