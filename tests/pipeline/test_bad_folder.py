"""A thousand good files and fifty bad ones of ten kinds: each bad one fails alone, by its reason.

Ten of them are mended then and done by ``--retry-failed``, and nothing else is.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from cellseg_cli.store import Store

GOOD, OF_EACH = 1000, 5


def good_png(seed: int) -> bytes:
    """A bright disc on noise, 24×32 px."""
    image = np.random.default_rng(seed).integers(0, 40, (24, 32), dtype=np.uint8)
    cv2.circle(image, (16, 12), 6, 220, -1)
    return bytes(cv2.imencode(".png", image)[1])


def write_cut_tiff(path: Path) -> None:
    """A copy that was interrupted: the header and more than half of the 8192 bytes of pixels."""
    tifffile.imwrite(path, np.zeros((64, 64), np.uint16))
    assert path.stat().st_size == 8448
    path.write_bytes(path.read_bytes()[:5000])


def write_nan(path: Path) -> None:
    image = np.tile(np.arange(32, dtype=np.float32), (24, 1))
    image[3, 4] = np.nan
    tifffile.imwrite(path, image)


def write_five_channels(path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 99, (5, 24, 32), dtype=np.uint8)
    tifffile.imwrite(path, image, metadata={"axes": "CYX"}, photometric="minisblack")


def png_chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def write_giant(path: Path) -> None:
    """A PNG of a hundred bytes whose header says 100 000 × 100 000 px."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    path.write_bytes(good_png(0)[:8] + header + pixels + png_chunk(b"IEND", b""))


def write_garbled_jpeg(path: Path) -> None:
    """The first bytes of a JPEG, then bytes of something else."""
    whole = bytes(cv2.imencode(".jpg", np.zeros((24, 32), np.uint8))[1])
    noise = np.random.default_rng(1).integers(0, 255, 400, dtype=np.uint8)
    path.write_bytes(whole[:20] + bytes(noise))


#: By folder: the suffix, how a file is made, and what is to be said of it.
KINDS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut_png": (
        ".png",
        lambda path: path.write_bytes(good_png(0)[:100]),
        "{path}: PNG is truncated: the file ends at byte 100, before its end mark (IEND); "
        "copy or export it again",
    ),
    "cut_tiff": (
        ".tif",
        write_cut_tiff,
        "{path}: TIFF is truncated: its pixels reach to byte 8448, the file ends at byte 5000; "
        "copy or export it again",
    ),
    "empty": (".tif", Path.touch, "{path}: is empty (0 bytes)"),
    "text": (
        ".png",
        lambda path: path.write_text("well,count\nA01,7\n"),
        "{path}: is not an image: it holds text, not PNG, JPEG, BMP or TIFF",
    ),
    "constant": (
        ".png",
        lambda path: cv2.imwrite(str(path), np.full((24, 32), 7, np.uint8)),
        "the image is constant: every pixel is 7",
    ),
    "nan": (
        ".tif",
        write_nan,
        "the image has 1 NaN and 0 infinite values of 768; replace them by numbers",
    ),
    "five": (
        ".tif",
        write_five_channels,
        "the image has 5 channels, the model takes 1; choose them, e.g. --channel 0",
    ),
    "giant": (
        ".png",
        write_giant,
        "{path}: is too large: 100000×100000 px × 1 channels = 10000000000 values, the limit "
        "(MAX_PIXELS) is 2147483648; cut it into smaller fields",
    ),
    "garbled": (
        ".jpg",
        write_garbled_jpeg,
        "{path}: JPEG is damaged: no frame header before its pixels; copy or export it again",
    ),
    "gone": (".png", lambda path: path.symlink_to("nowhere"), "{path}: there is no such file"),
}
#: Kinds that a header shows; the others are found by the work on the field.
IN_HEADER = {"empty", "text", "giant", "garbled", "gone"}


