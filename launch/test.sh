#!/usr/bin/env bash
# Makes .venv if it is not there, installs the exact versions of launch/requirements.lock, and runs the tests.
# More words go to pytest: bash launch/test.sh -m slow. Two processes share the files; -n 0 keeps it to one.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
export TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
.venv/bin/ruff check .
.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 15 "$@"
