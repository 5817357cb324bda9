#!/usr/bin/env bash
# One file with the code and every package that it needs, for machines without a network. Where there is one:
#   bash launch/bundle.sh [--python=3.11] [--machine=x86_64] [--glibc=2.28] [--with=cuda12|tpu] [--output=jinstr.tar] [--print]
# There, with a Python of that version (3.11 or 3.12; for 3.13 editdistance is published without a wheel):
#   tar -xf jinstr.tar && cd jinstr && bash launch/install.sh && bash launch/quickstart.sh
# --with adds what launch/local_gpu.sh (local_tpu.sh) installs. --glibc: no newer than that of the machines (ldd --version);
# for a TPU at least 2.31, which libtpu needs, by default 2.35, which TPU hosts with Ubuntu 22.04 have. The code goes along
# as it stands in this checkout and is installed in place, since gin_configs/ lies beside the package. --print downloads
# nothing.
set -euo pipefail
python=3.11 machine=x86_64 glibc='' with='' output='' print=''
for word in "$@"; do
  case "$word" in
    --python=3.11 | --python=3.12) python=${word#*=} ;;
    --machine=x86_64 | --machine=aarch64) machine=${word#*=} ;;
    --glibc=2.[0-9]*) glibc=${word#*=} ;;
    --with=cuda12 | --with=tpu) with=${word#*=} ;;
    --output=?*) output=$(realpath -m "${word#*=}") ;;
    --print) print=yes ;;
    *) echo "bundle.sh: $word: no such option or value; the top of launch/bundle.sh has them" >&2; exit 64 ;;
  esac
done
glibc=${glibc:-$([ "$with" = tpu ] && echo 2.35 || echo 2.28)}
cd "$(dirname "$0")/.."
output=${output:-$PWD/dist/jinstr-python$python-$machine${with:+-$with}.tar}
pip=(python3 -m pip)
if [ -x .venv/bin/python ]; then pip=(.venv/bin/python -m pip); fi

# pip takes these names by the word: a wheel for glibc 2.17 must be asked for as such.
tags=("manylinux2014_$machine")
for ((minor = 5; minor <= ${glibc#2.}; minor++)); do tags+=("manylinux_2_${minor}_$machine"); done
if [ "$machine" = x86_64 ]; then tags+=(manylinux1_x86_64 manylinux2010_x86_64); fi
platform=(--only-binary=:all: --implementation=cp "--python-version=$python" "${tags[@]/#/--platform=}")

run() {
  if [ -n "$print" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
packages() { # pack into FOLDER: what the lock file names, and what an accelerator needs beside it
  local fetch=("${pip[@]}" download --quiet --disable-pip-version-check --dest "$1" --find-links "$1" "${platform[@]}")
  local jax source
  jax=$(grep '^jax==' launch/requirements.lock)
  source=$(grep '^promise==' launch/requirements.lock) # published without a wheel; it is Python alone and fits anywhere
  run "${pip[@]}" wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$1" "$source"
  run "${fetch[@]}" --no-deps --requirement launch/requirements.lock
  if [ -n "$with" ]; then # the lock file has no versions for these
    run "${fetch[@]}" --constraint launch/requirements.lock "${jax/jax==/jax[$with]==}"
  fi
}

if [ -n "$print" ]; then
  packages wheels
  echo "tar -cf $output jinstr"
  exit
fi
mkdir -p "$(dirname "$output")"
folder=$(mktemp -d "$output.XXXXXX")
trap 'rm -r "$folder"' EXIT
mkdir -p "$folder/jinstr/wheels"
git ls-files -co --exclude-standard -z | tar --null --ignore-failed-read -cf - -T - | tar -xf - -C "$folder/jinstr"
packages "$folder/jinstr/wheels"
cd "$folder/jinstr/wheels"
echo "$python" > PYTHON
sha256sum -- *.whl PYTHON > SHA256SUMS
tar -cf "$folder/whole" -C "$folder" jinstr
mv "$folder/whole" "$output"
echo "$output: $(find . -name '*.whl' | wc -l) packages, $(du -h "$output" | cut -f1)"
