"""Bad input, one case a test, through the program: the whole message and the exit code.

A bad image among good ones costs itself and nothing else: the others are embedded, clustered
and exported, and every stage lists it with the reason that the first stage found.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cellseg_cli.cli.app import run
from cellseg_cli.store import Store

KNOWN = ".png .jpg .jpeg .bmp .tif .tiff"


def write_good(path: Path) -> Path:
    """Write a bright disc on a dark ramp, 40×48 px."""
    image = np.tile(np.arange(48, dtype=np.uint8), (40, 1))
    cv2.circle(image, (20, 18), 8, 200, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def write_truncated(path: Path) -> None:
    whole = write_good(path).read_bytes()
    path.write_bytes(whole[:100])


def write_nan(path: Path) -> None:
    image = np.tile(np.arange(48, dtype=np.float32), (40, 1))
    image[3, 4:6] = np.nan
    image[5, 6] = np.inf
    tifffile.imwrite(path, image)


def write_grey(path: Path, shape: tuple[int, int], value: int) -> None:
    assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.png": (
        write_truncated,
        "{path}: PNG is truncated: the file ends at byte 100, before its end mark (IEND); "
        "copy or export it again",
    ),
    "empty.tif": (Path.touch, "{path}: is empty (0 bytes)"),
    "renamed.png": (
        lambda path: path.write_text("well,count\nA01,7\n"),
        "{path}: is not an image: it holds text, not PNG, JPEG, BMP or TIFF",
    ),
    # A link to itself cannot be opened by anybody, the superuser included.
    "unreadable.png": (
        lambda path: path.symlink_to(path.name),
        "{path}: cannot be read (Too many levels of symbolic links)",
    ),
    "gone.png": (lambda path: path.symlink_to("nowhere"), "{path}: there is no such file"),
    "constant.png": (
        lambda path: write_grey(path, (40, 48), 7),
        "the image is constant: every pixel is 7",
    ),
    "nan.tif": (
        write_nan,
        "the image has 2 NaN and 1 infinite values of 1920; replace them by numbers",
    ),
    "dot.png": (
        lambda path: write_grey(path, (1, 1), 7),
        "the image is 1×1 px, a side needs at least 8 px",
    ),
    "line.png": (
        lambda path: write_grey(path, (1, 5000), 7),
        "the image is 1×5000 px, a side needs at least 8 px",
    ),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, so that messages hold short relative paths."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def embed(model: Path) -> list[str]:
    """`embed images --out emb.zarr`, quiet, with the small model."""
    chosen = ["--model", str(model), "--device", "cpu", "--threads", "1", "--quiet"]
    return ["embed", "images", "--out", "emb.zarr", *chosen]


@pytest.fixture
def store(embed: list[str]) -> Path:
    """A store with the label images of `a` and `b`."""
    for name in "ab":
        write_good(Path("images", f"{name}.png"))
    assert run(embed) == 0
    assert run(["cluster", "emb.zarr", "--quiet"]) == 0
    return Path("emb.zarr")


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr, sorted; fields are told as they end."""
    return sorted(capsys.readouterr().err.splitlines())


# ------------------------------------------------------------------ images


