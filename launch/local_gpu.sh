#!/usr/bin/env bash
# Any command on the GPUs of this machine: bash launch/local_gpu.sh pretrain gin_configs/model/125m.gin DATA=… RUN_DIR=…
# Installs the CUDA build of the locked JAX version beside the locked packages. CUDA_VISIBLE_DEVICES chooses GPUs.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
source launch/environment.sh
jax=$(grep '^jax==' launch/requirements.lock)
if ! .venv/bin/python -c 'import jax_cuda12_plugin' 2>/dev/null; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${jax/jax==/jax[cuda12]==}"
fi
cd - >/dev/null
export TF_CPP_MIN_LOG_LEVEL=3
# Memory is taken as it is needed by others too: evaluation and sampling run beside training.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
exec "$repository/.venv/bin/jinstr" "$@"
