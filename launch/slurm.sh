#!/usr/bin/env bash
# A run as a Slurm job, one process per GPU; JAX finds the others by Slurm's own variables. From the repository, on a disk that
# all nodes see, with .venv made by "bash launch/local_gpu.sh --help", which a login node can do:
#   bash launch/slurm.sh --nodes=2 --gpus=8 [--cpus=8] --time=24:00:00 [--chip=h100] [--name=jinstr] [--print] \
#     [SBATCH OPTIONS] -- pretrain gin_configs/model/1b.gin DATA=… RUN_DIR=runs/1b
# --gpus: of each node. --cpus: cores for each process; Slurm's own default is one. --chip: h100, h200 or other. Three minutes before its time is over (--seconds=180) the run
# saves and the job goes back to the queue; so it does when Slurm takes its nodes away. A run without progress and a mistake
# (launch/again.sh) end the job. --print submits nothing.
set -euo pipefail
nodes=1 gpus=1 cpus=8 hours=24:00:00 chip=h100 name=jinstr seconds=180 print='' options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --cpus=*) cpus=${1#*=} ;;
    --time=*) hours=${1#*=} ;;
    --chip=*) chip=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --seconds=*) seconds=${1#*=} ;;
    --print) print=yes ;;
    --) shift; break ;;
    --*) options+=("$1") ;;
    -?) options+=("$1" "$2"); shift ;; # a letter and a word, such as -p gpu
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || { echo "usage: bash launch/slurm.sh [OPTIONS] -- COMMAND WORDS… RUN_DIR=…" >&2; exit 64; }
repository=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/flags.sh
(source "$repository/launch/flags.sh" && chip_flags "$chip") || exit 64 # told now, not when the job begins
printf -v words '%q ' "$@"
printf -v root '%q' "$repository"
job=$(cat <<EOT
#!/usr/bin/env bash
cd $root
export TF_CPP_MIN_LOG_LEVEL=3
source launch/flags.sh
chip_flags $chip $((nodes * gpus)) || exit
source launch/child.sh
# srun kills its processes when it gets a TERM, so they are told by scancel; a TERM of Slurm's own has gone to all of them.
export JINSTR_PASS_ON=0
trap 'signal_child USR2; scancel --signal=TERM "\$SLURM_JOB_ID"' USR2
trap 'signal_child TERM' TERM
run_child bash launch/again.sh srun --kill-on-bad-exit=0 --cpus-per-task=$cpus .venv/bin/jinstr $words
if [ "\$status" -eq 75 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$status"
EOT
)
submit=(sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" "--cpus-per-task=$cpus"
  "--time=$hours" "--signal=B:USR2@$seconds" --requeue --open-mode=append "--output=$name-%j.log" "${options[@]}")
if [ -n "$print" ]; then
  printf '%q ' "${submit[@]}"
  printf '<<EOT\n%s\nEOT\n' "$job"
else
  "${submit[@]}" <<< "$job"
fi
