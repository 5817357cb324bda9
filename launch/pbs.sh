#!/usr/bin/env bash
# A run as PBS jobs, one process per node with all its GPUs (ABCI 3.0: -q rt_HF is a node with eight H200). From the
# repository, with .venv made by launch/local_gpu.sh:
#   bash launch/pbs.sh --group=gXX00000 --nodes=2 --time=24:00:00 [--jobs=5] [--queue=rt_HF] [--gpus=8] [--chip=h200]
#     [--modules='cuda/12.6 hpcx'] [--name=jinstr] [--print] [QSUB OPTIONS] -- pretrain gin_configs/model/7b.gin DATA=… RUN_DIR=…
# --jobs: so many jobs in a row; each starts only if the one before was not done. Five minutes before its time is over
# (--seconds=300) a job saves and ends. A mistake (launch/again.sh) ends each job of the row at once.
set -euo pipefail
group='' nodes=1 hours=24:00:00 jobs=1 queue=rt_HF gpus=8 chip=h200 modules='' name=jinstr seconds=300 print='' options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --group=*) group=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --time=*) hours=${1#*=} ;;
    --jobs=*) jobs=${1#*=} ;;
    --queue=*) queue=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --chip=*) chip=${1#*=} ;;
    --modules=*) modules=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --seconds=*) seconds=${1#*=} ;;
    --print) print=yes ;;
    --) shift; break ;;
    -?) options+=("$1" "$2"); shift ;; # qsub's own options are one letter and a word
    -*) echo "$1: not an option of this script, nor a letter and a word for qsub" >&2; exit 64 ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || { echo "usage: bash launch/pbs.sh --group=GROUP [OPTIONS] -- COMMAND WORDS… RUN_DIR=…" >&2; exit 64; }
[[ $hours =~ ^([0-9]+):([0-5][0-9]):([0-5][0-9])$ ]] || { echo "--time=$hours: give hours:minutes:seconds" >&2; exit 64; }
runs=$((10#${BASH_REMATCH[1]} * 3600 + 10#${BASH_REMATCH[2]} * 60 + 10#${BASH_REMATCH[3]} - seconds))
((runs > 0)) || { echo "--time=$hours is less than the $seconds seconds that are kept for saving" >&2; exit 64; }
repository=$(cd "$(dirname "$0")/.." && pwd)
printf -v words '%q ' .venv/bin/jinstr "$@"
printf -v root '%q' "$repository"
# mpirun kills at TERM, a second later for good, but passes USR2 on: so the loop sends USR2 to mpirun, and on each node
# again.sh (JINSTR_TRIES=0: a relay) makes TERM of it. Unbound, for two processes would get a single core each.
many='' variables=''
if [ "$nodes" -gt 1 ]; then
  # shellcheck disable=SC2016  # expanded in the job
  variables='
pass=()
for name in $(compgen -e); do
  case "$name" in
    PATH | LD_LIBRARY_PATH | PYTHONPATH | PBS_NODEFILE | PBS_JOBID | TF_CPP_* | XLA_* | JAX_* | JINSTR_* | CUDA_* | NCCL_* | UCX_* | HF_*)
      pass+=(-x "$name")
      ;;
  esac
done'
  many="env JINSTR_PASS_ON=USR2 bash launch/again.sh mpirun -np $nodes --map-by ppr:1:node --bind-to none --hostfile \"\$PBS_NODEFILE\" \
  \"\${pass[@]}\" env JINSTR_TRIES=0 JINSTR_PASS_ON=TERM "
fi
job=$(cat <<EOT
#!/bin/bash
cd $root
${modules:+source /etc/profile.d/modules.sh
module load $modules
}export TF_CPP_MIN_LOG_LEVEL=3
source launch/flags.sh
chip_flags $chip $((nodes * gpus)) || exit$variables
exec timeout --foreground --preserve-status --signal=USR2 $runs ${many}bash launch/again.sh $words
EOT
)
before=''
for ((number = 1; number <= jobs; number++)); do
  submit=(qsub ${group:+-P "$group"} -q "$queue" -l "select=$nodes" -l "walltime=$hours" -N "$name" -j oe
    ${before:+-W "depend=afternotok:$before"} "${options[@]}")
  if [ -n "$print" ]; then
    printf '%q ' "${submit[@]}"
    printf '<<EOT\n%s\nEOT\n' "$job"
    before="JOB$number"
  else
    before=$("${submit[@]}" <<< "$job")
    echo "$before"
  fi
done
