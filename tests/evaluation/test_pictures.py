"""Pictures of mistakes: every cell in the colour of what became of it, for every field."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cellseg_cli.cli.app import run
from cellseg_cli.report.mistakes import COLOURS, mistakes_rgb

GREEN, RED, BLUE, PINK, YELLOW, GREY = (tuple(colour) for colour in COLOURS.tolist())


def squares(*ids: int) -> np.ndarray:
    """Squares of 10 px in a row, each with the id given; 0 leaves one out."""
    labels = np.zeros((20, 20 * len(ids)), np.uint16)
    for place, number in enumerate(ids):
        labels[5:15, 20 * place + 5 : 20 * place + 15] = number
    return labels


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two fields: the first cell right, the second missed, a third invented; images of one."""
    monkeypatch.chdir(tmp_path)
    for name in ("plate/a", "b"):
        for side, labels in (("truth", squares(1, 2, 0)), ("found", squares(7, 0, 9))):
            path = tmp_path / side / f"{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, labels)
    (tmp_path / "images" / "plate").mkdir(parents=True)
    grey = np.random.default_rng(0).integers(0, 255, (20, 60), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "images" / "plate" / "a.tif", grey)
    return tmp_path


def colours_of(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def test_each_side_shows_what_became_of_its_cells() -> None:
    truth, found = squares(1, 2, 3, 4), squares(1, 2, 0, 3)
    picture = mistakes_rgb(None, truth, found, ([0, 2, 1, 5], [0, 3, 4]))
    middle = picture.shape[1] // 2
    own = {GREEN, RED, BLUE, PINK, YELLOW, GREY}
    assert colours_of(picture[:, :middle]) & own == {GREEN, BLUE, RED, GREY}
    assert colours_of(picture[:, middle:]) & own == {GREEN, PINK, YELLOW}


def test_a_field_without_an_image_is_scored_and_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "found", "--truth", "truth"]
    assert run([*command, "--pictures", "out", "--images", "images"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "cellseg: b: scored, but not drawn: there is no image of this field\n"
    assert captured.out.split("\n")[1].split()[:4] == ["all", "2", "4", "4"]
    assert [path.relative_to(here / "out") for path in (here / "out").rglob("*.*")] == [
        Path("plate/a.png")
    ]
    picture = cv2.imread(str(here / "out" / "plate" / "a.png"))[..., ::-1]
    middle = picture.shape[1] // 2
    for side in (picture[:, :middle], picture[:, middle:]):
        assert {GREEN, RED} <= colours_of(side)
        assert not {BLUE, PINK, YELLOW} & colours_of(side)


def test_without_images_outlines_are_on_black_and_nothing_is_replaced_unasked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "found", "--truth", "truth", "--pictures", "out", "--quiet"]
    assert run(command) == 0
    first = {path.name: path.read_bytes() for path in (here / "out").rglob("*.png")}
    assert sorted(first) == ["a.png", "b.png"]
    capsys.readouterr()
    assert run(command) == 2
    assert capsys.readouterr().err == (
        "cellseg: out exists and is not empty; choose another output, or --overwrite, "
        "which replaces files of the same name\n"
    )
    assert run([*command, "--overwrite"]) == 0
    assert {path.name: path.read_bytes() for path in (here / "out").rglob("*.png")} == first


def test_images_alone_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "found", "--truth", "truth", "--images", "images"]) == 2
    assert capsys.readouterr().err == "cellseg: --images is for --pictures; give both\n"


def test_an_image_of_another_size_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(here / "images" / "b.tif", np.zeros((9, 9), np.uint8))
    command = ["evaluate", "found", "--truth", "truth", "--pictures", "out", "--images", "images"]
    assert run(command) == 1
    assert capsys.readouterr().err == (
        "cellseg: b: scored, but not drawn: the image is 9×9 px, the truth 20×60 px\n"
    )
