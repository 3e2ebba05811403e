#!/usr/bin/env bash
# Runs on a Cloud TPU slice: requests it as a queued resource, waits, runs on all workers, and
# requests a new slice after a preemption. The run id names the slice and the workdir, so a new
# slice resumes.
#
#   PROJECT=my-project ZONE=us-west4-a BUCKET=my-bucket RUN_ID=mistral-1 \
#     launch/tpu_pod.sh [--dry-run] --config.data.clicks='jsonl:/bucket/data/clicks-*.jsonl.gz'
#
# PROJECT, ZONE, BUCKET   required; the bucket is mounted on every worker as /bucket
# RUN_ID                  required; the same id resumes the same run
# CONFIG                  configs/disranker_mistral_7b.py; in the last commit, which is what is sent
# WORKDIR                 /bucket/runs/$RUN_ID
# ACCELERATOR             v5litepod-64 (a v5e:8x8); v6e-64, v5p-128, ...
# RUNTIME                 the VM image for the accelerator
# CAPACITY                spot; or reserved, on-demand
# RETRIES                 20 more attempts after the first one fails
# KEEP                    1: do not delete the slice after the run has finished
# POLL_SECONDS            30
#
# Start it where it can run for days (tmux on a small VM). Ctrl-C stops this script, but not the
# program on the slice.
#
# After gcloud's output the log of worker 0 starts with `prepare (1/9)`; after a retry it starts
# with the interrupted stage, such as `cpt (2/9)`.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

: "${PROJECT:?set PROJECT to the cloud project}"
: "${ZONE:?set ZONE to a zone with the accelerator, such as us-west4-a}"
: "${BUCKET:?set BUCKET to the name of a bucket in that region, without gs://}"
: "${RUN_ID:?set RUN_ID to a name for this run; the same name resumes it}"
check_run_id
CONFIG=${CONFIG:-configs/disranker_mistral_7b.py}
check_config
[ -n "$DRY_RUN" ] || is_committed ||
  die "CONFIG=$CONFIG: is not committed as it is, and only the last commit is sent; commit it"
WORKDIR=${WORKDIR:-/bucket/runs/$RUN_ID}
ACCELERATOR=${ACCELERATOR:-v5litepod-64}
case $ACCELERATOR in
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) image=tpu-ubuntu2204-base ;;
esac
RUNTIME=${RUNTIME:-$image}
case ${CAPACITY:=spot} in
  spot | reserved) capacity=("--$CAPACITY") ;;
  on-demand) capacity=() ;;
  *) die "CAPACITY=$CAPACITY: must be spot, reserved or on-demand" ;;
esac
RETRIES=${RETRIES:-20}
POLL_SECONDS=${POLL_SECONDS:-30}
check_numbers RETRIES POLL_SECONDS

where=(--project="$PROJECT" --zone="$ZONE" --quiet)
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
# A folder that only this user can write: what lies in it is sent to the workers again at each retry.
scratch=/tmp/disranker.XXXXXX
if [ -z "$DRY_RUN" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
fi
code=$scratch/disranker_jax.tar.gz
# Compiled programs are cached, so a resumed run does not compile. They are native code, so the cache
# is the run's own. A retry is the same call, which deletes nothing twice for --rerun.
environment=(DISRANKER_DISTRIBUTED=1 DISRANKER_CALL="${scratch##*/}"
  JAX_COMPILATION_CACHE_DIR="$WORKDIR/jax_cache" PID_FILE=disranker.pid)
setup="mkdir -p disranker_jax && tar -xzf disranker_jax.tar.gz -C disranker_jax && \
$(words bash disranker_jax/launch/tpu_setup.sh "$BUCKET" /bucket)"
program="cd disranker_jax && . .venv/bin/activate && $(words env "${environment[@]}" \
  bash launch/run.sh --config "$CONFIG" --workdir "$WORKDIR" ${FLAGS[@]+"${FLAGS[@]}"})"

# Sets `state` to the state of the queued resource: empty if there is none, UNKNOWN if the service
# does not answer. An ACTIVE resource gets the state of its VM, which shows a preemption earlier.
look() {
  local listing=("${queue[@]}" list "${where[@]}" --filter="name~\"/$RUN_ID\$\""
    --format='value(state.state)')
  local describing=("${vm[@]}" describe "$RUN_ID" "${where[@]}" --format='value(state)')
  if [ -n "$DRY_RUN" ]; then
    run "${listing[@]}"
    state=${requested:+READY}
    [ -z "$state" ] || run "${describing[@]}"
    return
  fi
  state=$("${listing[@]}") || state=UNKNOWN
  [ "$state" != ACTIVE ] || state=$("${describing[@]}") || state=UNKNOWN
}

acquire() {
  local unanswered=0 requested=
  while look; [ "$state" != READY ]; do
    case $state in
      '')
        run "${queue[@]}" create "$RUN_ID" --node-id="$RUN_ID" "${where[@]}" \
          --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
          ${capacity[@]+"${capacity[@]}"} || return
        requested=1
        ;;
      SUSPENDED | FAILED | PREEMPTED | TERMINATED)
        run "${queue[@]}" delete "$RUN_ID" "${where[@]}" --force || return
        ;;
      UNKNOWN)
        unanswered=$((unanswered + 1))
        [ "$unanswered" -lt 10 ] || die "gcloud does not report the state of $RUN_ID; see above"
        ;;
      *) say "$RUN_ID: $state" ;; # in the queue, being created or being deleted
    esac
    wait_a_little
  done
}

wait_a_little() { [ -n "$DRY_RUN" ] || sleep "$POLL_SECONDS"; }

on_all() { run "${vm[@]}" ssh "$RUN_ID" "${where[@]}" --worker=all --command="$1"; }

attempt() {
  acquire || return
  run "${vm[@]}" scp "$code" "$RUN_ID:disranker_jax.tar.gz" "${where[@]}" --worker=all || return
  on_all "$setup" || return
  on_all "$program"
}

[ -n "$DRY_RUN" ] || [ -z "$(git status --porcelain)" ] ||
  say 'warning: changes and new files that are not committed are not sent'
run git archive --format=tar.gz --output="$code" HEAD
status=0
for try in $(seq 0 "$RETRIES"); do
  status=0
  attempt || status=$?
  case $status in 0 | 2) break ;; esac
  say "$RUN_ID: ended with status $status, $((RETRIES - try)) retries left"
  wait_a_little
done
if [ "$status" -ne 0 ]; then
  say "not finished (status $status). The slice may still be there and cost money; to delete it:"
  words "${queue[@]}" delete "$RUN_ID" "${where[@]}" --force >&2
  echo >&2
elif [ -z "${KEEP:-}" ]; then
  run "${queue[@]}" delete "$RUN_ID" "${where[@]}" --force
fi
exit "$status"
