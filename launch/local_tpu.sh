#!/usr/bin/env bash
# Any command on the TPU of this host: bash launch/local_tpu.sh [--print] v6e pretrain gin_configs/model/1b.gin DATA=… RUN_DIR=…
# On a slice of several hosts it is started on all of them at once (launch/tpu.sh does that); JAX finds the others.
# Installs the TPU build of the locked JAX version beside the locked packages. --print shows what would run and does nothing.
set -euo pipefail
print=''
if [ "${1:-}" = --print ]; then print=yes; shift; fi
if [ $# -eq 0 ]; then echo "usage: bash launch/local_tpu.sh [--print] v4|v5e|v5p|v6e COMMAND WORDS…" >&2; exit 64; fi
chip=$1
shift
repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
if [ -z "$print" ]; then
  source launch/environment.sh
  add_accelerator tpu libtpu
fi
source launch/flags.sh
chip_flags "$chip"
cd - >/dev/null
export TF_CPP_MIN_LOG_LEVEL=3
if [ -n "$print" ]; then show_command "$repository/.venv/bin/jinstr" "$@"; exit; fi
exec "$repository/.venv/bin/jinstr" "$@"