def write_folder(folder: Path) -> dict[str, str]:
    """Write all files; the reason of each bad field."""
    drawn = [good_png(seed) for seed in range(10)]
    for index in range(GOOD):
        path = folder / f"good{index % 10}/f{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn[index % 10])
    reasons = {}
    for kind, (suffix, write, reason) in KINDS.items():
        (folder / kind).mkdir()
        for index in range(OF_EACH):
            path = folder / kind / f"{index}{suffix}"
            write(path)
            reasons[f"{kind}/{index}"] = reason.format(path=path)
    return reasons


def segment(children: Any, folder: Path, *arguments: object) -> tuple[int, list[str]]:
    """The exit code of ``cellseg segment`` and the lines it told but those of progress."""
    log = folder.with_name("told")
    chosen = ("--device", "cpu", "--threads", "2")
    code = children.run(
        children.program, log, "segment", str(folder), *map(str, arguments), *chosen
    )
    lines = log.read_text().splitlines()
    return code, [line for line in lines if not re.match(r"segment: \d+ of \d+ fields, ", line)]


def records(state: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The run records and their lines of fields, in the order of the runs."""
    found = []
    for path in sorted((state / ".cellseg/runs").glob("*[0-9].json")):
        record = json.loads(path.read_text())
        lines = (path.parent / record["fields"]).read_text().splitlines()
        found.append((record, [json.loads(line) for line in lines]))
    return found


def test_a_thousand_good_and_fifty_bad(children: Any, light_model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "plate", tmp_path / "out"
    reasons = write_folder(folder)
    code, told = segment(children, folder, "--out", out, "--model", light_model)
    assert code == 1
    assert sorted(told[1:-1]) == sorted(
        f"cellseg: {name}: {reason}" for name, reason in reasons.items()
    )
    assert told[-1].startswith("segment: 1000 done, 0 done before, 50 failed in ")
    assert_results(out, GOOD)
    state = Store.open(out / ".cellseg/segment.zarr")
    assert {name: state.failure(name, "cluster") for name in state.failed_ids("cluster")} == reasons
    assert not any(state.has(name, "cluster") for name in reasons)
    ((record, lines),) = records(state.path)
    assert record["failed"] == reasons
    assert record["counts"] == {"planned": 1050, "done": 1000, "skipped": 0, "failed": 50}
    assert len(lines) == 1050 and len({line["field"] for line in lines}) == 1050
    for line in lines:
        if line["field"] not in reasons:
            assert line["outcome"] == "done"
            continue
        assert (line["outcome"], line["reason"]) == ("failed", reasons[line["field"]])
        if line["field"].split("/")[0] not in IN_HEADER:
            assert line["traceback"].startswith("Traceback (most recent call last):\n")
            assert line["traceback"].endswith(f"Error: {line['reason']}\n")

    mended = mend(folder)
    (folder / "new.png").write_bytes(good_png(3))  # was never tried, so it did not fail
    code, told = segment(children, folder, "--out", out, "--model", light_model, "--retry-failed")
    assert code == 1
    assert told[-1].startswith("segment: 10 done, 1000 done before, 40 failed in ")
    assert_results(out, GOOD + 10)
    assert state.failed_ids("cluster") == set(reasons) - mended
    record, lines = records(state.path)[-1]
    assert {one["field"]: one["outcome"] for one in lines} == {
        name: "done" if name in mended else "failed" for name in reasons
    }
    assert record["failed"] == {name: why for name, why in reasons.items() if name not in mended}


def mend(folder: Path) -> set[str]:
    """Put a good image in the place of one of each kind; their ids."""
    for kind, (suffix, _, _) in KINDS.items():
        path = folder / kind / f"2{suffix}"
        path.unlink()
        path.write_bytes(good_png(5))
    return {f"{kind}/2" for kind in KINDS}


def assert_results(out: Path, count: int) -> None:
    """As many label images, of the size of the images, none of them empty; and nothing else."""
    files = {path for path in out.rglob("*") if path.is_file() and ".cellseg" not in path.parts}
    assert len(files) == count
    for path in files:
        labels = tifffile.imread(path)
        assert labels.shape == (24, 32)
        assert labels.any(), path
    assert not list((out / ".cellseg/tmp").iterdir())
