"""Pictures of the mistakes of an evaluation, a file for each field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cellseg_cli.errors import InputError
from cellseg_cli.evaluation.matching import Overlaps
from cellseg_cli.evaluation.mistakes import fates
from cellseg_cli.exports.output import check_output_folder, path_below
from cellseg_cli.images.decode import read_image
from cellseg_cli.images.discover import discover
from cellseg_cli.images.listing import SEGMENTED
from cellseg_cli.images.planes import EVERY_PLANE, Planes
from cellseg_cli.images.source import Source
from cellseg_cli.instances import Instances, labels_of
from cellseg_cli.report.mistakes import mistakes_rgb
from cellseg_cli.report.pictures import write_png
from cellseg_cli.store import Store


@dataclass(frozen=True)
class Gallery:
    """A folder of pictures, and the images that lie below the outlines.

    Attributes
    ----------
    folder
        Each field's picture is ``<id>.png`` in it.
    images
        By id of the field; None: outlines on black.
    planes
        Those of the images that are shown.
    """

    folder: Path
    images: Mapping[str, Source] | None = field(default=None, repr=False)
    planes: Planes = EVERY_PLANE

    @classmethod
    def open(
        cls, folder: Path, images: str | Path | None, prediction: Path, *, overwrite: bool
    ) -> Gallery:
        """Return a gallery of images as `discover` finds them.

        Shown are the planes that the `prediction` is of, where it tells them.

        Raises
        ------
        OutputExistsError, ConfigError
            If `folder` is a file, or has something in it that may not be replaced.
        InputError
            If there are no `images`.
        """
        check_output_folder(folder, overwrite=overwrite)
        if images is None:
            return cls(folder)
        planes = _planes_of(prediction)
        found = discover(images, planes=planes)
        return cls(folder, {one.id: one.source for one in found.fields}, planes)

    def draw(self, field_id: str, found: Instances, truth: Instances, pairs: Overlaps) -> None:
        """Write the picture of one field.

        Of instances that overlap the smaller one lies on top.

        Raises
        ------
        InputError
            There is no image of this field, it cannot be read, or is of another size.
        """
        target = path_below(self.folder, field_id, ".png")
        kinds = fates(pairs)
        picture = mistakes_rgb(
            self._image(field_id, truth.shape),
            labels_of(truth),
            labels_of(found),
            (kinds.truth, kinds.prediction),
        )
        write_png(target, picture, overwrite=True)

    def _image(self, field_id: str, shape: tuple[int, int]) -> np.ndarray | None:
        if self.images is None:
            return None
        if field_id not in self.images:
            raise InputError("scored, but not drawn: there is no image of this field")
        image = read_image(self.images[field_id], self.planes)
        if image.shape[1:] != shape:
            raise InputError(
                f"scored, but not drawn: the image is {image.shape[1]}×{image.shape[2]} px, "
                f"the truth {shape[0]}×{shape[1]} px"
            )
        return image


def _planes_of(prediction: Path) -> Planes:
    """The choice among planes that a store was made with, or a folder of `cellseg segment`."""
    for path in (prediction, prediction / SEGMENTED):
        if Store.is_at(path):
            made = Store.open(path).attributes.get("embed", {})
            channel = made.get("channel")
            return Planes(None if channel is None else tuple(channel), made.get("z"), made.get("t"))
    return EVERY_PLANE
