#!/usr/bin/env bash
# One machine, all its GPUs, data parallel: each holds the whole model and a part of the batch, which
# is what jax.pmap did. One process and a mesh with only a data axis; no other code.
#
#   launch/gpu_pmap.sh [--dry-run] [--stages=distill] [--config.distill.batch_rows=256]
#
# CONFIG    configs/own_data.py
# RUN_ID    the config's name
# WORKDIR   runs/$RUN_ID; the same one resumes
#
# A model that does not fit on one GPU is split over them instead:
#   CONFIG=configs/disranker_mistral_7b.py launch/gpu_pmap.sh \
#     --config.mesh.data=1 --config.mesh.fsdp=-1
#
# First lines of the log (`cpt (2/9): goes on` after an interruption):
#   prepare (1/9): begins
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

CONFIG=${CONFIG:-configs/own_data.py}
RUN_ID=${RUN_ID:-$(basename "$CONFIG" .py | tr _ -)}
check_run_id
WORKDIR=${WORKDIR:-runs/$RUN_ID}

# JAX takes three quarters of a GPU's memory unless told otherwise; nothing else needs the rest here.
run env XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" \
  python -m disranker_jax.main --config "$CONFIG" --workdir "$WORKDIR" \
  --config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.model=1 ${FLAGS[@]+"${FLAGS[@]}"}
