#!/usr/bin/env bash
# Makes .venv if it is not there, installs the exact versions of launch/requirements.lock, and runs the whole chain on
# the built-in data: tokenizer, pretraining, instruction tuning, answers, report. More words are settings:
#   bash launch/quickstart.sh PRETRAIN_STEPS=200 FOLDER=runs/short
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
export TF_CPP_MIN_LOG_LEVEL=3
.venv/bin/jinstr quickstart "$@"
