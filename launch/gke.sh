#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, with xpk ('pip install xpk'; flags of 1.16).
#
#   bash launch/gke.sh COMMAND [FLAGS] [-- --config=… --output=/RUN [MORE ARGUMENTS OF TRAIN]]
#
#   create   makes the cluster, and has the bucket mounted in every workload
#   run      sends this commit as a workload; it starts again after a crash or a preemption
#   logs     follows the log of train on a worker of the first slice
#   list     lists the workloads
#   stop     deletes the workload; train has --grace seconds to write a checkpoint
#   delete   deletes the cluster
#
#   flag                variable              meaning
#   --cluster=NAME      CHEXMIX_CLUSTER       (always needed, but for logs)
#   --workload=NAME     CHEXMIX_WORKLOAD      (for run, logs, stop)
#   --tpu-type=TYPE     CHEXMIX_TPU_TYPE      such as v5litepod-256 (for create, run)
#   --num-slices=N      CHEXMIX_NUM_SLICES    (1)
#   --zone=ZONE         CHEXMIX_ZONE          (default: gcloud's)
#   --project=ID        CHEXMIX_PROJECT       (default: gcloud's)
#   --spot              CHEXMIX_SPOT          spot nodes (for create)
#   --reservation=NAME  CHEXMIX_RESERVATION   reserved nodes (for create)
#   --bucket=NAME       CHEXMIX_BUCKET        bucket to mount (for create)
#   --mount=FOLDER      CHEXMIX_MOUNT         where it is mounted (/mnt/chexmix)
#   --base-image=IMAGE  CHEXMIX_BASE_IMAGE    with Python; this commit is put on it (python:3.12)
#   --image=IMAGE       CHEXMIX_IMAGE         instead: with this repository and .venv as its folder
#   --allow-dirty       CHEXMIX_ALLOW_DIRTY   leaves changes out that are not committed
#   --max-restarts=N    CHEXMIX_MAX_RESTARTS  (50)
#   --grace=SECONDS     CHEXMIX_GRACE         from SIGTERM to SIGKILL, for a checkpoint (300)
#   --worker=I          CHEXMIX_WORKER        whose log is followed, or all (0)
#   --dry-run           CHEXMIX_DRY_RUN       only prints the commands
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

call_xpk() {
  run xpk "$@" "--cluster=${flag[cluster]}" "${place[@]}"
}

do_create() {
  need cluster tpu-type
  need_number num-slices
  local options=("--tpu-type=${flag[tpu-type]}" "--num-slices=${flag[num-slices]}")
  if [[ -n ${flag[reservation]} ]]; then
    options+=("--reservation=${flag[reservation]}")
  elif on spot; then
    options+=(--spot)
  else
    options+=(--on-demand)
  fi
  if [[ -n ${flag[bucket]} ]]; then options+=(--enable-gcsfuse-csi-driver); fi
  call_xpk cluster create "${options[@]}"
  if [[ -n ${flag[bucket]} ]]; then
    # xpk wants a size, which a bucket has not. What another worker wrote must be seen at once.
    local mount=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
    call_xpk storage attach chexmix --type=gcsfuse "--bucket=${flag[bucket]}" --size=1 \
      "--mount-point=${flag[mount]}" --readonly=false --auto-mount=true "--mount-options=$mount" \
      --no-prefetch-metadata
  fi
}

do_run() {
  need cluster workload tpu-type
  need_number num-slices max-restarts grace
  need_shared_run_directory
  local options train
  # xpk signals the shell that runs the command, so train must take that shell's place.
  train="exec $(quote .venv/bin/python -m chexmix_jax.train --distributed "${train_args[@]}")"
  if [[ -n ${flag[image]} ]]; then
    options=("--docker-image=${flag[image]}")
  else
    make_archive
    local folder=${archive%.tar.gz}
    run rm -rf "$folder"
    run mkdir "$folder"
    run tar -xzf "$archive" -C "$folder"
    options=("--base-docker-image=${flag[base-image]}" "--script-dir=$folder")
    train="ACCELERATOR=tpu bash launch/setup.sh && $train"
  fi
  # xpk starts again after 127 to 255, so after signals too; 1 is a crash of Python, 2 bad input.
  call_xpk workload create "--workload=${flag[workload]}" "--tpu-type=${flag[tpu-type]}" \
    "--num-slices=${flag[num-slices]}" "${options[@]}" "--command=$train" \
    "--max-restarts=${flag[max-restarts]}" --restart-on-exit-codes=1 \
    "--termination-grace-period-seconds=${flag[grace]}"
}

do_logs() {
  need workload
  local pods="jobset.sigs.k8s.io/jobset-name=${flag[workload]}"
  if [[ ${flag[worker]} != all ]]; then
    pods+=",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=${flag[worker]}"
  fi
  run kubectl logs "--selector=$pods" --container=jax-tpu --follow --prefix --tail=50 \
    --max-log-requests=1000
}

do_list() {
  need cluster
  call_xpk workload list
}

do_stop() {
  need cluster workload
  call_xpk workload delete "--workload=${flag[workload]}"
}

do_delete() {
  need cluster
  call_xpk cluster delete
}

read_command "create run logs list stop delete" "$@"
read_flags "cluster workload tpu-type num-slices zone project reservation bucket mount base-image \
image max-restarts grace worker" "spot allow-dirty" "$@"
: "${flag[num-slices]:=1}" "${flag[mount]:=/mnt/chexmix}" "${flag[base-image]:=python:3.12}" \
  "${flag[max-restarts]:=50}" "${flag[grace]:=300}" "${flag[worker]:=0}"
"do_$command"
