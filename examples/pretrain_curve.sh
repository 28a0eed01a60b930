#!/usr/bin/env bash
# What pretraining is worth: scores by the share of the annotations, with and without it.
#
#     bash examples/pretrain_curve.sh DATA OUT [IMAGES]
#
# DATA holds train/images, train/labels, val/images, val/labels and, if wanted,
# index.csv (columns id, kind), as for train_nuclei.sh. IMAGES are the images that
# the encoder learns from, without annotations; without it those of DATA/train. A
# model is trained on each share of DATA/train, by itself and from that encoder, all
# of the same length, and scored on DATA/val: a row each of OUT/curve.csv. The fields
# of a share are drawn by the seed and are the same with and without the encoder.
# The same command again goes on where a stopped one left off.
#
# SHARES, SEEDS, STEPS and PRETRAIN_STEPS are what their names say. OPTIONS go to
# both commands, as in OPTIONS="--device cuda --set in_channels=1", TRAIN_OPTIONS to
# cellseg train alone.
set -euo pipefail

if (($# < 2 || $# > 3)); then
    echo "usage: bash $0 DATA OUT [IMAGES]" >&2
    exit 2
fi
data=$1 out=$2 images=${3:-$1/train/images}
read -ra options <<<"${OPTIONS:-}"
read -ra train_options <<<"${TRAIN_OPTIONS:-}"
index=()
if [[ -f $data/index.csv ]]; then
    index=(--index "$data/index.csv")
fi
mkdir -p "$out"

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

# The last value of a score in a run's metrics.csv (step,name,value).
score() {
    awk -F, -v name="$2" '{ sub(/\r$/, "") } $2 == name { value = $3 } END { print value }' \
        "$1/metrics.csv"
}

# ${options[@]+...}: older versions of bash take an empty array for an unset one.
stage cellseg pretrain "$images" --out "$out/pretrained" --steps "${PRETRAIN_STEPS:-2000}" \
    ${options[@]+"${options[@]}"}

echo "share,pretrained,seed,steps,mean_ap,ap50,ap75" >"$out/curve.csv"
for seed in ${SEEDS:-0}; do
    for share in ${SHARES:-0.05 0.25 1.0}; do
        for pretrained in no yes; do
            run=$out/share-$share-$pretrained-$seed
            init=()
            if [[ $pretrained == yes ]]; then
                init=(--init "$out/pretrained")
            fi
            stage cellseg train "$data/train" --val "$data/val" --out "$run" \
                ${index[@]+"${index[@]}"} ${init[@]+"${init[@]}"} \
                --steps "${STEPS:-2000}" --seed "$seed" --set "fields_share=$share" \
                --set validate_every=0 \
                ${options[@]+"${options[@]}"} ${train_options[@]+"${train_options[@]}"}
            row=$share,$pretrained,$seed,${STEPS:-2000}
            echo "$row,$(score "$run" mean_ap),$(score "$run" ap50),$(score "$run" ap75)" \
                >>"$out/curve.csv"
        done
    done
done
cat "$out/curve.csv"
exit "$status"
