"""Truth as one mask image per object: ``<name>/masks/*.png`` (Data Science Bowl 2018).

The field is the image beside the masks: ``<name>/images/<stem>`` where that
folder holds one image, as the Bowl's archives do, and ``<name>`` where the
images lie elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellseg_cli.errors import InputError
from cellseg_cli.images.annotation_files import field_id_of
from cellseg_cli.images.decode import read_image
from cellseg_cli.images.discover import SUFFIXES
from cellseg_cli.instances import Instances
from cellseg_cli.runlength import runs_of_mask


@dataclass(frozen=True)
class MaskFolders:
    """Folders of masks by field id; the masks of a field are read when asked for."""

    folders: dict[str, Path]

    @property
    def field_ids(self) -> tuple[str, ...]:
        """Every field that has a folder of masks, sorted."""
        return tuple(sorted(self.folders))

    def shape(self, field_id: str) -> tuple[int, int] | None:
        """Return None: the size of a field is known when its masks have been read."""
        del field_id
        return None

    def instances(self, field_id: str, shape: tuple[int, int] | None) -> Instances:
        """Return one instance for each mask that is not empty, by file name.

        A field without masks has no cells; its shape must then be given.  One
        mask is held at a time.
        """
        folder = self.folders[field_id]
        paths = [p for p in sorted(folder.iterdir()) if _is_mask_file(p)]
        if not paths and shape is None:
            raise InputError(f"{folder} holds no mask: the size of {field_id} must be given")
        runs: list[np.ndarray] = []
        for path in paths:
            mask = _read_mask(path)
            if path == paths[0]:
                shape = (mask.shape[0], mask.shape[1])
            assert shape is not None
            if mask.shape != shape:
                raise InputError(
                    f"the masks of {field_id} differ in size: "
                    f"{paths[0]} is {shape[0]}×{shape[1]} px, "
                    f"{path} is {mask.shape[0]}×{mask.shape[1]} px"
                )
            runs.append(runs_of_mask(mask))
        assert shape is not None
        return Instances(shape, tuple(one for one in runs if len(one)))

    def cell_type(self, field_id: str) -> str | None:
        """Return None: masks do not say what their cells are."""
        del field_id
        return None


def find_mask_folders(source: Path) -> MaskFolders | None:
    """Return the folders ``<name>/masks`` directly below `source`, or None without any."""
    folders = {
        _field_id(child): child / "masks"
        for child in sorted(source.iterdir())
        if not child.name.startswith(".") and (child / "masks").is_dir()
    }
    return MaskFolders(folders) if folders else None


def _field_id(folder: Path) -> str:
    """Return the id of the only image of ``<name>/images``, else the name."""
    beside = folder / "images"
    names = [
        path.name
        for path in (beside.iterdir() if beside.is_dir() else ())
        if not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)
    ]
    return field_id_of(f"{folder.name}/images/{names[0]}") if len(names) == 1 else folder.name


def _is_mask_file(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def _read_mask(path: Path) -> np.ndarray:
    """Return one boolean (Y, X) mask; every channel of a colour file must say the same."""
    image = read_image(path)
    mask = image[0]
    values = np.unique(mask[mask != 0])
    if values.size > 1 or np.any(image[1:] != mask):
        raise InputError(
            f"{path} holds {values.size} values besides 0, a mask of one object has one; "
            "for a folder of label images give that folder itself as the truth"
        )
    return mask != 0
