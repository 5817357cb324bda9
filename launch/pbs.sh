#!/usr/bin/env bash
# A run as PBS jobs, one process per node with all its GPUs (ABCI 3.0: -q rt_HF is a node with eight H200). From the
# repository, with .venv made by "bash launch/local_gpu.sh --help", which a login node can do:
#   bash launch/pbs.sh --group=gXX00000 --nodes=2 --time=24:00:00 [--jobs=5] [--queue=rt_HF] [--gpus=8] [--chip=h200]
#     [--modules='python/3.12 hpcx'] [--name=jinstr] [--print] [QSUB OPTIONS] -- pretrain gin_configs/model/7b.gin DATA=… RUN_DIR=…
# --modules: what .venv was made with and, for several nodes, an Open MPI. --chip: other, for GPUs that launch/flags.sh does not
# know. --jobs: so many jobs in a row; each starts only if the one before was not done, so to give a run up delete all of
# them. Five minutes before its time is over (--seconds=300) a job saves and ends. A mistake (launch/again.sh) ends each job
# of the row at once.
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
# shellcheck source=launch/flags.sh
(source "$repository/launch/flags.sh" && chip_flags "$chip") || exit 64 # told now, not when the job begins
printf -v words '%q ' .venv/bin/jinstr "$@"
printf -v root '%q' "$repository"
# mpirun kills its processes at TERM but passes USR2 on, which says the same to jinstr. Unbound, for two processes would get a
# single core each.
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
  many="env JINSTR_PASS_ON=USR2 bash launch/again.sh mpirun -np $nodes --map-by ppr:1:node --bind-to none \
  --hostfile \"\$PBS_NODEFILE\" \"\${pass[@]}\" $words"
fi
job=$(cat <<EOT
#!/bin/bash
cd $root
${modules:+source /etc/profile.d/modules.sh
module load $modules
}export TF_CPP_MIN_LOG_LEVEL=3
source launch/flags.sh
chip_flags $chip $((nodes * gpus)) || exit$variables
exec timeout --foreground --preserve-status --signal=USR2 $runs ${many:-bash launch/again.sh $words}
EOT
)
ssh=() # mpirun reaches the other nodes by ssh, which ABCI lets only such jobs do
case "$queue" in rt_*) [ "$nodes" -eq 1 ] || ssh=(-v USE_SSH=1) ;; esac
before=''
for ((number = 1; number <= jobs; number++)); do
  submit=(qsub ${group:+-P "$group"} -q "$queue" -l "select=$nodes" -l "walltime=$hours" -N "$name" -j oe -k oed
    ${ssh[@]:+"${ssh[@]}"} ${before:+-W "depend=afternotok:$before"} "${options[@]}")
  if [ -n "$print" ]; then
    printf '%q ' "${submit[@]}"
    printf '<<EOT\n%s\nEOT\n' "$job"
    before="JOB$number"
  else
    before=$("${submit[@]}" <<< "$job")
    echo "$before"
  fi
done
