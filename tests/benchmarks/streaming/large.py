"""One large field: does memory grow with its size, and does it get the labels of two steps."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pictures
import tifffile
from command import MIB, Ran, cellseg, check_room

from cellseg_cli.store import Store

MEMORY_LIMIT = 1.2
BYTES_PER_PX = 26  # two files of 2, an embedding of 11 before compression, labels, scratch, room
STAGES = ("embed", "cluster", "segment")


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print the ratio for each stage and kind of file."""
    check_room(folder, BYTES_PER_PX * given.side**2)
    for kind in ("uncompressed", "deflated"):
        small = _ran(given, folder / kind, given.small)
        large = _ran(given, folder / kind, given.side)
        for stage in STAGES:
            print(
                f"{stage}, {kind}: peak memory of {given.side}² over that of {given.small}²: "
                f"{large[stage].peak_bytes / small[stage].peak_bytes:.3f} (limit {MEMORY_LIMIT})",
                flush=True,
            )


def _ran(given: argparse.Namespace, folder: Path, side: int) -> dict[str, Ran]:
    """Embed, cluster and segment one field; remove what they wrote."""
    images, store, labels = folder / "images", folder / "emb.zarr", folder / "labels"
    pictures.write_large(images / "field.tif", side, deflate=folder.name == "deflated")
    network = ("--model", given.model, "--device", "cpu")
    ran = {
        "embed": cellseg("embed", images, "--out", store, *network, out=store),
        "cluster": cellseg("cluster", store, out=store),
        "segment": cellseg("segment", images, "--out", labels, *network, out=labels),
    }
    megapixels = side * side / 1e6
    for stage, one in ran.items():
        print(
            f"  {stage + f' {side}², {folder.name}':<30} {one.wall_s:7.1f} s, {one.cpu_s:7.1f} "
            f"CPU s, {one.cpu_s / megapixels:6.3f} CPU s/MP, peak {one.peak_bytes / MIB:6.0f} MiB",
            flush=True,
        )
    count, differing = _differing(Store.open(store), labels / "field.tif", side)
    print(f"  {side}²: {count} instances, labels of segment differ in {differing} px", flush=True)
    shutil.rmtree(folder)
    return ran


def _differing(store: Store, file: Path, side: int) -> tuple[int, int]:
    """The largest id of ``cluster``, and the pixels in which ``segment`` has another."""
    import zarr

    with tifffile.TiffFile(file) as tiff:
        segmented = zarr.open_array(tiff.pages[0].aszarr(), mode="r")
        count = differing = 0
        for top in range(0, side, pictures.TILE_PX):
            region = (slice(top, min(top + pictures.TILE_PX, side)), slice(0, side))
            clustered = store.read_labels("field", region)
            count = max(count, int(clustered.max()))
            differing += int(np.count_nonzero(clustered != segmented[region]))
    return count, differing
