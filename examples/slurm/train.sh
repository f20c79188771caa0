#!/bin/bash
# Guided training on several nodes under SLURM: one launcher a node, which starts a process for each of its GPUs.
#
#   sbatch examples/slurm/train.sh examples/quickstart.py
#
# What stands behind the script's name is handed on to it. Set the directives to what your cluster has.

#SBATCH --job-name=saliency-guided
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log

set -euo pipefail

if [ "$#" -lt 1 ]; then
    echo "usage: sbatch $0 SCRIPT [ARGUMENT ...]" >&2
    exit 2
fi

GPUS_PER_NODE="${SLURM_GPUS_ON_NODE:-8}"
# The first line: `head` would close the pipe while scontrol still writes to it, which pipefail makes a failure.
HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
MAIN_PROCESS_IP="${HOSTS%%$'\n'*}"
export GPUS_PER_NODE MAIN_PROCESS_IP
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# SLURM_NODEID is known in each task alone, so it is read there.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch \
    --multi_gpu \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_PROCESS_IP" \
    --main_process_port "${MAIN_PROCESS_PORT:-29500}" \
    --rdzv_backend c10d \
    --mixed_precision "${MIXED_PRECISION:-bf16}" \
    --dynamo_backend no \
    "$@"' _ "$@"
