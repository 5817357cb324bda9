# shellcheck shell=bash
# Sourced by the scripts of this folder from the repository root: a virtual environment in .venv with the exact
# versions of the lock file. Done again only when the lock file or setup.py changes. Where launch/bundle.sh put a folder
# wheels/, every pip takes packages from there alone.
find_python() { # VERSIONS…
  for name in "${@/#/python}" python3; do
    if command -v "$name" >/dev/null && "$name" -c \
      'import sys; raise SystemExit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' "$@" 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "jinstr needs Python $*; none was found on PATH" >&2
  return 1
}
add_accelerator() { # EXTRA MODULE: the build of the locked JAX version for an accelerator, beside the locked packages
  if .venv/bin/python -c "import $2" 2>/dev/null; then return; fi
  if [ -d wheels ] && ! compgen -G "wheels/$2-*.whl" >/dev/null; then
    echo "this bundle has no packages for $1; they are in one made by launch/bundle.sh --with=$1" >&2
    return 69
  fi
  local jax
  jax=$(grep '^jax==' launch/requirements.lock)
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${jax/jax==/jax[$1]==}"
}
versions=(3.11 3.12 3.13)
if [ -d wheels ]; then
  export PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels
  versions=("$(cat wheels/PYTHON)")
fi
stamp=$(cat launch/requirements.lock setup.py | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/jinstr-stamp 2>/dev/null)" != "$stamp" ]; then
  python=$(find_python "${versions[@]}")
  if [ -d wheels ]; then (cd wheels && sha256sum --check --quiet SHA256SUMS); fi
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r launch/requirements.lock
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
  echo "$stamp" > .venv/jinstr-stamp
fi
