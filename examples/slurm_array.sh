#!/usr/bin/env bash
#SBATCH --job-name=cellseg
#SBATCH --array=1-16
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --output=cellseg-%A_%a.log
# A folder of images on a cluster: every task embeds and clusters its part of the
# fields into one store. Parts write different files, so they need no locks and no
# order.
#
# Submit, then export when the array is through:
#
#     job=$(sbatch --parsable examples/slurm_array.sh IMAGES STORE)
#     sbatch --dependency=afterany:"$job" --wrap \
#         "cellseg export STORE --format coco --out cells.json"
#
# afterany, not afterok: a task with one damaged image ends with exit code 1 although
# its other fields are done. The export lists every field that is not, and ends with
# 1 itself then.
#
# - Tasks are counted from 1 (--array=1-N); another N: sbatch --array=1-64 ...
# - After a time limit or a lost node submit the same array again: finished fields
#   are skipped. Resubmit the whole array, not single tasks: a part is i of N, and N
#   is the number of tasks.
# - For a GPU per task add: #SBATCH --gres=gpu:1
set -euo pipefail

if (($# != 2)); then
    echo "usage: sbatch $0 IMAGES STORE" >&2
    exit 2
fi
images=$1 store=$2
part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
threads=${SLURM_CPUS_PER_TASK:-0}
model=${CELLSEG_MODEL:-nuclei}

# 1 says that some fields failed: the others are clustered all the same.
code=0
cellseg embed "$images" --out "$store" --model "$model" --part "$part" --threads "$threads" ||
    code=$?
if ((code > 1)); then
    exit "$code"
fi
cellseg cluster "$store" --part "$part" --threads "$threads"
exit "$code"
