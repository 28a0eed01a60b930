#!/usr/bin/env bash
# Kaggle's Sartorius Cell Instance Segmentation: train.csv in, submission.csv out.
#
#     bash examples/sartorius.sh DATA RUN
#
# DATA is the unpacked download: train/*.png, train.csv, test/*.png. Where it has an
# index.csv (columns id, cell_type, split with train and val), the model is chosen
# on the val images; where it has no test/, these are segmented, and scored against
# train.csv (a little too well: they chose the model). STEPS is the length of the
# training. The data are for non-commercial use; so is what is learned from them.
# The same command again goes on where a stopped one left off.
set -euo pipefail

if (($# != 2)); then
    echo "usage: bash $0 DATA RUN" >&2
    exit 2
fi
data=$1 run=$2
if [[ ! -d $data/test && ! -f $data/index.csv ]]; then
    echo "$data has neither test/ nor index.csv: nothing says which images to segment" >&2
    exit 2
fi
mkdir -p "$run"

# As in local.sh: 1 means that some fields failed, and the others go on.
status=0
stage() {
    local code=0
    "$@" || code=$?
    case $code in
        0) ;;
        1) status=1 ;;
        *) exit "$code" ;;
    esac
}

index=()
if [[ -f $data/index.csv ]]; then
    index=(--index "$data/index.csv")
fi
# ${index[@]+...}: older versions of bash take an empty array for an unset one.
cellseg train "$data/train=$data/train.csv" ${index[@]+"${index[@]}"} --out "$run/model" \
    --steps "${STEPS:-4000}" --name sartorius --licence "non-commercial" \
    --data-note "Kaggle Sartorius Cell Instance Segmentation, train.csv"

if [[ -d $data/test ]]; then
    images=$data/test
else
    images=$run/val.txt
    train=$(cd "$data/train" && pwd)
    awk -F, -v folder="$train" '
        { sub(/\r$/, "") }
        NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i }
        NR > 1 && $column["split"] ~ /^val/ { print folder "/" $column["id"] ".png" }
    ' "$data/index.csv" >"$images"
fi

stage cellseg embed "$images" --model "$run/model" --out "$run/emb.zarr"
stage cellseg cluster "$run/emb.zarr"
stage cellseg export "$run/emb.zarr" --format kaggle --out "$run/submission.csv" --overwrite
if [[ ! -d $data/test ]]; then
    stage cellseg evaluate "$run/submission.csv" --truth "$data/train.csv" --missing skip
fi
exit "$status"
