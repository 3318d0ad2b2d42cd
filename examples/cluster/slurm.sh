#!/usr/bin/env bash
# Library and scores on a Ray cluster of all nodes of a Slurm job, then distillation with torchrun.
#
#     sbatch --nodes 4 examples/cluster/slurm.sh
#
# Before: install the package with its `ray` extra at the same path on every node (a shared
# environment does), and put parent, search space and data on the shared file system. Build the
# child (`puzzle-search solve`, then `build`) between scoring and distillation; this script runs
# whichever of the two halves STAGE names. A job that was cut off goes on where it stopped when it
# is submitted again.
#SBATCH --job-name=puzzle-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

STAGE=${STAGE:-library}              # library (with its scores), or distill
WORK=${WORK:-$PWD/work}              # on the shared file system, as are all paths below it
PARENT=${PARENT:-$WORK/parent}
SPACE=${SPACE:-$WORK/space.yaml}
DATA=${DATA:-$WORK/data}

# One thread a job, on every node: sums come out the same wherever a job runs.
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

on_every_node() { srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" "$@"; }

start_ray() {
    # The first node is Ray's head and runs jobs too. `--block` keeps each node's Ray alive for as
    # long as this script; Slurm ends it with the job.
    srun --nodes=1 --ntasks=1 --overlap -w "$head" \
        ray start --head --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" --block &
    until ray status --address "$head:6379" >/dev/null 2>&1; do sleep 2; done
    if ((SLURM_NNODES > 1)); then
        srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --overlap \
            --exclude "$head" \
            ray start --address="$head:6379" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
    fi
}

case $STAGE in
library)
    start_ray
    puzzle-search library --parent "$PARENT" --space "$SPACE" --data "$DATA" \
        --out "$WORK/library" --device cuda --executor ray --address "$head:6379" --gpus-per-job 1
    puzzle-search score --parent "$PARENT" --library "$WORK/library" --space "$SPACE" \
        --data "$DATA" --out "$WORK/scores.csv" --device cuda --dtype bf16 \
        --executor ray --address "$head:6379" --gpus-per-job 1
    ;;
distill)
    # One process a GPU; torchrun on every node meets the others at the first.
    on_every_node torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=gpu \
        --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:29500" \
        --no-python \
        puzzle-search distill --parent "$PARENT" --child "$WORK/child" --data "$DATA" \
        --out "$WORK/child-distilled" --tokens 1000000000 --device cuda --dtype bf16
    ;;
*)
    echo "STAGE is library or distill, not '$STAGE'" >&2
    exit 2
    ;;
esac
