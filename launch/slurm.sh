#!/usr/bin/env bash
# Trains on several nodes of a SLURM cluster: sets up .venv, then submits a job.
#
#   bash launch/slurm.sh [FLAGS] -- --config=… --output=RUN [MORE ARGUMENTS OF TRAIN]
#
# Call it where sbatch works, in a clone that all nodes see. Paths are relative to where it is
# called. The job writes to RUN-JOB.log, gets SIGTERM before its time is up, and queues itself again
# when train has written a checkpoint then. What is not a flag here is a variable of sbatch, as in
# SBATCH_QOS=high SBATCH_CONSTRAINT=h100 SBATCH_EXCLUSIVE=1.
#
#   flag                 variable               meaning
#   --nodes=N            CHEXMIX_NODES          nodes (needed)
#   --gpus-per-node=N    CHEXMIX_GPUS_PER_NODE  GPUs of a node, and processes, one a GPU (needed)
#   --cpus-per-task=N    CHEXMIX_CPUS_PER_TASK  CPU cores of a process (default: the cluster's)
#   --time=TIME          CHEXMIX_TIME           limit, such as 24:00:00 (default: the partition's)
#   --partition=NAME     CHEXMIX_PARTITION      (default: the cluster's)
#   --account=NAME       CHEXMIX_ACCOUNT        (default: yours)
#   --job-name=NAME      CHEXMIX_JOB_NAME       (chexmix)
#   --grace=SECONDS      CHEXMIX_GRACE          from SIGTERM to the limit, for a checkpoint (300)
#   --accelerator=A      CHEXMIX_ACCELERATOR    that .venv is set up for (cuda13)
#   --dry-run            CHEXMIX_DRY_RUN        only prints the commands, with the job's script
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# One process a GPU: jax gives a process of a SLURM step the device of its SLURM_LOCALID, so one
# process a node would use one GPU of it. Each must therefore see all GPUs of its node
# (--gpu-bind=none). --wait, and not --kill-on-bad-exit, ends those left when one has ended: after
# SIGTERM the first to end must not take the one that still writes the checkpoint with it.
job_script() {
  local name options train
  options=(
    "--job-name=${flag[job-name]}" "--nodes=${flag[nodes]}"
    "--ntasks-per-node=${flag[gpus-per-node]}" "--gpus-per-node=${flag[gpus-per-node]}"
    "--signal=TERM@${flag[grace]}" --requeue --open-mode=append "--output=\"$log\""
  )
  for name in cpus-per-task time partition account; do
    if [[ -n ${flag[$name]} ]]; then options+=("--$name=${flag[$name]}"); fi
  done
  train=(srun --gpu-bind=none --kill-on-bad-exit=0 "--wait=${flag[grace]}")
  if [[ -n ${flag[cpus-per-task]} ]]; then train+=("--cpus-per-task=${flag[cpus-per-task]}"); fi
  train+=("$root/.venv/bin/python" -m chexmix_jax.train --distributed "${train_args[@]}")

  echo "#!/usr/bin/env bash"
  printf '#SBATCH %s\n' "${options[@]}"
  cat <<SCRIPT

trap : TERM # Where SLURM signals this shell too, it goes on waiting for srun.
code=0
$(quote "${train[@]}") || code=\$?
# A job that was cancelled, or that SLURM itself puts back, is not RUNNING any more.
if [[ \$code == 143 && \$(squeue --noheader --format=%T --jobs="\$SLURM_JOB_ID") == RUNNING ]]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
SCRIPT
}

read_flags "nodes gpus-per-node cpus-per-task time partition account job-name grace accelerator" \
  "" "$@"
: "${flag[job-name]:=chexmix}" "${flag[grace]:=300}" "${flag[accelerator]:=cuda13}"
need nodes gpus-per-node
need_number nodes gpus-per-node grace
output=$(run_directory)
log=$(realpath --canonicalize-missing "$output")-%j.log
job=$(job_script)

run env "ACCELERATOR=${flag[accelerator]}" bash "$root/launch/setup.sh"
run mkdir -p "$(dirname "$log")" # Without its folder a job fails before it can say so.
if on dry-run; then
  printf "sbatch <<'SCRIPT'\n%s\nSCRIPT\n" "$job"
else
  sbatch <<<"$job"
fi
