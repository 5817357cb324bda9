#!/usr/bin/env bash
# A run on a Cloud TPU slice, on all its hosts: the slice is asked for as a queued resource, this repository is copied to
# it, launch/local_tpu.sh started; a slice that was taken away is asked for again and the run goes on.
#   bash launch/tpu.sh --type=v6e-16 --zone=us-east5-b [--spot] [--name=jinstr] [--version=v2-alpha-tpuv6e] [--delete]
#     [--setup=COMMAND] [--see=PATH] [--print] [GCLOUD OPTIONS] -- pretrain gin_configs/model/1b.gin DATA=… RUN_DIR=…
# DATA and RUN_DIR lie where every host sees them and where they outlive the slice; --setup, which is done on each host
# before every start, mounts such a disk. --see=gs://BUCKET/runs/1b says where this machine finds RUN_DIR: new steps in it
# set the count of failures back, without it JINSTR_TRIES (3, launch/again.sh) starts after the first are all there are.
# --delete gives the slice back when all is over.
set -euo pipefail
type='' zone='' name=jinstr version='' setup='' spot='' delete='' print='' options=()
arguments=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    --type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --see=*) export JINSTR_RUN_DIR="${1#*=}" ;;
    --spot) spot=--spot ;;
    --delete) delete=yes ;;
    --print) print=yes ;;
    --) shift; break ;;
    --*) options+=("$1") ;;
    *) break ;;
  esac
  shift
done
if [ $# -eq 0 ] || [ -z "$zone" ]; then
  echo "usage: bash launch/tpu.sh --type=TYPE --zone=ZONE [OPTIONS] -- COMMAND WORDS… RUN_DIR=…" >&2
  exit 64
fi
case "$type" in
  v4-*) chip=v4 image=tpu-ubuntu2204-base ;;
  v5litepod-*) chip=v5e image=v2-alpha-tpuv5-lite ;;
  v5p-*) chip=v5p image=v2-alpha-tpuv5 ;;
  v6e-*) chip=v6e image=v2-alpha-tpuv6e ;;
  *) echo "--type=$type: v4-N, v5litepod-N, v5p-N or v6e-N" >&2; exit 64 ;;
esac
repository=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/child.sh
source "$repository/launch/child.sh"
pack=${JINSTR_PACK:-jinstr.tar.gz}
tpu() { # GROUP VERB WORDS…
  local words=(gcloud compute tpus "$1" "$2" "${@:3}" "--zone=$zone" "${options[@]}")
  if [ -n "$print" ]; then
    printf '%q ' "${words[@]}"
    echo
  else
    "${words[@]}"
  fi
}
state() { tpu queued-resources describe "$name" '--format=value(state.state)' 2>/dev/null || true; }
create() {
  tpu queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=${version:-$image}" ${spot:+"$spot"}
}
remove() { tpu queued-resources delete "$name" --force --quiet; }
on_all() { tpu tpu-vm ssh "$name" --worker=all "--command=$1"; }

# What each host does. A process that outlived the connection is asked to save and end before there is a second.
# The images have Python 3.10; Ubuntu has 3.11 beside it.
printf -v words '%q ' "$@"
stop="test ! -s jinstr.pid || ! kill -TERM \$(cat jinstr.pid) 2>/dev/null"
start="$stop || timeout 900 tail --pid=\$(cat jinstr.pid) -f /dev/null
{ ${setup:-true}; } && { command -v python3.11 || sudo apt-get install -qq -y python3.11-venv; } >/dev/null &&
mkdir -p jinstr && tar -xzf jinstr.tar.gz -C jinstr && echo \$\$ > jinstr.pid && cd jinstr &&
exec bash launch/local_tpu.sh $chip $words"

show() {
  create
  tpu tpu-vm scp jinstr.tar.gz "$name:jinstr.tar.gz" --worker=all
  on_all "$start"
  remove
}

ready() { # waits until there is a slice; one that is lost is removed and asked for again
  local found blank=0
  found=$(state)
  case "$found" in FAILED | SUSPENDING | SUSPENDED) remove; found='' ;; esac
  [ -n "$found" ] || create
  while found=$(state) && [ "$found" != ACTIVE ]; do
    case "$found" in '') blank=$((blank + 1)) ;; FAILED | SUSPENDING | SUSPENDED) blank=5 ;; *) blank=0 ;; esac
    if ((blank >= 5)); then echo "tpu.sh: $name is ${found:-gone}" >&2; return 1; fi
    sleep "${JINSTR_POLL:-30}"
  done
}

stop_all() { on_all "$stop" || true; }

once() {
  ready || return 75
  tpu tpu-vm scp "$pack" "$name:jinstr.tar.gz" --worker=all || return 75
  trap stop_all TERM
  run_child gcloud compute tpus tpu-vm ssh "$name" --worker=all "--command=$start" "--zone=$zone" "${options[@]}"
  return "$status"
}

if [ -n "$print" ]; then
  show
elif [ -n "${JINSTR_PACK:-}" ]; then
  once
else
  folder=$(mktemp -d)
  trap 'rm -rf "$folder" "$notes"' EXIT
  trap 'signal_child TERM' TERM INT HUP
  export JINSTR_PACK="$folder/jinstr.tar.gz" JINSTR_BOOK="${JINSTR_BOOK:-$name.again}"
  (cd "$repository" && git ls-files -co --exclude-standard -z | tar --null --ignore-failed-read -czf "$JINSTR_PACK" -T -)
  run_child bash "$repository/launch/again.sh" bash "$0" "${arguments[@]}"
  if [ -n "$delete" ]; then remove; else echo "tpu.sh: $name is still there and costs money; --delete gives it back" >&2; fi
  exit "$status"
fi
