#!/usr/bin/env bash
# A folder of images on this machine: label images and a COCO file out.
#
#     bash examples/local.sh IMAGES OUT [TRUTH]
#
# TRUTH, if given, is scored against: label images of the same names, <id>/masks
# folders, a Kaggle CSV or a COCO JSON. CELLSEG_MODEL names another model.
# The same command again does only what is missing.
set -euo pipefail

if (($# < 2 || $# > 3)); then
    echo "usage: bash $0 IMAGES OUT [TRUTH]" >&2
    exit 2
fi
images=$1 out=$2 truth=${3:-}
model=${CELLSEG_MODEL:-nuclei}

# cellseg exits with 1 when it finished but some fields failed; it lists them. The
# good fields go on to the next stage, and this script ends with 1 too. Any other
# failure ends it here.
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

mkdir -p "$out"
stage cellseg embed "$images" --out "$out/emb.zarr" --model "$model"
stage cellseg cluster "$out/emb.zarr"
stage cellseg export "$out/emb.zarr" --format label-tiff --out "$out/labels" --overwrite
stage cellseg export "$out/emb.zarr" --format coco --out "$out/cells.json" --overwrite
if [[ -n $truth ]]; then
    stage cellseg evaluate "$out/emb.zarr" --truth "$truth"
fi
exit "$status"
