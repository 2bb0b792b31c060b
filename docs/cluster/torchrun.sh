#!/bin/bash
# A training on several machines without Slurm: on each of them the same line, with the name of the first.
#   NODES=2 FIRST=node0 docs/cluster/torchrun.sh pretrain llama3-8b/pretrain data=/shared/ids name=lm
# DEVICES: processes on each machine, by default 8.
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${DEVICES:-8}" --rdzv-backend c10d \
    --rdzv-endpoint "${FIRST:-localhost}:${PORT:-29400}" --max-restarts 0 -m ddt_apps "$@"
