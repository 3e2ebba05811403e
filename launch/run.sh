#!/usr/bin/env bash
# What a host of a TPU slice, a GKE pod or a SkyPilot node runs: the pipeline, in such a way that a
# launcher can tell finished from stopped. Not called by hand.
#
#   launch/run.sh --config FILE --workdir DIR [flags]
#
# Exit status: 0 finished; 2 an error to mend, which no retry cures; 143 stopped by SIGTERM, when
# the program itself says 0 because it did as it was told; anything else: worth another try.
# PID_FILE=FILE  end what an earlier call left running: a lost connection does not stop the
#                program on the other side, and two programs cannot share the chips.
# GRACE=120      seconds that it gets to save
set -u

end_leftover() {
  local old
  old=$(cat "$PID_FILE" 2>/dev/null)
  # The number may by now be another program's.
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
[ -z "$stopped" ] || kill -TERM "$pid" # came before there was a pid
wait "$pid"
status=$?
if [ -n "$stopped" ]; then # the signal ended the wait, not the program
  wait "$pid"
  exit 143
fi
exit "$status"
