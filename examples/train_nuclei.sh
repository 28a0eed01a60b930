#!/usr/bin/env bash
# Train the bundled model `nuclei` again.
#
#   examples/train_nuclei.sh DATA OUT
#
# DATA holds train/images, train/labels, val/images, val/labels and index.csv
# (columns id, split, kind) of the Data Science Bowl 2018, stage 1.  Where an
# accelerator is found it is used; the weights then differ from the bundled
# ones, which were trained on a CPU.  The same command resumes a stopped run.
set -euo pipefail

data=${1:?usage: train_nuclei.sh DATA OUT}
out=${2:?usage: train_nuclei.sh DATA OUT}

# From scratch, then once more from there at a lower rate; last, thresholds for counting.
cellseg train "$data/train" --val "$data/val" --index "$data/index.csv" --out "$out/first" \
  --steps 8500 --set balance=0.7 --set validate_every=1000
cellseg train "$data/train" --val "$data/val" --index "$data/index.csv" --out "$out/second" \
  --init "$out/first" --steps 7500 --set learning_rate=1e-3 --set exact_share=0.5 \
  --set balance=0.7 --set validate_every=2500 \
  --name nuclei --licence CC0-1.0 \
  --data-note "Data Science Bowl 2018 stage 1 (BBBC038), 532 training images, CC0"
cellseg embed "$data/val/images" --model "$out/second" --out "$out/val.zarr"
cellseg cluster "$out/val.zarr" --tune "$data/val/labels" --types "$data/index.csv:kind" \
  --aim ap50 --save "$out/second/best.safetensors"
