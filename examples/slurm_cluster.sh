#!/usr/bin/env bash
#SBATCH --job-name=cellseg
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=1-00:00:00
#SBATCH --output=cellseg-%j.log
# A folder of images on a cluster: this small job hands out the fields, and jobs that it
# submits itself work on them. Needs: pip install 'cellseg-cli[hpc]'
#
#     sbatch examples/slurm_cluster.sh IMAGES LABELS examples/cluster.toml
#
# - CONFIG says what each job asks for, and how many there are. See cluster.toml.
# - Jobs that reach their time limit are submitted again. When this one does, or is
#   cancelled, it cancels them; the same command goes on where it left off.
# - Where jobs must not submit jobs, run it with bash on the login node.
# - slurm_array.sh needs no connection between nodes, scheduler_file.sh no further jobs.
set -euo pipefail

if (($# != 3)); then
    echo "usage: sbatch $0 IMAGES LABELS CONFIG" >&2
    exit 2
fi
images=$1 labels=$2 config=$3
model=${CELLSEG_MODEL:-nuclei}

# exec: the signal that a batch system sends before it kills reaches cellseg itself.
exec cellseg segment "$images" --out "$labels" --model "$model" \
    --cluster slurm --cluster-config "$config"
