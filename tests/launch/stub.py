"""Stands for gcloud, git, srun, python and the like in tests of launchers.

    stub.py NAME ARGUMENTS

Adds [kind, arguments] to $STUB/calls, then answers as $STUB/answers.json says: {kind: [[what it
prints, its exit status], ...]}, one a call, and ['', 0] when there are no more. For gcloud the kind
is the verb; for ssh, what is done there: 'setup' or 'run'. A status of 'until SIGTERM' says
'ready', waits for the signal, notes it as a call of kind 'SIGTERM' and exits 0, as the program
does.
"""

import json
import os
import pathlib
import signal
import sys

folder = pathlib.Path(os.environ['STUB'])
VERBS = ('list', 'describe', 'create', 'delete', 'scp', 'ssh')


def note(kind, argv):
  with (folder / 'calls').open('a') as f:
    f.write(json.dumps([kind, argv]) + '\n')


def main():
  name, argv = sys.argv[1], sys.argv[2:]
  kind = next((v for v in VERBS if name == 'gcloud' and v in argv), name)
  if kind == 'ssh':
    kind = 'run' if any('launch/run.sh' in a for a in argv) else 'setup'
  before = (folder / 'calls').read_text() if (folder / 'calls').exists() else ''
  turn = sum(json.loads(line)[0] == kind for line in before.splitlines())
  note(kind, argv)
  if name == 'scancel':
    os.kill(int((folder / 'waiting').read_text()), signal.SIGTERM)
  answers = json.loads((folder / 'answers.json').read_text()).get(kind, [])
  text, status = answers[turn] if turn < len(answers) else ('', 0)
  if status == 'until SIGTERM':
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    (folder / 'waiting').write_text(str(os.getpid()))
    print('ready', flush=True)
    signal.sigwait({signal.SIGTERM})
    note('SIGTERM', [])
    status = 0
  if text:
    print(text)
  sys.exit(status)


main()
