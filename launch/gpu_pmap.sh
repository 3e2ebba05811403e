#!/usr/bin/env bash
# Runs on all GPUs of one machine, data parallel: each GPU holds the whole model and a part of the
# batch, as with jax.pmap. One process, and a mesh with only a data axis.
#
#   launch/gpu_pmap.sh [--dry-run] [--stages=distill] [--config.distill.batch_rows=256]
#
# CONFIG    configs/own_data.py
# RUN_ID    the name of the config's file, as for disranker run
# WORKDIR   runs/$RUN_ID; the same workdir resumes the run
#
# To shard a model that does not fit on one GPU:
#   CONFIG=configs/disranker_mistral_7b.py launch/gpu_pmap.sh \
#     --config.mesh.data=1 --config.mesh.fsdp=-1
#
# The log starts with `prepare (1/9)`; after an interruption it starts with the interrupted stage,
# such as `cpt (2/9)`.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

CONFIG=${CONFIG:-configs/own_data.py}
NAME=$(basename "$CONFIG" .py) # as `disranker run` names it
if [ -n "${RUN_ID:-}" ]; then
  check_run_id
  NAME=$RUN_ID
fi
WORKDIR=${WORKDIR:-runs/$NAME}

# By default JAX uses three quarters of a GPU's memory; nothing else needs the rest here.
run env XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" \
  python -m disranker_jax.main --config "$CONFIG" --workdir "$WORKDIR" \
  --config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.model=1 ${FLAGS[@]+"${FLAGS[@]}"}
