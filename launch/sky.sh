#!/usr/bin/env bash
# Runs on GPU nodes of any cloud with SkyPilot: a managed job that restarts elsewhere when a spot
# node is preempted. The run id names the workdir, so the run resumes.
#
#   BUCKET=gs://my-bucket RUN_ID=mistral-1 launch/sky.sh [--dry-run] [--stages=cpt,sft]
#
# BUCKET        required, with gs://; mounted on every node as /bucket
# RUN_ID        required; the same id resumes the same run
# CONFIG        configs/disranker_mistral_7b.py
# WORKDIR       /bucket/runs/$RUN_ID
# NODES         1
# ACCELERATOR   H100:8 per node
# CAPACITY      spot; or on-demand
# RETRIES       20 failures of a node that are tried again; preemptions do not count
#
# `sky jobs logs` of node 0 starts with `prepare (1/9)`; after a recovery it starts with the
# interrupted stage, such as `cpt (2/9)`.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

: "${BUCKET:?set BUCKET to the address of a bucket, such as gs://my-bucket}"
: "${RUN_ID:?set RUN_ID to a name for this run; the same name resumes it}"
check_run_id
# A checkpoint is committed by renaming a folder. Mounts of other stores do not rename atomically.
case $BUCKET in gs://?*) ;; *) die "BUCKET=$BUCKET: must be a gs:// address" ;; esac
CONFIG=${CONFIG:-configs/disranker_mistral_7b.py}
check_config
# SkyPilot copies this folder without what git ignores.
if [ -z "$DRY_RUN" ] && git check-ignore -q "$CONFIG" 2> /dev/null; then
  die "CONFIG=$CONFIG: is ignored by git, so it is not copied to the nodes; move it to configs/"
fi
WORKDIR=${WORKDIR:-/bucket/runs/$RUN_ID}
RETRIES=${RETRIES:-20}
check_numbers RETRIES
case ${CAPACITY:=spot} in
  spot) capacity=--use-spot ;;
  on-demand) capacity=--no-use-spot ;;
  *) die "CAPACITY=$CAPACITY: must be spot or on-demand" ;;
esac

run sky jobs launch --yes --name "$RUN_ID" --num-nodes "${NODES:-1}" \
  --gpus "${ACCELERATOR:-H100:8}" "$capacity" --env BUCKET="$BUCKET" \
  --env CACHE="$WORKDIR/jax_cache" --env RETRIES="$RETRIES" \
  --env FLAGS="$(words --config "$CONFIG" --workdir "$WORKDIR" ${FLAGS[@]+"${FLAGS[@]}"})" \
  launch/sky.yaml
