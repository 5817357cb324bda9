#!/usr/bin/env bash
# Any command on the GPUs of this machine: bash launch/local_gpu.sh [--print] pretrain gin_configs/model/125m.gin DATA=… RUN_DIR=…
# Installs the CUDA build of the locked JAX version beside the locked packages. CUDA_VISIBLE_DEVICES chooses GPUs. --print
# shows what would run and does nothing.
set -euo pipefail
print=''
if [ "${1:-}" = --print ]; then print=yes; shift; fi
repository=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$print" ]; then (cd "$repository" && source launch/environment.sh && add_accelerator cuda12 jax_cuda12_plugin); fi
export TF_CPP_MIN_LOG_LEVEL=3
# What is published for H100 and H200; of other GPUs nothing is assumed.
source "$repository/launch/flags.sh"
names=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null) || names=''
gpus=$(wc -l <<< "$names")
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then gpus=$(wc -w <<< "${CUDA_VISIBLE_DEVICES//,/ }"); fi
gpus=$((gpus * ${JINSTR_PROCESSES:-1})) # on all hosts of launch/hosts.sh
case "$names" in
  *H100*) chip_flags h100 "$gpus" ;;
  *H200*) chip_flags h200 "$gpus" ;;
esac
if [ -n "$print" ]; then show_command "$repository/.venv/bin/jinstr" "$@"; exit; fi
exec "$repository/.venv/bin/jinstr" "$@"
