#!/usr/bin/env bash
# Train the bundled model `phase` again: cells in phase contrast, for non-commercial use.
#
#   examples/train_phase.sh SARTORIUS LIVECELL INDEX OUT
#
# SARTORIUS holds train.csv and train/ of Kaggle's Sartorius Cell Instance Segmentation,
# LIVECELL images/ and labels/ of images of LIVECell.  INDEX is a CSV with the columns id,
# cell_type and split (train, val) of both.  Nine of ten crops are of Sartorius.  Where an
# accelerator is found it is used; the weights then differ from the bundled ones, which were
# trained on a CPU.  The same command resumes a stopped run.
set -euo pipefail

sartorius=${1:?usage: train_phase.sh SARTORIUS LIVECELL INDEX OUT}
livecell=${2:?usage: train_phase.sh SARTORIUS LIVECELL INDEX OUT}
index=${3:?usage: train_phase.sh SARTORIUS LIVECELL INDEX OUT}
out=${4:?usage: train_phase.sh SARTORIUS LIVECELL INDEX OUT}

# From scratch, then once more from there at a lower rate.
cellseg train "$sartorius/train=$sartorius/train.csv" "$livecell/images=$livecell/labels" \
  --weight 9 --weight 1 --index "$index" --out "$out/first" --steps 8000 \
  --set in_channels=1 --set balance=0.3 --set exact_share=0.5 --set validate_every=2000
cellseg train "$sartorius/train=$sartorius/train.csv" "$livecell/images=$livecell/labels" \
  --weight 9 --weight 1 --index "$index" --out "$out/second" --init "$out/first" --steps 9000 \
  --set learning_rate=1e-3 \
  --set in_channels=1 --set balance=0.3 --set exact_share=0.5 --set validate_every=3000 \
  --name phase --licence CC-BY-NC-4.0 \
  --data-note "Kaggle Sartorius (350 training images, competition data, non-commercial) and LIVECell (11 images, CC BY-NC 4.0)"
