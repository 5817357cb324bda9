#!/usr/bin/env bash
# A run on hosts that are reached by ssh, one process per host with all its devices; no scheduler. From the repository, which
# lies in the same place on every host, as DATA and RUN_DIR do (a shared disk), with .venv made by
# "bash launch/local_gpu.sh --help" before; the script may run on one of the hosts:
#   HOSTS="gpu1 gpu2" bash launch/hosts.sh [--script=local_gpu.sh] [--port=12321] [--print] -- pretrain gin_configs/model/1b.gin DATA=… RUN_DIR=…
# --script: what starts jinstr on a host, 'local_tpu.sh v5e' for example. The first host is where the processes find each
# other, by its name in HOSTS and --port, or by JINSTR_COORDINATOR (ADDRESS:PORT) where others know it by another name. Variables
# named XLA_*, JAX_*, NCCL_* … go along. TERM and Ctrl-C are passed to all hosts; so they are told when this script is killed.
# When a process fails, the others have JINSTR_GRACE (90) seconds to end; then launch/again.sh starts all of them again.
set -euo pipefail
script=local_gpu.sh port=12321 print=''
arguments=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    --script=*) script=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --print) print=yes ;;
    --) shift; break ;;
    --*) echo "hosts.sh: $1: no such option" >&2; exit 64 ;;
    *) break ;;
  esac
  shift
done
read -r -a hosts <<< "${HOSTS:-}"
if [ $# -eq 0 ] || [ "${#hosts[@]}" -eq 0 ]; then
  echo "usage: HOSTS=\"HOST HOST…\" bash launch/hosts.sh [OPTIONS] -- COMMAND WORDS… RUN_DIR=…" >&2
  exit 64
fi
[[ $port =~ ^[0-9]+$ ]] || { echo "hosts.sh: --port=$port: a number" >&2; exit 64; }
repository=$(cd "$(dirname "$0")/.." && pwd)
cd "$repository"
printf -v words '%q ' "$@"
printf -v root '%q' "$repository"
coordinator=${JINSTR_COORDINATOR:-${hosts[0]#*@}:$port}
variables=''
for name in $(compgen -e); do
  case "$name" in
    JINSTR_COORDINATOR | JINSTR_PROCESS | JINSTR_PROCESSES | JINSTR_HOSTS_ONCE) ;;
    XLA_* | LIBTPU_* | JAX_* | JINSTR_* | CUDA_* | NCCL_* | UCX_* | HF_*) printf -v variables '%s%s=%q ' "$variables" "$name" "${!name}" ;;
  esac
done

# What a host does. Signals come as names on its input, whose end is a TERM. Jinstr keeps descriptor 8: a process that outlived
# its connection has the lock, and a second one waits for it.
remote() { # RANK
  cat <<EOT
cd $root || exit 66
exec 9<&0 8> "/tmp/jinstr-\$(id -u)-$port-$1.lock"
flock -w 300 8 || { echo "hosts.sh: \$(hostname) is in use by another run with --port=$port" >&2; exit 75; }
export ${variables}JINSTR_COORDINATOR=$coordinator JINSTR_PROCESSES=${#hosts[@]} JINSTR_PROCESS=$1
bash launch/$script $words < /dev/null 9<&- &
child=\$!
{ while read -r name <&9; do kill -s "\$name" \$child; done; kill -TERM \$child; } 8>&- 2> /dev/null &
listener=\$!
status=0
wait \$child || status=\$?
kill \$listener 2> /dev/null
exit \$status
EOT
}

if [ -n "$print" ]; then
  for rank in "${!hosts[@]}"; do printf 'ssh -o BatchMode=yes %q <<EOT\n%s\nEOT\n' "${hosts[rank]}" "$(remote "$rank")"; done
  exit
fi
if [ -z "${JINSTR_HOSTS_ONCE:-}" ]; then JINSTR_HOSTS_ONCE=1 exec bash launch/again.sh bash launch/hosts.sh "${arguments[@]}"; fi

notes=$(mktemp -d)
trap 'rm -rf "$notes"' EXIT
touch "$notes/ended"
inputs=()
for rank in "${!hosts[@]}"; do
  mkfifo "$notes/$rank"
  (
    for input in "${inputs[@]}"; do exec {input}>&-; done # or a host would not see the end of its input
    trap '' TERM INT HUP
    status=0
    ssh -o BatchMode=yes -o ServerAliveInterval=15 "${hosts[rank]}" "$(remote "$rank")" < "$notes/$rank" || status=$?
    echo "$status ${hosts[rank]}" >> "$notes/ended"
  ) &
  exec {input}> "$notes/$rank"
  inputs+=("$input")
done
tell() { for input in "${inputs[@]}"; do echo "$1" >&"$input" || true; done 2> /dev/null; }
trap '' PIPE
trap 'tell TERM' TERM INT HUP
until [ "$(wc -l < "$notes/ended")" -eq "${#hosts[@]}" ]; do
  if [ -z "${limit:-}" ] && grep -qvE '^(0|75) ' "$notes/ended"; then limit=$((SECONDS + ${JINSTR_GRACE:-90})); fi
  if [ -n "${limit:-}" ] && ((SECONDS >= limit)); then tell KILL; fi
  sleep 0.2 & wait $! || true
done
mistake=$(grep -m 1 -E '^(2|6[4-9]|7[0-4]|77|78|126|127) ' "$notes/ended" || grep -m 1 -v '^0 ' "$notes/ended" || echo 0)
[ "$mistake" = 0 ] || echo "hosts.sh: exit status ${mistake% *} on ${mistake#* }" >&2
exit "${mistake%% *}"
