#!/usr/bin/env bash
# Runs on GPU nodes under SLURM. On a login node it submits itself. In the job it starts one task
# per GPU or per node; jax.distributed reads SLURM's variables.
#
#   RUN_ID=mistral-1 NODES=4 GPUS=8 launch/slurm.sh [--dry-run] [--stages=cpt,sft]
#
# RUN_ID    required; the same id resumes the same run
# CONFIG    configs/disranker_mistral_7b.py
# WORKDIR   runs/$RUN_ID; on a file system shared by all nodes
# NODES     1
# GPUS      8 per node
# TASKS     gpu: one process per GPU; node: one process per node
# RETRIES   20 requeues, at the time limit, after a preemption or after a failure
# Partition, account and time limit: sbatch's own SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.
# Activate the environment with the program before submitting: the job runs `python`.
#
# To stop: `scancel --batch --signal=TERM JOB` waits until all is saved; `scancel JOB` waits for
# SLURM's KillWait.
#
# slurm-RUN_ID.log starts with `prepare (1/9)` of task 0; after a requeue follows the interrupted
# stage, such as `cpt (2/9)`.
set -euo pipefail
# SLURM runs a copy of this file, with the directory of submission as the working directory.
[ -n "${SLURM_JOB_ID:-}" ] || cd "$(dirname "$0")/.."
source launch/common.sh

: "${RUN_ID:?set RUN_ID to a name for this run; the same name resumes it}"
check_run_id
CONFIG=${CONFIG:-configs/disranker_mistral_7b.py}
check_config
WORKDIR=${WORKDIR:-runs/$RUN_ID}
NODES=${NODES:-1} GPUS=${GPUS:-8} RETRIES=${RETRIES:-20}
check_numbers NODES GPUS RETRIES
# By default JAX uses three quarters of a GPU's memory; nothing else needs the rest here. O1 makes
# XLA overlap communication with computation, which several GPUs need to be fast.
# A requeued job keeps its id: it is the same call, which deletes nothing twice for --rerun.
environment=(DISRANKER_DISTRIBUTED=1 "DISRANKER_CALL=${SLURM_JOB_ID:-}"
  XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 JAX_OPTIMIZATION_LEVEL=O1)
case ${TASKS:=gpu} in
  gpu) tasks=$GPUS ;;
  # Under SLURM JAX gives each process one GPU unless this variable lists them.
  node) tasks=1 environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1)))") ;;
  *) die "TASKS=$TASKS: must be gpu or node" ;;
esac
# Not bound to cores: SLURM would give each task a single core, which cannot feed a GPU.
program=(srun --ntasks-per-node="$tasks" --cpu-bind=none --kill-on-bad-exit=1 env "${environment[@]}"
  bash launch/run.sh --config "$CONFIG" --workdir "$WORKDIR"
  ${FLAGS[@]+"${FLAGS[@]}"})

if [ -z "${SLURM_JOB_ID:-}" ]; then
  export RUN_ID CONFIG WORKDIR NODES GPUS TASKS RETRIES
  # The batch shell gets SIGUSR1 three minutes before the time limit, in time to save. SIGTERM is
  # what a cancellation sends.
  run sbatch --job-name="$RUN_ID" --nodes="$NODES" --ntasks-per-node="$tasks" \
    --gpus-per-node="$GPUS" --exclusive --requeue --signal=B:USR1@180 --open-mode=append \
    --output="slurm-$RUN_ID.log" launch/slurm.sh ${FLAGS[@]+"${FLAGS[@]}"}
  [ -z "$DRY_RUN" ] || run "${program[@]}"
  exit
fi

if [ -n "$DRY_RUN" ]; then
  run "${program[@]}"
  exit
fi
ended= # by what: the time limit comes, or SLURM or the user ends the job
# To the tasks, which save and exit; refused where SLURM has ended them itself.
trap 'ended=limit; scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1
trap 'ended=${ended:-cancel}; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
"${program[@]}" &
tasks=$!
status=0
wait "$tasks" || status=$?
while [ -n "$ended" ] && kill -0 "$tasks" 2> /dev/null; do # a signal ends the wait, not the tasks
  wait "$tasks" || true
done
[ -z "$ended" ] || status=143
# Finished, or an error that the user must fix. A preempted job is requeued by SLURM, a cancelled one
# is not. Where preemption has a GraceTime, SLURM first sends SIGTERM to the tasks alone: status 143.
case $ended:$status in :0 | :2 | cancel:*) exit "$status" ;; esac
if [ "${SLURM_RESTART_COUNT:-0}" -lt "$RETRIES" ]; then
  say "$RUN_ID: ended with status $status, requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
