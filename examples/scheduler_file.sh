#!/usr/bin/env bash
#SBATCH --job-name=cellseg
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --output=cellseg-%j.log
# A folder of images on a cluster, in one job of many tasks: each task is a dask worker,
# and cellseg finds them by the file that the dask scheduler writes.
#
#     sbatch examples/scheduler_file.sh IMAGES STORE
#
# - Without SLURM it starts WORKERS processes on this machine (2 unless told).
# - After a time limit submit the same job again: finished fields are skipped.
# - For a GPU per task add: #SBATCH --gpus-per-task=1
# - Whoever reaches the port of a dask scheduler can run programs as you. Where others
#   use the same network, give dask certificates (distributed.comm.tls in its
#   configuration) and add --protocol tls to both dask commands.
set -euo pipefail

if (($# != 2)); then
    echo "usage: sbatch $0 IMAGES STORE" >&2
    exit 2
fi
images=$1 store=$2
model=${CELLSEG_MODEL:-nuclei}
threads=${SLURM_CPUS_PER_TASK:-1}

# Workers hold nothing between fields: they need not spill, and must not pause.
export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=False
export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False
export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

folder=$(mktemp -d "${store%/}.dask-XXXXXX") # beside the store, where all nodes can read it
file=$folder/scheduler.json
children=()
running=""

# Whatever ends this script ends what it has started: first cellseg, which then lets go
# of the workers, then these and the scheduler.
finish() {
    local code=$? child
    trap '' TERM INT
    for child in ${running:+"$running"} ${children[@]+"${children[@]}"}; do
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    done
    rm -rf "$folder"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' TERM INT

# As in local.sh, but in the background: bash hears no signal while it runs something.
status=0
stage() {
    local code=0
    "$@" &
    running=$!
    wait "$running" || code=$?
    running=""
    case $code in
        0) ;;
        1) status=1 ;;
        *) exit "$code" ;;
    esac
}

listen=(--port 0 --dashboard-address :0)
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    listen+=(--host 127.0.0.1)
fi
dask scheduler --scheduler-file "$file" "${listen[@]}" 2>"$folder/scheduler.log" &
scheduler=$!
until [[ -s $file ]]; do
    if ! kill -0 "$scheduler" 2>/dev/null; then
        cat "$folder/scheduler.log" >&2
        exit 3
    fi
    sleep 0.2
done

worker=(dask worker --scheduler-file "$file" --nthreads "$threads" --no-dashboard
    --local-directory "${TMPDIR:-/tmp}" --death-timeout 60)
if [[ -n ${SLURM_MEM_PER_CPU:-} ]]; then
    worker+=(--memory-limit "$((SLURM_MEM_PER_CPU * threads))MiB")
fi
if [[ -n ${SLURM_JOB_ID:-} ]]; then
    srun "${worker[@]}" 2>"${store%/}.workers.log" &
    children+=($!)
else
    for ((i = 0; i < ${WORKERS:-2}; i++)); do
        "${worker[@]}" 2>"$folder/worker$i.log" &
        children+=($!)
    done
fi
children+=("$scheduler")

stage cellseg embed "$images" --out "$store" --model "$model" --scheduler "$file"
stage cellseg cluster "$store" --scheduler "$file"
exit "$status"