def test_an_empty_folder(embed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("images").mkdir()
    assert run(embed) == 3
    assert capsys.readouterr().err == (
        f"cellseg: images: no image found ({KNOWN}); there: no file at all\n"
    )
    assert not Path("emb.zarr").exists()


def test_a_folder_of_text_files(embed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("images").mkdir()
    for name in ("a.txt", "b.txt", "c.csv"):
        Path("images", name).write_text("no image\n")
    assert run(embed) == 3
    assert capsys.readouterr().err == (
        f"cellseg: images: no image found ({KNOWN}); there: 3 other files: .txt (2), .csv (1)\n"
    )
    assert not Path("emb.zarr").exists()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_alone(name: str, embed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write, reason = BAD[name]
    path = Path("images", name)
    path.parent.mkdir()
    write(path)
    assert run(embed) == 3
    assert (
        capsys.readouterr().err == f"cellseg: {path.stem}: {reason.format(path=path.absolute())}\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_an_image_without_permission(embed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_good(Path("images/locked.png")).chmod(0)
    assert run(embed) == 3
    assert capsys.readouterr().err == (
        f"cellseg: locked: {Path('images/locked.png').absolute()}: cannot be read "
        "(permission denied); "
        "mend its permissions\n"
    )


def test_bad_images_among_good_ones(embed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good1.png", "zgood.png"):
        write_good(Path("images", name))
    reasons = {}
    for name, (write, reason) in BAD.items():
        path = Path("images", name)
        write(path)
        reasons[path.stem] = reason.format(path=path.absolute())

    assert run(embed) == 1
    assert told(capsys) == sorted(f"cellseg: {key}: {text}" for key, text in reasons.items())
    assert run(["cluster", "emb.zarr", "--quiet"]) == 1
    expected = sorted(f"cellseg: {key}: not embedded: {text}" for key, text in reasons.items())
    assert told(capsys) == expected
    assert run(["export", "emb.zarr", "--format", "coco", "--out", "cells.json", "-q"]) == 1
    assert told(capsys) == sorted(f"cellseg: {key}: {text}" for key, text in reasons.items())

    document = json.loads(Path("cells.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["good1.png", "zgood.png"]
    assert {one["image_id"] for one in document["annotations"]} == {1, 2}


def test_a_mended_image_is_no_failure_any_more(
    embed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_good(Path("images/a.png"))
    write_grey(Path("images/b.png"), (40, 48), 7)
    assert run(embed) == 1
    write_good(Path("images/b.png"))
    capsys.readouterr()
    assert run(embed) == 0
    assert run(["cluster", "emb.zarr", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert Store.open("emb.zarr").failure("b", "embed") is None


# ------------------------------------------------------------------ truth


def test_a_table_whose_run_leaves_the_image(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("truth.csv").write_text(
        "id,annotation,width,height\na,1 3,48,40\nb,1 3,48,40\nb,1919 3,48,40\n"
    )
    assert run(["evaluate", str(store), "--truth", "truth.csv", "--json"]) == 1
    captured = capsys.readouterr()
    reason = "truth.csv, line 4 (b): run 1919 3 leaves the image of 40×48 px (1920 pixels)"
    assert captured.err == f"cellseg: b: {reason}\n"
    document = json.loads(captured.out)
    assert document["fields"] == 1
    assert document["failed"] == [{"field": "b", "reason": reason}]


def test_a_coco_file_with_unknown_image_ids(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 48, "height": 40}]
    annotations = [{"image_id": number, "segmentation": [[0, 0, 9, 0, 9, 9]]} for number in (1, 7)]
    Path("truth.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert run(["evaluate", str(store), "--truth", "truth.json"]) == 3
    assert capsys.readouterr() == (
        "",
        "cellseg: truth.json: annotation 2 has image_id 7, which is not among the images\n",
    )


def test_images_without_truth_and_truth_without_images(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("truth").mkdir()
    labels = np.zeros((40, 48), np.uint16)
    labels[10:20, 10:20] = 1
    for name in "bcd":
        tifffile.imwrite(f"truth/{name}.tif", labels)
    assert run(["evaluate", str(store), "--truth", "truth", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "cellseg: 2 fields (c, d) are in truth, but not in emb.zarr: not scored "
        "(--missing zero counts them as no cells, skip accepts it)\n"
        "cellseg: 1 field (a) is in emb.zarr, but not in truth: not scored\n"
    )
    document = json.loads(captured.out)
    assert (document["fields"], document["failed"]) == (1, [])
    assert document["without_prediction"] == ["c", "d"]
    assert document["without_truth"] == ["a"]


def test_nothing_in_common(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("truth").mkdir()
    tifffile.imwrite("truth/x.tif", np.zeros((40, 48), np.uint16))
    assert run(["evaluate", str(store), "--truth", "truth"]) == 3
    assert capsys.readouterr().err == (
        "cellseg: no field is in both: emb.zarr has 2, such as a; truth has 1, such as x; "
        "a field is known by its path below the folder given, without suffix\n"
    )


def test_training_where_no_image_has_truth(capsys: pytest.CaptureFixture[str]) -> None:
    write_good(Path("set/images/a.png"))
    Path("set/labels").mkdir()
    tifffile.imwrite("set/labels/x.tif", np.zeros((40, 48), np.uint16))
    assert run(["train", "set", "--out", "run", "--device", "cpu"]) == 3
    assert capsys.readouterr().err == (
        "cellseg: none of the 1 images in set/images has truth in set/labels: "
        "ids such as 'a' against 'x'\n"
    )
    assert not Path("run").exists()


# ------------------------------------------------------------------ models and stores


def safetensors(metadata: dict[str, str]) -> bytes:
    header = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "m is not a model file (safetensors): 0 bytes"),
        (b"weights\n", "m is not a model file (safetensors): 8 bytes"),
        (b"PK\x03\x04" + bytes(96), "m is not a model file (safetensors): 100 bytes"),
        (
            safetensors({"format": "pt"}),
            "m is not a cellseg model: its header does not hold one; "
            "models are the .safetensors files that cellseg train writes",
        ),
        (
            safetensors({"cellseg": "[" * 100_000}),
            "m is not a cellseg model: its header does not hold one; "
            "models are the .safetensors files that cellseg train writes",
        ),
        (
            safetensors({"cellseg": '{"format": "cellseg-model", "format_version": 9}'}),
            "m is of model format 9, this version reads 1; use the cellseg that wrote it",
        ),
    ],
    ids=["empty", "text", "torch", "other", "deep", "version"],
)
def test_a_checkpoint_that_is_not_one(
    content: bytes, reason: str, embed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_good(Path("images/a.png"))
    Path("m").write_bytes(content)
    assert run([*embed, "--model", "m"]) == 2
    assert capsys.readouterr() == ("", f"cellseg: {reason}\n")
    assert not Path("emb.zarr").exists()


@pytest.mark.parametrize("command", ["embed", "cluster", "export", "evaluate"])
def test_a_store_of_another_version(
    command: str, embed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_good(Path("images/a.png"))
    Path("emb.zarr").mkdir()
    document = {"attributes": {"cellseg": {"format_version": 7}}}
    Path("emb.zarr/zarr.json").write_text(json.dumps(document))
    commands = {
        "embed": embed,
        "cluster": ["cluster", "emb.zarr"],
        "export": ["export", "emb.zarr", "--format", "coco", "--out", "cells.json"],
        "evaluate": ["evaluate", "emb.zarr", "--truth", "images"],
    }
    assert run(commands[command]) == 2
    assert capsys.readouterr() == (
        "",
        "cellseg: emb.zarr has store format 7, this cellseg reads format 1; use the cellseg "
        "that made it, or embed anew into another store\n",
    )


# ------------------------------------------------------------------ outputs


def test_embedding_into_what_is_no_store(
    embed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_good(Path("images/a.png"))
    Path("emb.zarr").mkdir()
    Path("emb.zarr/notes.txt").write_text("mine\n")
    assert run([*embed, "--overwrite"]) == 2
    assert capsys.readouterr().err == (
        "cellseg: emb.zarr is no cellseg store (it holds notes.txt); choose another output: "
        "a folder that cellseg did not make is never overwritten\n"
    )
    assert Path("emb.zarr/notes.txt").read_text() == "mine\n"


def test_embedding_below_a_file(embed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_good(Path("images/a.png"))
    assert run([*embed, "--out", "images/a.png/emb.zarr"]) == 2
    assert capsys.readouterr().err == (
        "cellseg: images/a.png/emb.zarr cannot be made: Not a directory; choose another path\n"
    )


@pytest.mark.parametrize(("form", "name"), [("coco", "o.json"), ("kaggle", "o.csv")])
def test_exporting_to_a_file_that_exists(
    form: str, name: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text("mine\n")
    assert run(["export", str(store), "--format", form, "--out", name]) == 2
    assert capsys.readouterr() == (
        "",
        f"cellseg: {name} exists; choose another output, or --overwrite\n",
    )
    assert Path(name).read_text() == "mine\n"


def test_exporting_to_a_folder_with_something_in_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("labels").mkdir()
    Path("labels/a.tif").write_text("mine\n")
    assert run(["export", str(store), "--format", "label-tiff", "--out", "labels"]) == 2
    assert capsys.readouterr() == (
        "",
        "cellseg: labels exists and is not empty; choose another output, or --overwrite, "
        "which replaces files of the same name\n",
    )
    assert Path("labels/a.tif").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("form", "out"), [("label-tiff", "emb.zarr"), ("coco", "emb.zarr/zarr.json")]
)
def test_exporting_over_the_store_itself(
    form: str, out: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (store / "zarr.json").read_bytes()
    assert run(["export", str(store), "--format", form, "--out", out, "--overwrite"]) == 2
    assert capsys.readouterr().err == (
        f"cellseg: {out} is inside the store emb.zarr; choose another output\n"
    )
    assert (store / "zarr.json").read_bytes() == before
    assert not list(store.glob("*.tif"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file that is no regular one")
def test_a_device_is_never_replaced(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")  # to the file system, a pipe is what /dev/null is: no regular file
    assert run(["export", str(store), "--format", "coco", "--out", "pipe", "--overwrite"]) == 2
    assert capsys.readouterr().err == (
        "cellseg: pipe is a device or pipe, not a file; give the name of a file\n"
    )
    same = ["evaluate", str(store), "--truth", str(store), "--per-field", "pipe", "--overwrite"]
    assert run(same) == 2
    assert capsys.readouterr().err == (
        "cellseg: pipe is a device or pipe; give the name of a file\n"
    )
    assert Path("pipe").is_fifo()


def test_scores_to_a_file_that_exists(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("scores.csv").write_text("mine\n")
    same = ["evaluate", str(store), "--truth", str(store), "--per-field", "scores.csv"]
    assert run(same) == 2
    assert capsys.readouterr() == (
        "",
        "cellseg: scores.csv exists; choose another file, or --overwrite\n",
    )
    assert Path("scores.csv").read_text() == "mine\n"


def test_a_name_that_is_too_long(embed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_good(Path("images/a.png"))
    name = "y" * 300
    assert run([*embed, "--out", name]) == 3
    assert capsys.readouterr().err == f"cellseg: {name}/zarr.json: File name too long\n"
