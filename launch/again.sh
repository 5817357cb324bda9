#!/usr/bin/env bash
# Runs a command until it is done: bash launch/again.sh bash launch/local_gpu.sh pretrain … RUN_DIR=runs/a
# jinstr goes on where it was when its command is started again. What is done follows from the exit status:
#   0                   done
#   2 64-74 77 78 126 127   a mistake in settings, data or the machine: stop and say so
#   75 and all others   start again; after JINSTR_TRIES (3) failures without a new step in RUN_DIR, stop
# A signal (TERM INT HUP USR2) is passed on, as JINSTR_PASS_ON (TERM; 0: not at all); then nothing is started again.
# JINSTR_RUN_DIR: where RUN_DIR is seen from here, if elsewhere (also gs://…, by gcloud).
# What was counted lies in RUN_DIR.again (JINSTR_BOOK), so that it holds over jobs. JINSTR_TRIES=0: once, no counting.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/child.sh
source "$repository/launch/child.sh"
tries=${JINSTR_TRIES:-3} pause=${JINSTR_PAUSE:-10}
[ $# -gt 0 ] || { echo "usage: bash launch/again.sh COMMAND WORDS… RUN_DIR=…" >&2; exit 64; }
run_dir=
for word in "$@"; do
  case "$word" in RUN_DIR=* | --gin.RUN_DIR=* | --run_dir=*) run_dir=${word#*=} ;; esac
done
run_dir=${JINSTR_RUN_DIR:-$run_dir}
run_dir=${run_dir#[\'\"]} run_dir=${run_dir%[\'\"]} run_dir=${run_dir%/}
case "$run_dir" in
  '') book=${JINSTR_BOOK:-/dev/null} ;;
  *://*) book=${JINSTR_BOOK:-./$(basename "$run_dir").again} ;;
  *) book=${JINSTR_BOOK:-$run_dir.again} ;;
esac
say() { echo "again.sh: $*" >&2; }

# The newest step of the run: of a checkpoint with its manifest, or of the log; -1 before the first.
newest() {
  local step=-1 found
  case "$run_dir" in
    '') ;;
    gs://*)
      for found in $(gcloud storage ls "$run_dir/checkpoints/*/manifest.json" 2>/dev/null || true); do
        found=${found%/manifest.json} found=${found##*/}
        [[ $found =~ ^[0-9]+$ ]] && ((10#$found > step)) && step=$((10#$found))
      done
      ;;
    *)
      for found in "$run_dir"/checkpoints/*/manifest.json; do
        found=${found%/manifest.json} found=${found##*/}
        [[ $found =~ ^[0-9]+$ ]] && ((10#$found > step)) && step=$((10#$found))
      done
      found=$(tail -n 1 "$run_dir/metrics.jsonl" 2>/dev/null | sed -n 's/.*"step": *\([0-9][0-9]*\).*/\1/p') || found=
      [ -n "$found" ] && ((10#$found > step)) && step=$((10#$found))
      ;;
  esac
  echo "$step"
}

asked=''
pass_on() {
  asked=$1
  say "$1: passed on; nothing is started again"
  signal_child "${JINSTR_PASS_ON:-TERM}"
}
for name in TERM INT HUP USR2; do
  # shellcheck disable=SC2064  # the name is to be filled in now
  trap "pass_on $name" "$name"
done

best=$(newest) failures=0
if [ "$tries" -gt 0 ] && [ -s "$book" ]; then read -r best failures < "$book"; fi
while :; do
  run_child "$@"
  [ "$tries" -gt 0 ] || exit "$status"
  case "$status" in
    0) [ ! -f "$book" ] || rm "$book"; exit 0 ;;
    2 | 6[4-9] | 7[0-4] | 77 | 78 | 126 | 127)
      say "exit status $status: to be put right by hand (README, A run directory); not started again"
      exit "$status"
      ;;
  esac
  [ "$asked" != INT ] || exit "$status" # a person's Ctrl-C is no failure
  step=$(newest)
  if ((step > best)); then best=$step failures=0; else failures=$((failures + 1)); fi
  if ((failures >= tries)); then
    [ ! -f "$book" ] || rm "$book"
    say "exit status $status, $failures times without a step after $best: stopped"
    ((status != 75)) || status=1 # 75 would have the job queued again
    exit "$status"
  fi
  { echo "$best $failures" > "$book"; } 2>/dev/null || say "$book cannot be written: counted in this process only"
  if [ -n "$asked" ]; then exit 75; fi # to go on elsewhere, however this one ended
  say "exit status $status at step $step: started again ($failures of $tries without progress)"
  ((failures == 0)) || sleep "$((pause * failures))" &
  wait $! 2>/dev/null || true
  if [ -n "$asked" ]; then exit 75; fi
done
