#!/usr/bin/env bash
# Prepares a TPU VM: mounts the bucket and installs the program. tpu_pod.sh calls it on every
# worker. Steps that are already done are skipped.
#
#   launch/tpu_setup.sh BUCKET MOUNT
set -euo pipefail
bucket=$1 mount=$2
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive

if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  # A new VM upgrades its packages for a while and holds the lock.
  sudo apt-get -o DPkg::Lock::Timeout=600 -q update
  sudo apt-get -o DPkg::Lock::Timeout=600 -q install -y fuse gcsfuse
fi
if ! mountpoint -q "$mount"; then
  sudo mkdir -p "$mount"
  sudo chown "$(id -u)" "$mount"
  # No metadata cache: files written by one host must be visible to the others at once.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$bucket" "$mount"
fi

# The image's Python is too old; constraints.txt was made on 3.11.
export PATH="$HOME/.local/bin:$PATH"
command -v uv > /dev/null || python3 -m pip install --user --quiet uv
[ -d .venv ] || uv venv --quiet --python 3.11 .venv
uv pip install --quiet -c constraints.txt -e '.[tpu]'
