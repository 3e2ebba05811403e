"""What launchers do when slices are preempted, programs fail and signals come; no cloud, stubs."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess

import pytest
import yaml
from launching import GKE, REPO, SKY, SLURM, TPU

WAIT = [['', 'until SIGTERM']]


def pod(stubs, *args, **variables):
  return stubs.call('tpu_pod.sh', *args, **TPU | {'POLL_SECONDS': '0'} | variables)


def states(*names):
  return [[name, 0] for name in names]


def test_a_run_from_queue_to_deletion(stubs):
  stubs.answer(
    list=states('', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE', 'ACTIVE'),
    describe=states('CREATING', 'READY'),
  )
  done = pod(stubs)
  assert done.returncode == 0, done.stderr
  assert [k for k in stubs.kinds() if k != 'git'] == [
    'list', 'create', 'list', 'list', 'list', 'describe', 'list', 'describe',
    'scp', 'setup', 'run', 'delete',
  ]  # fmt: skip
  assert 'run-1: WAITING_FOR_RESOURCES' in done.stderr


@pytest.mark.parametrize(
  'after', [(states('SUSPENDED'), []), (states('ACTIVE'), states('PREEMPTED'))]
)
def test_a_preempted_slice_is_made_again_and_resumes(stubs, after):
  listed, described = after
  stubs.answer(
    list=states('ACTIVE') + listed + states('SUSPENDING', '', 'ACTIVE'),
    describe=states('READY') + described + states('READY'),
    run=[['', 255], ['', 0]],
  )
  done = pod(stubs, '--stages=cpt')
  assert done.returncode == 0, done.stderr
  kinds = [k for k in stubs.kinds() if k not in ('list', 'describe', 'git')]
  once = ['scp', 'setup', 'run']
  assert kinds == [*once, 'delete', 'create', *once, 'delete']
  first, second = (argv for kind, argv in stubs.calls() if kind == 'run')
  assert first == second
  assert 'ended with status 255, 20 retries left' in done.stderr


def test_each_call_has_a_name_of_its_own(stubs):
  """By which the program tells a retry, which has the same name, from a new --rerun."""
  stubs.answer(list=states(*['ACTIVE'] * 2), describe=states(*['READY'] * 2))
  assert [pod(stubs, '--rerun=cpt').returncode for _ in range(2)] == [0, 0]
  names = [word for kind, argv in stubs.calls() if kind == 'run'
           for word in shlex.split(argv[-1]) if 'DISRANKER_CALL=' in word]  # fmt: skip
  assert len({*names}) == 2 and all(word.partition('=')[2] for word in names)


@pytest.mark.parametrize('stage', ['scp', 'setup', 'run'])
def test_retries_end(stubs, stage):
  stubs.answer(
    list=states(*['ACTIVE'] * 9), describe=states(*['READY'] * 9), **{stage: [['', 75]] * 9}
  )
  done = pod(stubs, RETRIES='2')
  assert done.returncode == 75
  assert stubs.kinds().count(stage) == 3
  assert 'delete' not in stubs.kinds()
  hint = next(x for x in done.stderr.splitlines() if x.startswith('gcloud'))
  assert shlex.split(hint)[3:6] == ['queued-resources', 'delete', 'run-1']


def test_an_error_to_mend_is_not_tried_again(stubs):
  stubs.answer(list=states('ACTIVE'), describe=states('READY'), run=[['', 2]])
  done = pod(stubs)
  assert done.returncode == 2
  assert stubs.kinds().count('run') == 1
  assert 'not finished (status 2)' in done.stderr


def test_a_slice_that_cannot_be_asked_for_is_not_asked_for_forever(stubs):
  stubs.answer(create=[['', 1]] * 9)
  done = pod(stubs, RETRIES='1')
  assert done.returncode == 1
  assert stubs.kinds().count('create') == 2
  assert 'run' not in stubs.kinds()


def test_a_silent_service_ends_the_wait(stubs):
  stubs.answer(list=[['', 1]] * 30)
  done = pod(stubs)
  assert done.returncode == 2
  assert 'gcloud does not report the state of run-1' in done.stderr
  assert 'create' not in stubs.kinds()


def test_the_code_is_packed_in_a_folder_of_its_own(stubs):
  stubs.answer(list=states('ACTIVE'), describe=states('READY'))
  shared = stubs.folder / 'shared'  # as /tmp is: others can make files here before
  shared.mkdir()
  victim = stubs.folder / 'victim'
  victim.write_text('mine')
  (shared / f'disranker_jax-{TPU["RUN_ID"]}.tar.gz').symlink_to(victim)
  assert pod(stubs, TMPDIR=str(shared)).returncode == 0
  archived = next(a for kind, a in stubs.calls() if kind == 'git' and a[0] == 'archive')
  [output] = [a.removeprefix('--output=') for a in archived if a.startswith('--output=')]
  folder = pathlib.Path(output).parent
  assert folder.parent == shared and not folder.exists()  # removed at the end
  assert victim.read_text() == 'mine'


# What `git` answers in this order: cat-file, diff.
@pytest.mark.parametrize('answers', [[['', 1]], [['', 0], ['', 1]]])
def test_a_config_that_is_not_committed_is_not_waited_for(stubs, answers):
  stubs.answer(git=answers)
  done = pod(stubs)
  assert done.returncode == 2 and {*stubs.kinds()} == {'git'}
  assert 'CONFIG=configs/disranker_mistral_7b.py: is not committed as it is' in done.stderr


def test_a_config_in_the_bucket_need_not_be_committed(stubs):
  stubs.answer(list=states('ACTIVE'), describe=states('READY'))
  assert pod(stubs, CONFIG='/bucket/mine.py').returncode == 0
  assert [argv[0] for kind, argv in stubs.calls() if kind == 'git'] == ['status', 'archive']


@pytest.mark.parametrize('changed', [' M disranker_jax/main.py', '?? new.py', ''])
def test_what_is_not_sent_is_said(stubs, changed):
  stubs.answer(
    list=states('ACTIVE'), describe=states('READY'), git=[['', 0], ['', 0], [changed, 0]]
  )
  assert ('not committed are not sent' in pod(stubs).stderr) == bool(changed)


@pytest.mark.parametrize('status', [0, 1])
def test_a_config_that_sky_would_not_copy_is_refused(stubs, status):
  stubs.answer(git=[['', status]])  # of check-ignore
  done = stubs.call('sky.sh', **SKY)
  assert ('is ignored by git' in done.stderr) == (status == 0)
  assert stubs.kinds() == (['git'] if status == 0 else ['git', 'sky'])


def test_a_kept_slice_is_not_deleted(stubs):
  stubs.answer(list=states('ACTIVE'), describe=states('READY'))
  assert pod(stubs, KEEP='1').returncode == 0
  assert 'delete' not in stubs.kinds()


@pytest.mark.parametrize('status', [0, 1, 2, 75])
def test_run_sh_hands_on_arguments_and_status(stubs, status):
  stubs.answer(python=[['', status]])
  done = stubs.call('run.sh', '--workdir', "/my 'own' run")
  assert done.returncode == status
  assert stubs.calls() == [['python', ['-m', 'disranker_jax.main', '--workdir', "/my 'own' run"]]]


@pytest.mark.parametrize(
  'status,handed_on', [(0, 0), (1, 75), (2, 2), (75, 75), (134, 134), (137, 75)]
)
def test_run_sh_gives_a_failure_a_status_that_is_retried(stubs, status, handed_on):
  stubs.answer(python=[['', status]])
  done = stubs.call('run.sh', FAILURES=str(stubs.folder / 'failures'))
  assert done.returncode == handed_on


def test_failures_that_are_retried_end(stubs):
  stubs.answer(python=[['', 1]] * 9)
  variables = {'FAILURES': str(stubs.folder / 'failures'), 'RETRIES': '2'}
  assert [stubs.call('run.sh', **variables).returncode for _ in range(4)] == [75, 75, 1, 1]


def test_stopped_is_not_finished(stubs):
  stubs.answer(python=WAIT)
  process = stubs.start('run.sh')
  assert process.stdout.readline() == 'ready\n'
  process.terminate()
  assert process.wait(30) == 128 + signal.SIGTERM
  assert stubs.kinds() == ['python', 'SIGTERM']


def test_what_an_earlier_call_left_is_ended_first(stubs):
  stubs.answer(python=WAIT)
  pid_file = stubs.folder / 'pid'
  lost = stubs.start('run.sh', PID_FILE=str(pid_file))
  assert lost.stdout.readline() == 'ready\n'
  lost.kill()  # the shell, as a lost connection may; the program goes on
  lost.wait()
  left = int((stubs.folder / 'waiting').read_text())
  os.kill(left, 0)
  done = stubs.call('run.sh', PID_FILE=str(pid_file))
  assert done.returncode == 0
  assert stubs.kinds() == ['python', 'SIGTERM', 'python']
  assert f'ending process {left}' in done.stderr


def test_another_program_with_the_old_number_is_left_alone(stubs):
  with subprocess.Popen(['sleep', '60']) as other:
    (stubs.folder / 'pid').write_text(str(other.pid))
    assert stubs.call('run.sh', PID_FILE=str(stubs.folder / 'pid')).returncode == 0
    assert other.poll() is None
    other.kill()


def in_job(stubs, **variables):
  return SLURM | {'SLURM_JOB_ID': '17', 'SLURM_RESTART_COUNT': '0'} | variables


def test_slurm_hands_its_variables_to_the_job(stubs):
  # sbatch copies the file; the job runs the copy, in the directory of submission.
  done = stubs.call('slurm.sh', "--config.teacher.template=it's", cwd=stubs.folder, **SLURM)
  assert done.returncode == 0, done.stderr
  (kind, argv), = stubs.calls()  # fmt: skip
  assert kind == 'sbatch'
  assert argv[-2:] == ['launch/slurm.sh', "--config.teacher.template=it's"]
  copied = shutil.copy(REPO / 'launch/slurm.sh', stubs.folder / 'slurm_script')
  done = stubs.call(copied, *argv[argv.index('launch/slurm.sh') + 1 :], cwd=REPO, **in_job(stubs))
  assert done.returncode == 0, done.stderr
  kind, argv = stubs.calls()[1]
  assert kind == 'srun'
  assert argv[-1] == "--config.teacher.template=it's" and 'DISRANKER_CALL=17' in argv
  assert argv[argv.index('--workdir') + 1] == 'runs/run-1'


@pytest.mark.parametrize(
  'status,restarts,requeued',
  [(0, 0, False), (2, 0, False), (1, 0, True), (75, 19, True), (1, 20, False), (143, 0, True)],
)
def test_slurm_requeues_what_another_try_may_cure(stubs, status, restarts, requeued):
  stubs.answer(srun=[['', status]])
  variables = in_job(stubs, SLURM_RESTART_COUNT=str(restarts))
  done = stubs.call('slurm.sh', cwd=REPO, **variables)
  assert done.returncode == status
  assert stubs.calls()[1:] == ([['scontrol', ['requeue', '17']]] if requeued else [])


def test_slurm_saves_at_the_time_limit_and_requeues(stubs):
  stubs.answer(srun=WAIT)
  process = stubs.start('slurm.sh', **in_job(stubs))
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGUSR1)
  assert process.wait(30) == 143
  assert stubs.calls()[1:] == [
    ['scancel', ['--signal=TERM', '17']], ['SIGTERM', []], ['scontrol', ['requeue', '17']],
  ]  # fmt: skip


@pytest.mark.parametrize('refused', [False, True])
def test_a_cancelled_slurm_job_saves_and_is_not_requeued(stubs, refused):
  if refused:  # SLURM has signalled the tasks itself
    scancel = stubs.bin / 'scancel'
    scancel.write_text(scancel.read_text().replace('exec ', '') + 'exit 1\n')
  stubs.answer(srun=WAIT)
  process = stubs.start('slurm.sh', **in_job(stubs))
  assert process.stdout.readline() == 'ready\n'
  process.terminate()
  assert process.wait(30) == 143
  assert stubs.kinds()[1:] == ['scancel', 'SIGTERM']


def test_slurm_waits_for_the_tasks_when_the_time_limit_comes_while_they_save(stubs):
  stubs.answer(srun=WAIT)
  scancel = stubs.bin / 'scancel'
  scancel.write_text('#!/bin/sh\necho signalled\n')  # the tasks take their time
  process = stubs.start('slurm.sh', **in_job(stubs))
  assert process.stdout.readline() == 'ready\n'
  for number in (signal.SIGUSR1, signal.SIGTERM):
    process.send_signal(number)
    assert process.stdout.readline() == 'signalled\n'
  assert stubs.kinds() == ['srun']
  os.kill(int((stubs.folder / 'waiting').read_text()), signal.SIGTERM)
  assert process.wait(30) == 143
  assert stubs.kinds()[1:] == ['SIGTERM', 'scontrol']


def test_a_sky_node_runs_the_program(stubs):
  task = yaml.safe_load((REPO / 'launch/sky.yaml').read_text())
  home = stubs.folder / 'home'
  (home / '.venv/bin').mkdir(parents=True)
  (home / '.venv/bin/activate').touch()
  (home / 'launch').symlink_to(REPO / 'launch')
  python = stubs.bin / 'python'
  names = ('COORDINATOR', 'PROCESSES', 'PROCESS', 'CALL')
  shown = ' '.join(f'"$DISRANKER_{name}"' for name in names)
  python.write_text(python.read_text().replace('"$@"', f'{shown} "$@"'))
  words = ['--workdir', "/bucket/it's mine"]
  env = stubs.environment(
    SKYPILOT_NODE_IPS='10.0.0.1\n10.0.0.2', SKYPILOT_NUM_NODES='2', SKYPILOT_NODE_RANK='1',
    FLAGS=shlex.join(words), CACHE=f'{home}/runs/run-1/jax_cache', RETRIES='1',
    SKYPILOT_TASK_ID='sky-managed-1_0',
  )  # fmt: skip
  stubs.answer(python=[['', 0], ['', 1], ['', 1]])
  ends = [
    subprocess.run(['bash', '-c', task['run']], env=env, cwd=home, timeout=60).returncode
    for _ in range(3)
  ]
  (_, argv), *_ = stubs.calls()
  given = ['10.0.0.1:8476', '2', '1', 'sky-managed-1_0']
  assert argv == [*given, '-m', 'disranker_jax.main', *words]
  assert ends == [0, 75, 1] and 75 in task['resources']['job_recovery']['recover_on_exit_codes']


def test_gke_applies_what_it_prints(stubs):
  shown = stubs.dry_run('gke.sh')
  kubectl = stubs.bin / 'kubectl'
  kubectl.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" > {stubs.folder}/args; cat\n')
  done = stubs.call('gke.sh', **GKE)
  assert (stubs.folder / 'args').read_text() == 'apply -f -\n'
  assert '# kubectl apply -f -\n' + done.stdout == shown


def test_a_call_is_noted_word_for_word(stubs):
  """The stubs that the other tests rest on."""
  odd = ['a b', "it's", '', '$x', 'é']
  subprocess.run(['sky', *odd], env=stubs.environment(), check=True, executable=stubs.bin / 'sky')
  assert json.loads((stubs.folder / 'calls').read_text()) == ['sky', odd]
