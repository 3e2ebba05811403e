#!/usr/bin/env bash
# GPU nodes on whatever cloud has them, by SkyPilot: a managed job that is started again elsewhere
# when a spot node is taken. The run id names the workdir, so that it resumes.
#
#   BUCKET=gs://my-bucket RUN_ID=mistral-1 launch/sky.sh [--dry-run] [--stages=cpt,sft]
#
# BUCKET        required, with gs://; mounted on every node as /bucket
# RUN_ID        required; the same id goes on with the same run
# CONFIG        configs/disranker_mistral_7b.py
# WORKDIR       /bucket/runs/$RUN_ID
# NODES         1
# ACCELERATOR   H100:8 in a node
# CAPACITY      spot; or on-demand
#
# First lines of `sky jobs logs`, of node 0 (`cpt (2/9): goes on` after a recovery):
#   prepare (1/9): begins
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

: "${BUCKET:?set BUCKET to the address of a bucket, such as gs://my-bucket}"
: "${RUN_ID:?set RUN_ID to a name for this run; the same name resumes it}"
check_run_id
# Checkpoints are finished by renaming a folder, which mounts of other stores do not do as a whole.
case $BUCKET in gs://?*) ;; *) die "BUCKET=$BUCKET: must be a gs:// address" ;; esac
CONFIG=${CONFIG:-configs/disranker_mistral_7b.py}
WORKDIR=${WORKDIR:-/bucket/runs/$RUN_ID}
case ${CAPACITY:=spot} in
  spot) capacity=--use-spot ;;
  on-demand) capacity=--no-use-spot ;;
  *) die "CAPACITY=$CAPACITY: must be spot or on-demand" ;;
esac

run sky jobs launch --yes --name "$RUN_ID" --num-nodes "${NODES:-1}" \
  --gpus "${ACCELERATOR:-H100:8}" "$capacity" --env BUCKET="$BUCKET" \
  --env FLAGS="$(words --config "$CONFIG" --workdir "$WORKDIR" ${FLAGS[@]+"${FLAGS[@]}"})" \
  launch/sky.yaml
