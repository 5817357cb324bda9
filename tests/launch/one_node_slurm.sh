#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests, apart from any other that runs here; nothing outside FOLDER is written:
#   bash one_node_slurm.sh start FOLDER    # then: export SLURM_CONF=FOLDER/slurm.conf
#   bash one_node_slurm.sh stop FOLDER
# Needs slurmctld, slurmd and munged (Debian: slurmctld slurmd slurm-client munge). The node claims four CPUs and two GPUs,
# whatever the machine has. FOLDER: an absolute path that is short (sockets are in it).
set -euo pipefail
verb=$1 folder=$2
PATH=$PATH:/usr/sbin:/sbin

ends() { # PIDFILE: asks the process to end and waits until it has
  local pid
  [ -s "$1" ] || return 0
  pid=$(< "$1")
  kill "$pid" 2>/dev/null || return 0
  timeout 20 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"
}
if [ "$verb" = stop ]; then
  for name in slurmd slurmctld munged; do ends "$folder/$name.pid"; done
  exit
fi

host=$(hostname -s) user=$(id -un) port=$((20000 + $$ % 10000 * 2))
mkdir -p "$folder"/{state,spool,munge}
chmod 700 "$folder/munge"
head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 600 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
# cred_expire: a job that is queued again begins only when its old credential is void; two minutes by default.
cat > "$folder/slurm.conf" <<EOT
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOT
printf 'Name=gpu File=/dev/%s\n' null zero > "$folder/gres.conf" # two devices that every machine has
export SLURM_CONF="$folder/slurm.conf"
slurmctld -c -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N "$host"
for _ in {1..100}; do
  if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then exit; fi
  sleep 0.2
done
echo "one_node_slurm.sh: the node did not come up:" >&2
tail -n 20 "$folder"/slurmctld.log "$folder"/slurmd.log >&2
bash "$0" stop "$folder"
exit 1
