#!/usr/bin/env bash
# GPU nodes under SLURM. On a login node it submits itself; in the job it starts one task per GPU or
# per node, which jax.distributed finds through SLURM's variables.
#
#   RUN_ID=mistral-1 NODES=4 GPUS=8 launch/slurm.sh [--dry-run] [--stages=cpt,sft]
#
# RUN_ID    required; the same id goes on with the same run
# CONFIG    configs/disranker_mistral_7b.py
# WORKDIR   runs/$RUN_ID; on a file system that all nodes see
# NODES     1
# GPUS      8 in a node
# TASKS     gpu: one process for each GPU; node: one for each node
# RETRIES   20 times back into the queue, at the time limit or after a failure
# Partition, account and time limit: sbatch's own SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.
# `python` must be one with the program: activate its environment before submitting.
#
# First lines of slurm-RUN_ID.log, from task 0 (`cpt (2/9): goes on` after a requeue):
#   prepare (1/9): begins
set -euo pipefail
# SLURM runs a copy of this file from elsewhere, but in the directory of submission.
[ -n "${SLURM_JOB_ID:-}" ] || cd "$(dirname "$0")/.."
source launch/common.sh

: "${RUN_ID:?set RUN_ID to a name for this run; the same name resumes it}"
check_run_id
CONFIG=${CONFIG:-configs/disranker_mistral_7b.py}
WORKDIR=${WORKDIR:-runs/$RUN_ID}
NODES=${NODES:-1} GPUS=${GPUS:-8} RETRIES=${RETRIES:-20}
# JAX's default three quarters of the memory leave the rest unused. O1 turns on XLA's overlap of
# communication with computation, which several GPUs live from.
environment=(DISRANKER_DISTRIBUTED=1 XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 JAX_OPTIMIZATION_LEVEL=O1)
case ${TASKS:=gpu} in
  gpu) tasks=$GPUS ;;
  # Under SLURM JAX gives each process one GPU unless it is told which.
  node) tasks=1 environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1)))") ;;
  *) die "TASKS=$TASKS: must be gpu or node" ;;
esac
# Unbound, or SLURM ties a task to a single core, which cannot feed a GPU.
program=(srun --ntasks-per-node="$tasks" --cpu-bind=none --kill-on-bad-exit=1 env "${environment[@]}"
  python -m disranker_jax.main --config "$CONFIG" --workdir "$WORKDIR"
  ${FLAGS[@]+"${FLAGS[@]}"})

if [ -z "${SLURM_JOB_ID:-}" ]; then
  export RUN_ID CONFIG WORKDIR NODES GPUS TASKS RETRIES
  # The batch shell hears of the time limit three minutes before, in time to save.
  run sbatch --job-name="$RUN_ID" --nodes="$NODES" --ntasks-per-node="$tasks" \
    --gpus-per-node="$GPUS" --exclusive --requeue --signal=B:TERM@180 --open-mode=append \
    --output="slurm-$RUN_ID.log" launch/slurm.sh ${FLAGS[@]+"${FLAGS[@]}"}
  [ -z "$DRY_RUN" ] || run "${program[@]}"
  exit
fi

if [ -n "$DRY_RUN" ]; then
  run "${program[@]}"
  exit
fi
stopped=
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # to the tasks, which save and end
"${program[@]}" &
status=0
wait $! || status=$?
if [ -n "$stopped" ]; then # the signal ended the wait, not the tasks
  wait || true
  status=143
fi
case $status in 0 | 2) exit "$status" ;; esac # finished, or an error that no retry cures
if [ "${SLURM_RESTART_COUNT:-0}" -lt "$RETRIES" ]; then
  say "$RUN_ID: ended with status $status, goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
