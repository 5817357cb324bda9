#!/usr/bin/env bash
# A run on a TPU slice of a Kubernetes cluster (GKE with JobSet 0.6 or later), one pod per host of the slice:
#   bash launch/gke.sh --type=v6e --topology=4x4 --image=IMAGE --claim=CLAIM [--spot] [--name=jinstr] [--restarts=100] [--print] \
#     -- pretrain gin_configs/model/1b.gin DATA=/data/corpus.jsonl TOKENIZER=/data/tok/ja48k.model RUN_DIR=/data/runs/1b
# IMAGE: launch/Dockerfile. CLAIM: a volume claim (ReadWriteMany) for data and runs; every pod has it in /data.
# The cluster itself starts a run again whose pods failed or were taken away, --restarts times. It gives up at once at a
# mistake in settings or data, and after JINSTR_TRIES (3) starts without a new checkpoint (exit status 69).
set -euo pipefail
type='' topology='' image='' claim='' spot='' name=jinstr restarts=100 print=''
while [ $# -gt 0 ]; do
  case "$1" in
    --type=*) type=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot) spot=yes ;;
    --print) print=yes ;;
    --) shift; break ;;
    --*) echo "gke.sh: $1: no such option" >&2; exit 64 ;;
    *) break ;;
  esac
  shift
done
if [ $# -eq 0 ] || [ -z "$image" ] || [ -z "$claim" ]; then
  echo "usage: bash launch/gke.sh --type=TYPE --topology=AxB --image=IMAGE --claim=CLAIM [OPTIONS] -- COMMAND WORDS… RUN_DIR=/data/…" >&2
  exit 64
fi
case "$type" in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
  *) echo "gke.sh: --type=$type: v4, v5e, v5p or v6e" >&2; exit 64 ;;
esac
[[ $topology =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] || { echo "gke.sh: --topology=$topology: chips as in 4x4 or 4x4x8" >&2; exit 64; }
plain='^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$'
[[ $name =~ $plain && $claim =~ $plain ]] || { echo "gke.sh: --name and --claim: up to 40 small letters, digits and -" >&2; exit 64; }
[[ $image =~ ^[A-Za-z0-9./:@_-]+$ && $restarts =~ ^[0-9]+$ ]] || { echo "gke.sh: --image=$image --restarts=$restarts" >&2; exit 64; }
run_dir=
for word in "$@"; do
  case "$word" in RUN_DIR=*) run_dir=${word#*=} ;; esac
done
[[ $run_dir == /data/* ]] || { echo "gke.sh: RUN_DIR=$run_dir: outside /data it would be lost with the pod" >&2; exit 64; }
chips=$((${topology//x/*}))
host=4 # chips of a host; only a slice of one chip has fewer
((chips > 1)) || host=1
hosts=$((chips / host))
printf -v words '%q ' "$@"
printf -v book '%q' "${run_dir%/}.gke"
printf -v checkpoints '%q' "${run_dir%/}/checkpoints"

# What a pod does. The first one counts the starts since the last new checkpoint.
pod=$(cat <<EOT
if [ "\$JOB_COMPLETION_INDEX" = 0 ]; then
  failures=0
  mkdir -p "\$(dirname $book)"
  if [ "\$ATTEMPT" != 0 ] && [ -z "\$(find $checkpoints -name manifest.json -newer $book -print -quit 2>/dev/null)" ]; then
    failures=\$((\$(cat $book 2>/dev/null || echo 0) + 1))
  fi
  if [ "\$failures" -ge ${JINSTR_TRIES:-3} ]; then
    echo "gke.sh: \$failures starts without a new checkpoint: stopped" >&2
    exit 69
  fi
  echo "\$failures" > $book
fi
exec bash launch/local_tpu.sh $type $words
EOT
)
yaml=$(cat <<EOT
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        completionMode: Indexed
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: jinstr
              operator: In
              values: [2, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 77, 78, 126, 127]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology${spot:+
              cloud.google.com/gke-spot: \"true\"
            tolerations:
            - {key: cloud.google.com/gke-spot, operator: Equal, value: \"true\", effect: NoSchedule\}}
            containers:
            - name: jinstr
              image: "$image"
              workingDir: /jinstr
              env:
              - name: ATTEMPT
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['jobset.sigs.k8s.io/restart-attempt']
              command: [bash, -c]
              args:
              - |
                ${pod//$'\n'/$'\n'                }
              resources:
                limits:
                  google.com/tpu: $host
              volumeMounts:
              - {name: data, mountPath: /data}
            volumes:
            - name: data
              persistentVolumeClaim: {claimName: $claim}
EOT
)
if [ -n "$print" ]; then
  echo "$yaml"
else
  kubectl create -f - <<< "$yaml"
  echo "gke.sh: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name shows the run, kubectl delete jobset $name saves and ends it"
fi
