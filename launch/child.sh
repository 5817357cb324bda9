# shellcheck shell=bash
# Sourced: run_child COMMAND… runs a command and sets `status`; signals that are trapped meanwhile are handled at once, and
# signal_child NAME passes one on. Bash loses the status (it says -1) when a trapped signal comes as the command ends, so
# a subshell that gets no signals writes it down.
set -m # a process group of its own: Ctrl-C reaches the command by signal_child alone
child='' notes=$(mktemp -d)
trap 'rm -rf "$notes"' EXIT

run_child() {
  rm -f "$notes"/*
  (
    status=0
    # shellcheck disable=SC2016  # these are the inner shell's
    bash -c 'echo $$ > "$0"; exec "$@"' "$notes/pid" "$@" < /dev/null || status=$?
    echo "$status" > "$notes/status"
  ) &
  child=$!
  while kill -0 "$child" 2>/dev/null; do wait "$child" 2>/dev/null || true; done
  child='' status=137
  # shellcheck disable=SC2034  # for the caller
  if [ -s "$notes/status" ]; then status=$(< "$notes/status"); fi
}

signal_child() {
  while [ -n "$child" ] && [ ! -s "$notes/pid" ] && kill -0 "$child" 2>/dev/null; do sleep 0.01; done
  [ ! -s "$notes/pid" ] || [ -s "$notes/status" ] || kill -s "$1" "$(< "$notes/pid")" 2>/dev/null || true
}
