#!/bin/bash
# Shards made of shards by an array of independent jobs of Slurm, one device each, as many as the cluster has free:
#   sbatch --array=0-31 docs/cluster/array.sh tokenize data/pictures --tokenizer runs/tokenizer --out /shared/ids
# The same for data latents. They share the work: any may be killed, or come later, and the same line again helps or
# goes on. How far it is: ddt tokenize ... --status
#SBATCH --job-name=ddt-array
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
exec ddt "$@"
