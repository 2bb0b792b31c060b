#!/bin/bash
# A training on several machines of a Slurm cluster, one process for each device:
#   sbatch docs/cluster/slurm.sh pretrain llama3-8b/pretrain data=/shared/ids name=lm
# Two minutes before its time is up it saves and ends; the same line goes on where it was, with as many nodes or others.
#SBATCH --job-name=ddt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" ddt "$@"
