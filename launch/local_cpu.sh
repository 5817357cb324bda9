#!/usr/bin/env bash
# Any command on the CPU of this machine: bash launch/local_cpu.sh pretrain gin_configs/model/10m.gin DATA=… RUN_DIR=…
# JINSTR_DEVICES=8 splits the CPU into so many devices, to try out a mesh.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
(cd "$repository" && source launch/environment.sh)
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
if [ "${JINSTR_DEVICES:-1}" -gt 1 ]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$JINSTR_DEVICES"
fi
exec "$repository/.venv/bin/jinstr" "$@"
