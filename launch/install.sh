#!/usr/bin/env bash
# Makes .venv with jinstr and the exact versions of launch/requirements.lock. In a folder of launch/bundle.sh the packages
# come from wheels/, whose digests are checked first, and no network is used.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
.venv/bin/jinstr --help > /dev/null
echo "jinstr is installed: source $PWD/.venv/bin/activate"
