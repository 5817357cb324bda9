#!/usr/bin/env bash
# Any command on the CPU of this machine: bash launch/local_cpu.sh [--print] pretrain gin_configs/model/10m.gin DATA=… RUN_DIR=…
# JINSTR_DEVICES=8 splits the CPU into so many devices, to try out a mesh. --print shows what would run and does nothing.
set -euo pipefail
print=''
if [ "${1:-}" = --print ]; then print=yes; shift; fi
repository=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$print" ]; then (cd "$repository" && source launch/environment.sh); fi
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
if [ "${JINSTR_DEVICES:-1}" -gt 1 ]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$JINSTR_DEVICES"
fi
source "$repository/launch/flags.sh"
if [ -n "$print" ]; then show_command "$repository/.venv/bin/jinstr" "$@"; exit; fi
exec "$repository/.venv/bin/jinstr" "$@"
