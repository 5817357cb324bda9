#!/usr/bin/env bash
# Any command on the TPU of this host: bash launch/local_tpu.sh v6e pretrain gin_configs/model/1b.gin DATA=… RUN_DIR=…
# On a slice of several hosts it is started on all of them at once (launch/tpu.sh does that); JAX finds the others.
# Installs the TPU build of the locked JAX version beside the locked packages.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
chip=$1
shift
source launch/environment.sh
add_accelerator tpu libtpu
source launch/flags.sh
chip_flags "$chip"
cd - >/dev/null
export TF_CPP_MIN_LOG_LEVEL=3
exec "$repository/.venv/bin/jinstr" "$@"
