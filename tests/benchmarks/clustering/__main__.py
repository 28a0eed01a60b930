"""Time and memory of the clustering methods beside the post-processing of other tools.

In a virtual environment of its own, from the root of the repository::

    python3.11 -m venv ~/peers
    ~/peers/bin/pip install -e . -r tests/benchmarks/clustering/requirements.txt
    ~/peers/bin/python tests/benchmarks/clustering

Without the second requirements it runs too, and says which peers are missing.  Three parts
(``--part``), all of them by default:

shapes
    Every post-processing makes a label image out of what its own network would ideally have
    given for the same real cells: label images from FOLDERS, by default the held-out ones of
    the data sets in ``$CELLSEG_DATA`` (or ``../shared/data``), else rendered nuclei.
field
    One field of 520×704 px with 300 cells, against the limits the project sets itself.
linkage
    Exact average linkage of ``--points`` embeddings: scikit-learn, SciPy and fastcluster.  Their
    memory grows with the square: 20480 points, the size the project's origin clusters at, take
    3.3 GB and half a minute each.  ``--image`` embeds a real image with ``--model`` for it.

Each contender lives in a process of its own with one thread; they take turns field by field, so
that whatever else the machine does falls on all alike.  CPU time, not wall time; medians after a
run that compiles and warms up.  Peak memory is what a run needs beyond its input.  To keep to one
core, put ``taskset -c 0`` in front.
"""

from __future__ import annotations

import os

# Before numpy is loaded, here and in the processes that inherit it.
os.environ.update(
    OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", NUMBA_NUM_THREADS="1"
)

import argparse
from pathlib import Path

import fields
import hardware
import linkages
import one_field
import shapes

PARTS = ("shapes", "field", "linkage")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/clustering")
    parser.add_argument("folders", nargs="*", type=Path, help="folders of label images")
    parser.add_argument("--part", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--fields", type=int, default=12, help="at most so many of each folder")
    parser.add_argument("--points", type=int, default=5120)
    parser.add_argument("--image", type=Path, help="image to embed for the linkage")
    parser.add_argument("--model", default="nuclei", help="name or file of the model for --image")
    given = parser.parse_args()
    parts = given.part or PARTS
    print(hardware.described())
    if "shapes" in parts:
        shapes.compare(fields.sets(given.folders, given.fields))
    if "field" in parts:
        one_field.compare()
    if "linkage" in parts:
        linkages.compare(linkages.points(given.points, given.image, given.model))
    print(f"\n{hardware.load()}")


if __name__ == "__main__":
    main()
