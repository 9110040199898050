#!/bin/bash
# A training on several machines under SLURM: sbatch examples/cluster/slurm.sh RECIPE [arguments of `sememe train`].
# Submit it from a folder that all machines share, because the run's folder is made in it.
#SBATCH --job-name=sememe
#SBATCH --nodes=6
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -eu

export OMP_NUM_THREADS=8
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One torchrun per machine starts one process per GPU. When one process fails, all end; SLURM requeues the job, which
# resumes from the last checkpoint, on any number of machines.
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node 8 \
  --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-endpoint "$first:29400" \
  -m sememe train "$@"
