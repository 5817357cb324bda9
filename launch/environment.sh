# shellcheck shell=bash
# Sourced by the scripts of this folder from the repository root: a virtual environment in .venv with the exact
# versions of the lock file. Done again only when the lock file or setup.py changes.
find_python() {
  for name in python3.11 python3.12 python3.13 python3; do
    if command -v "$name" >/dev/null && "$name" -c \
      'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "jinstr needs Python 3.11, 3.12 or 3.13; none was found on PATH" >&2
  return 1
}
stamp=$(cat launch/requirements.lock setup.py | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/jinstr-stamp 2>/dev/null)" != "$stamp" ]; then
  python=$(find_python)
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r launch/requirements.lock
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
  echo "$stamp" > .venv/jinstr-stamp
fi
