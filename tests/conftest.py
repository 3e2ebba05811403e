"""Settings shared by all tests."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import re
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path

import compiled
import hypothesis
import pytest
from absl import flags
from jax import config

flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which pytest never parses.
config.update('jax_numpy_rank_promotion', 'raise')
# Tests compile many small programs and run each a few times.
config.update('jax_disable_most_optimizations', True)

TESTS = Path(__file__).parent
COMPILED = TESTS.parent / '.make' / 'compiled'

# Compiling takes most of the time of the tests. All of them, the commands that they start and the
# next `make test` need the same programs; `make clean` deletes these.
CACHE = {
  'jax_compilation_cache_dir': str(compiled.folder(COMPILED)),
  'jax_persistent_cache_min_compile_time_secs': 0.0,
  'jax_persistent_cache_min_entry_size_bytes': -1,
}
for name, value in CACHE.items():
  if name.upper() not in os.environ:
    os.environ[name.upper()] = str(value)
    config.update(name, value)

# The tests that `--check` leaves out, those that take longest first.
HEAVY = (
  'pipeline/*',
  'test_sharding.py',
  'test_processes.py',
  'test_reliability.py',
  'launch/*',
  'test_plan*.py',
  'test_opening.py',
  'test_bench_*.py',
  'test_no_backend.py',
  'test_llm_ranker.py',
  'test_llm_rank.py',
  'test_attention*.py',
  'test_network.py',
  'test_hf*.py',
  'test_hostile_*.py',
  'test_train.py',
  'test_validation.py',
  'test_held_out.py',
  'exporting/*',
  'test_decoder.py',
  'test_decoder_parity.py',
  'test_gemma.py',
  'test_modernbert*.py',
  'test_modules.py',
  'serve/test_command.py',
  'serve/test_bench.py',
  'test_api.py',
  'test_fuse.py',
  'test_online.py',
  'test_losses_peers.py',
  'test_python_docs.py',
  'test_systems.py',
  'test_seeds.py',
  'test_rerank.py',
  'test_rerankers.py',
  'test_control_tokens.py',
  'test_rerank_run.py',
  'test_irds.py',
  'test_tiny.py',
  'test_encoder.py',
  'test_eight_bits.py',
  'test_families.py',
  'test_tokenising.py',
  'test_prepare_command.py',
  'test_gguf.py',
  'test_gguf_families.py',
  'test_pool.py',
  'test_generate.py',
  'test_align*.py',
  'test_refresh.py',
  'test_beams*.py',
  'test_contracts.py',
  'test_label_logits.py',
  'test_shared_collections.py',
  'generative/test_generative_run.py',
  'generative/test_memorise.py',
  'serve/test_page_rewriter.py',
  'rewriting/test_rewriting_run.py',
  'rewriting/test_embedder.py',
  'rewriting/test_rewrite_plan.py',
  'rewriting/test_rollouts.py',
  'rewriting/test_collapse.py',
  'rewriting/test_rewrite_stage.py',
  'rewriting/test_policy_sampling.py',
)
# `make test-more` has these: whole runs, processes and benches in rarer cases than those of
# `make test`, and model types that differ little from one that is tested there.
MORE = (
  'exporting/test_relatives.py::*electra*',
  'exporting/test_relatives.py::*modernbert-local*',
  'exporting/test_relatives.py::*xlm-roberta*',
  'exporting/test_relatives.py::test_both_backends*',
  'exporting/test_relatives.py::test_every_reader*-roberta*',
  'exporting/test_relatives.py::test_every_reader*[[]roberta*',
  'exporting/test_relatives.py::test_every_reader*distilbert*',
  'generative/test_generative_processes.py::*labels*',
  'generative/test_generative_run.py::test_a_collection_of_one_document*',
  'generative/test_generative_run.py::test_the_best_pages_of_a_row*',
  'generative/test_generative_run.py::test_training_queries_keep*',
  'generative/test_generative_run.py::test_two_devices*',
  'generative/test_generative_run.py::test_without_the_body*',
  'pipeline/test_again.py::TestAgain::test_other_rows*',
  'pipeline/test_again.py::TestAgain::test_settings_without_effect*',
  'pipeline/test_again.py::TestReuse::*',
  'pipeline/test_again.py::TestSeeds::*',
  'pipeline/test_generated.py::test_killed_while_it_writes*',
  'pipeline/test_generated.py::test_without_any_judged_query*',
  'pipeline/test_hidden.py::*',
  'pipeline/test_llm2vec.py::*',
  'pipeline/test_pipeline.py::TestCommandLine::test_a_bad_row*',
  'pipeline/test_pipeline.py::TestOwnData::test_jsonl_files_go_through_every_stage',
  'pipeline/test_pipeline.py::TestStopped::*kills0*',
  'pipeline/test_pipeline.py::TestStopped::test_ctrl_c*',
  'pipeline/test_prompting.py::*',
  'pipeline/test_prompting_processes.py::*',
  'pipeline/test_ready_teacher.py::test_it_scores_as_sentence_transformers*',
  'pipeline/test_retrain.py::*',
  'pipeline/test_scoring_in_8_bits.py::*',
  'pipeline/test_validated_run.py::*',
  'rewriting/test_rollouts.py::test_micro_batches*',
  'rewriting/test_rollouts.py::test_more_rows*',
  'rewriting/test_rollouts.py::test_resume_is_bitwise*changes1*',
  'rewriting/test_rollouts.py::test_several_devices_and_processes*',
  'serve/test_bench.py::*',
  'serve/test_command.py::TestMistakes::*',
  'serve/test_command.py::test_sigterm*',
  'test_api.py::test_scores_are_the_same_where_jax_has_64_bits',
  'test_attention.py::test_networks_with_splash*',
  'test_attention_devices.py::test_splash_under_pmap*',
  'test_beams.py::test_a_collection_of_one_page*',
  'test_beams.py::test_enough_beams*[[]1[]]',
  'test_beams.py::test_enough_beams*[[]3[]]',
  'test_beams.py::test_few_beams*gemma?',
  'test_beams.py::test_few_beams*llama*',
  'test_beams.py::test_few_beams*ministral3*',
  'test_beams.py::test_few_beams*phi3*',
  'test_beams.py::test_few_beams*qwen3*',
  'test_beams.py::test_few_beams*smollm3*',
  'test_beams.py::test_lora_counts*',
  'test_beams.py::test_neither_the_window*',
  'test_beams_devices.py::*',
  'test_bench_accelerator.py::TestTable::*',
  'test_bench_commands.py::*',
  'test_bench_index.py::*',
  'test_bench_profile.py::*',
  'test_bench_rewrite.py::*',
  'test_bench_work.py::test_torch_has_our_loss*',
  'test_cli.py::TestErrors::test_a_workdir_below_a_file_is_one_line*',
  'test_decoder.py::test_remat_and_unrolled*gemma3*',
  'test_decoder.py::test_remat_and_unrolled*llama*',
  'test_decoder_parity.py::test_greedy_text*',
  'test_eight_bits.py::test_a_mesh_scores*',
  'test_eight_bits.py::test_a_network_in_8_bits*electra*',
  'test_eight_bits.py::test_a_network_in_8_bits*gemma*',
  'test_eight_bits.py::test_a_network_in_8_bits*ministral*',
  'test_eight_bits.py::test_a_network_in_8_bits*modernbert*',
  'test_eight_bits.py::test_a_network_in_8_bits*phi3*',
  'test_eight_bits.py::test_a_network_in_8_bits*roberta*',
  'test_eight_bits.py::test_a_network_in_8_bits*smollm3*',
  'test_eight_bits.py::test_text_from_a_cache*',
  'test_encoder.py::test_packed_rows_equal_separate_rows*electra*',
  'test_encoder.py::test_packed_rows_equal_separate_rows*roberta*',
  'test_families.py::test_a_stage_trains_it*',
  'test_generate.py::test_greedy_with_cache*gemma?',
  'test_generate.py::test_greedy_with_cache*llama*',
  'test_generate.py::test_greedy_with_cache*ministral*',
  'test_generate.py::test_greedy_with_cache*phi3*',
  'test_generate.py::test_greedy_with_cache*qwen*',
  'test_generate.py::test_greedy_with_cache*smollm3*',
  'test_generate.py::test_with_a_shared_prefix*gemma3*',
  'test_generate.py::test_with_a_shared_prefix*ministral*',
  'test_gguf.py::test_the_capital_of_france_is_paris',
  'test_gguf.py::test_tokenizer_agrees*',
  'test_hf.py::*electra*',
  'test_hf.py::*ministral*',
  'test_hf.py::*phi3*',
  'test_hf.py::*smollm3*',
  'test_llm_ranker.py::test_a_query_gets_what_it_gets_alone*listwise_*',
  'test_losses_peers.py::*',
  'test_modernbert.py::*irregular*',
  'test_modernbert.py::test_kernels_and_ways*mean*',
  'test_modernbert.py::test_lower_precisions*',
  'test_modernbert.py::test_texts_packed*mean*',
  'test_modernbert.py::test_transformers_loads*mean*',
  'test_modules.py::test_other_poolings*',
  'test_modules.py::test_poolings_of_earlier_versions*',
  'test_no_backend.py::test_data_and_onnx*',
  'test_no_backend.py::test_the_parent_of_a_bench*',
  'test_no_backend.py::test_the_parent_of_an_ablation*',
  'test_online.py::TestPromises::*',
  'test_plan_machine.py::test_no_estimate*',
  'test_plan_machine.py::test_several_gpus*',
  'test_prepare_command.py::test_a_killed_command*',
  'test_processes.py::TestAskedToStop::*',
  'test_processes.py::TestBroken::*',
  'test_processes.py::TestValidation::*',
  'test_python_docs.py::test_packages*',
  'test_python_docs.py::test_same_in_another_process*',
  'test_refresh.py::test_a_resumed_run*[[]5-*',
  'test_rerank_run.py::TestScores::test_on_the_devices*',
  'test_rerankers.py::test_older_names*',
  'test_rerankers.py::test_raw_scores_are_those_of_sentence_transformers*electra*',
  'test_rerankers.py::test_raw_scores_are_those_of_sentence_transformers*llama*',
  'test_tokenising.py::test_workers_end*',
  'test_train.py::test_a_policy_learns*',
  'test_train.py::test_killed_at_any_moment*',
)
# Why an optional package may be missing, for the reasons of skipped tests.
WHY_MISSING = {
  'torch': 'the extra test installs it on Python 3.11 only; elsewhere: pip install torch',
  'sentence_transformers': 'the extra test installs it on Python 3.11 only',
  'libtpu': 'the TPU compiler, which make test-all installs',
}


# The same examples in every run: a check of a change fails because of the change. Random ones are
# for those who look for faults: `--hypothesis-profile=random`.
hypothesis.settings.register_profile('same', derandomize=True)
hypothesis.settings.register_profile('random')
hypothesis.settings.load_profile('same')


def pytest_addoption(parser):
  parser.addoption('--check', action='store_true', help='leave out the tests of HEAVY')


def pytest_configure(config):
  if not hasattr(config, 'workerinput'):  # the workers of pytest-xdist come later
    compiled.delete_former(COMPILED)
  for pattern in HEAVY:
    if not any(TESTS.glob(pattern)):
      raise pytest.UsageError(f'{__file__}: HEAVY lists {pattern!r}, which matches no file')
  for pattern in MORE:
    if not (TESTS / pattern.partition('::')[0]).is_file():
      raise pytest.UsageError(f'{__file__}: MORE lists {pattern!r}, whose file does not exist')


def pytest_ignore_collect(collection_path, config):
  if config.getoption('check') and rank(collection_path) < len(HEAVY):
    return True


@pytest.fixture(scope='session')
def model(tmp_path_factory):
  """The folder of an exported student of random weights, with scores far apart."""
  import jax
  import numpy as np

  from disranker_jax.models import hf, tiny
  from disranker_jax.models.network import from_hf

  base = tmp_path_factory.mktemp('base') / 'tiny-encoder'
  tiny.make('tiny-encoder', base)
  network = from_hf(base)
  variables = jax.tree.map(
    lambda x: np.asarray(x) * (8 if x.std() > 0 else 1), network.init(jax.random.key(3))
  )
  folder = tmp_path_factory.mktemp('export') / 'student'
  extra = {'disranker_jax': {'max_len': 64, 'max_query_len': 16}}
  hf.save(folder, network, variables, tokenizer_folder=base, extra_config=extra)
  return folder


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by markers
def pytest_collection_modifyitems(items):
  """Marks the tests of MORE, and starts the longest files first.

  A worker that got a long file last would end alone with it.
  """
  for item in items:
    name = f'{item.path.relative_to(TESTS).as_posix()}::{item.nodeid.partition("::")[2]}'
    if any(fnmatchcase(name, pattern) for pattern in MORE) and 'slow' not in item.keywords:
      item.add_marker(pytest.mark.more)
      item.add_marker(pytest.mark.slow)
  items.sort(key=lambda item: rank(item.path))


def rank(path: Path) -> int:
  """The index in HEAVY of the first pattern that matches a test file, len(HEAVY) if none does."""
  name = path.relative_to(TESTS).as_posix()
  return next((i for i, pattern in enumerate(HEAVY) if fnmatch(name, pattern)), len(HEAVY))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  """Adds to the reason of a skipped test how to get the package that it needs."""
  report = yield
  if report.skipped and isinstance(report.longrepr, tuple):
    file, line, reason = report.longrepr
    if match := re.search(r"could not import '(\w+)", reason):
      how = WHY_MISSING.get(match[1], "pip install -e '.[test]'")
      report.longrepr = (file, line, f'{reason} ({how})')
  return report


@pytest.fixture
def pipe():
  """Makes the path of a pipe that holds some bytes (less than 64 KiB) and has no writer left."""
  ends = []

  def make(data: bytes) -> str:
    read, write = os.pipe()
    ends.append(read)
    os.write(write, data)
    os.close(write)
    return f'/dev/fd/{read}'

  yield make
  for end in ends:
    os.close(end)
