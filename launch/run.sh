#!/usr/bin/env bash
# Runs the pipeline on a host of a TPU slice, in a GKE pod, on a SkyPilot node or as a SLURM task,
# with an exit status that separates finished from stopped. The launchers call it; it is not meant to
# be run by hand.
#
#   launch/run.sh --config FILE --workdir DIR [flags]
#
# Exit status: 0 finished; 2 an error that the user must fix, so a retry does not help; 143 stopped
# by SIGTERM (the program itself exits with 0); anything else: retry.
#
# PID_FILE=FILE  first end the program that an earlier call left running: a lost connection does not
#                stop it, and two programs cannot share the chips
# GRACE=120      seconds for that program to save
# FAILURES=FILE  for a scheduler that retries only listed statuses, and these without a limit: other
#                failures are counted in this file, and RETRIES of them end with status 75
set -u

end_leftover() {
  local old
  old=$(cat "$PID_FILE" 2>/dev/null)
  # The process id may have been reused by another program.
  [ -n "$old" ] && grep -qs disranker_jax "/proc/$old/cmdline" || return 0
  echo "run.sh: ending process $old of an earlier call" >&2
  kill -TERM "$old" 2>/dev/null
  for _ in $(seq "${GRACE:-120}"); do
    kill -0 "$old" 2>/dev/null || return 0
    sleep 1
  done
  kill -KILL "$old" 2>/dev/null
}

[ -z "${PID_FILE:-}" ] || end_leftover
stopped=
pid=
trap 'stopped=1; [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null' TERM
python -m disranker_jax.main "$@" &
pid=$!
[ -z "${PID_FILE:-}" ] || echo "$pid" > "$PID_FILE"
[ -z "$stopped" ] || kill -TERM "$pid" # the signal came before there was a pid
wait "$pid"
status=$?
if [ -n "$stopped" ]; then # the signal ended the wait, not the program
  wait "$pid"
  exit 143
fi
# 134: XLA's abort when a peer is lost.
case $status in 0 | 2 | 75 | 134) exit "$status" ;; esac
if [ -n "${FAILURES:-}" ] && echo "$status" >> "$FAILURES"; then
  [ "$(wc -l < "$FAILURES")" -gt "${RETRIES:-20}" ] || exit 75
fi
exit "$status"
