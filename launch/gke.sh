#!/usr/bin/env bash
# Runs on a TPU slice on GKE: fills in launch/gke_jobset.yaml and applies it with kubectl. The
# JobSet restarts all pods when one is lost. The run id names the JobSet and the workdir, so the run
# resumes.
#
#   BUCKET=my-bucket RUN_ID=mistral-1 IMAGE=us-docker.pkg.dev/my-project/disranker/tpu:1 \
#     launch/gke.sh [--dry-run] --config.data.clicks='jsonl:/bucket/data/clicks-*.jsonl.gz'
#
# BUCKET            required; mounted in every pod as /bucket
# RUN_ID            required; the same id resumes the same run
# IMAGE             required; built with launch/Dockerfile
# CONFIG            configs/disranker_mistral_7b.py
# WORKDIR           /bucket/runs/$RUN_ID
# ACCELERATOR       tpu-v5-lite-podslice; tpu-v6e-slice, tpu-v5p-slice
# TOPOLOGY          8x8
# CHIPS_PER_HOST    4
# CAPACITY          spot; on-demand; or reserved, with RESERVATION=name
# SERVICE_ACCOUNT   disranker: the Kubernetes service account with access to the bucket
# RETRIES           20 restarts of the JobSet
#
# --dry-run prints the manifest. launch/README.md describes how to create the cluster, node pool,
# JobSet controller and service account. `kubectl logs` of the pod with index 0 starts with
# `prepare (1/9)`; after a restart it starts with the interrupted stage, such as `cpt (2/9)`.
# shellcheck disable=SC2034 # fill() reads variables by name
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

: "${BUCKET:?set BUCKET to the name of a bucket in the region of the cluster, without gs://}"
: "${RUN_ID:?set RUN_ID to a name for this run; the same name resumes it}"
: "${IMAGE:?set IMAGE to a container image built with launch/Dockerfile}"
check_run_id
CONFIG=${CONFIG:-configs/disranker_mistral_7b.py}
check_config
WORKDIR=${WORKDIR:-/bucket/runs/$RUN_ID}
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
TOPOLOGY=${TOPOLOGY:-8x8}
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-disranker}
RETRIES=${RETRIES:-20}
case $TOPOLOGY in
  '' | *[!0-9x]* | x* | *x | *xx*) die "TOPOLOGY=$TOPOLOGY: must be like 8x8 or 2x2x4" ;;
esac
check_names BUCKET IMAGE ACCELERATOR SERVICE_ACCOUNT
check_numbers CHIPS_PER_HOST RETRIES
[ "$CHIPS_PER_HOST" -gt 0 ] || die "CHIPS_PER_HOST=0: must be at least 1"
HOSTS=$((${TOPOLOGY//x/*} / CHIPS_PER_HOST))
[ "$HOSTS" -gt 0 ] || die "TOPOLOGY=$TOPOLOGY has fewer than CHIPS_PER_HOST=$CHIPS_PER_HOST chips"
case ${CAPACITY:=spot} in
  spot) NODE_LABEL=cloud.google.com/gke-spot NODE_VALUE=true ;;
  on-demand) NODE_LABEL=cloud.google.com/gke-provisioning NODE_VALUE=standard ;;
  reserved)
    NODE_LABEL=cloud.google.com/reservation-name
    NODE_VALUE=${RESERVATION:?set RESERVATION to the name of the reservation}
    check_names RESERVATION
    ;;
  *) die "CAPACITY=$CAPACITY: must be spot, on-demand or reserved" ;;
esac

# Prints words as a JSON list, which is valid YAML. $ is doubled because Kubernetes expands $(NAME).
json() {
  local word comma=
  for word in "$@"; do
    case $word in *[[:cntrl:]]*) die "$(words "$word"): has a control character" ;; esac
    word=$(printf %s "$word" | sed 's/[\\"]/\\&/g; s/\$/$$/g')
    printf '%s"%s"' "$comma" "$word"
    comma=', '
  done
}
CACHE=$(json "$WORKDIR/jax_cache")
ARGS="[$(json --config "$CONFIG" --workdir "$WORKDIR" ${FLAGS[@]+"${FLAGS[@]}"})]"

fill() {
  local name text
  text=$(cat launch/gke_jobset.yaml)
  for name in ACCELERATOR BUCKET CHIPS_PER_HOST HOSTS IMAGE NODE_LABEL NODE_VALUE RETRIES RUN_ID \
    SERVICE_ACCOUNT TOPOLOGY CACHE ARGS; do # the last two: their text may contain any ${NAME}
    text=${text//"\${$name}"/"${!name}"}
  done
  printf '%s\n' "$text"
}

[ -n "$DRY_RUN" ] || is_committed ||
  say "warning: CONFIG=$CONFIG is not committed as it is; has $IMAGE got it?"
if [ -n "$DRY_RUN" ]; then
  echo '# kubectl apply -f -'
  fill
else
  fill | kubectl apply -f -
fi
