"""Truth as label images: a folder of them (or one), ids by relative path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellseg_cli.errors import InputError
from cellseg_cli.images.decode import read_image
from cellseg_cli.instances import Instances, instances_of_labels

LABEL_SUFFIXES = (".ome.tiff", ".ome.tif", ".tiff", ".tif", ".png", ".npy")
_MAX_ID = 2**32 - 1


@dataclass(frozen=True)
class LabelImages:
    """Label images by field id; each is read when it is asked for."""

    paths: dict[str, Path]

    @property
    def field_ids(self) -> tuple[str, ...]:
        """Every field that has a label image, sorted."""
        return tuple(sorted(self.paths))

    def shape(self, field_id: str) -> tuple[int, int] | None:
        """Return None: the size of a label image is known when it has been read."""
        del field_id
        return None

    def instances(self, field_id: str, shape: tuple[int, int] | None) -> Instances:
        """Return the instances of one label image, ids ascending."""
        del shape
        return instances_of_labels(read_label_image(self.paths[field_id]))

    def cell_type(self, field_id: str) -> str | None:
        """Return None: a label image does not say what its cells are."""
        del field_id
        return None


def open_label_images(source: Path) -> LabelImages:
    """Return the label images below a folder, or the one that `source` is.

    The id is the path relative to the folder, POSIX, without suffix.  Hidden
    files and folders are left out.

    Raises
    ------
    InputError
        For a folder without label images, and two files with one id.
    """
    if source.is_file():
        return LabelImages({_stem(source.name): source})
    paths: dict[str, Path] = {}
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not path.name.lower().endswith(LABEL_SUFFIXES) or not path.is_file():
            continue
        field_id = _stem(relative.as_posix())
        if field_id in paths:
            raise InputError(
                f"two label images have the id {field_id}: {paths[field_id]} and {path}"
            )
        paths[field_id] = path
    if not paths:
        raise InputError(
            f"{source} holds no truth: neither label images ({', '.join(LABEL_SUFFIXES)}) "
            "nor folders <id>/masks; give one of these, a Kaggle .csv or a COCO .json"
        )
    return LabelImages(paths)


def read_label_image(path: Path) -> np.ndarray:
    """Return a label image, (Y, X) uint32, 0 = background.

    TIFF and PNG of any integer or floating dtype, and NPY (never pickled).

    Raises
    ------
    InputError
        For anything but two axes, negative ids, ids above 2^32 − 1, and floats
        that are not whole numbers.
    """
    stored = _read_npy(path) if path.suffix.lower() == ".npy" else _read_plane(path)
    if stored.ndim != 2:
        raise InputError(
            f"{path} is no label image: its shape is {_shape_text(stored.shape)}, "
            "a label image has two axes (y, x)"
        )
    return _as_ids(stored, path)


def _read_plane(path: Path) -> np.ndarray:
    image = read_image(path)
    return image[0] if image.shape[0] == 1 else image


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Mapped, so that a header which promises more than the file holds takes no memory.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise InputError(f"{path} cannot be read as NPY: {error}") from error
    if not isinstance(stored, np.ndarray):
        raise InputError(f"{path} is an archive of several arrays; a label image is one NPY array")
    return stored


def _as_ids(stored: np.ndarray, path: Path) -> np.ndarray:
    """Return (Y, X) uint32 with the same values, or say why that cannot be."""
    if stored.dtype.kind not in "biuf":
        raise InputError(f"{path} is no label image: its dtype is {stored.dtype}")
    if stored.dtype.kind == "f" and not np.array_equal(stored, np.trunc(stored)):
        raise InputError(f"{path} is no label image: it holds numbers that are not whole")
    # As Python's numbers: float16 cannot hold the largest id to compare with.
    low, high = (stored.min().item(), stored.max().item()) if stored.size else (0, 0)
    if low < 0:
        raise InputError(f"{path} is no label image: it holds the negative id {low:.0f}")
    if high > _MAX_ID:
        raise InputError(f"{path} holds the id {high:.0f}, the largest allowed is {_MAX_ID}")
    return stored.astype(np.uint32)


def _stem(name: str) -> str:
    suffix = next((s for s in LABEL_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _shape_text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
