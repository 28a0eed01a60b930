"""One field that is open, of which regions are read: what every reader of fields gives back.

Invariant: ``region`` gives exactly the values that the whole image has there.  Knows no format
and no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OpenImage:
    """The picked planes of one field, read region by region while their files are open.

    Safe for one thread at a time; it need not always be the same one.

    Attributes
    ----------
    shape
        Channels, height and width.
    dtype
        Of the values, as stored.
    by_region
        Whether :meth:`region` takes the memory of the region (and of the blocks of the file
        that it touches).  Else the whole image is in memory from the first region on.
    read
        Gives the values (C, y, x) of rows and columns that lie within the image.
    colour
        Whether the channels are red, green and blue, perhaps with an alpha, and not stains.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    by_region: bool
    read: Callable[[slice, slice], np.ndarray]
    colour: bool = False

    def region(self, rows: slice, columns: slice) -> np.ndarray:
        """The values (C, y, x) of these rows and columns, contiguous, in the stored dtype.

        Parameters
        ----------
        rows, columns
            Half-open, as in ``image[:, rows, columns]``, without a step.

        Raises
        ------
        InputError
            The file is truncated or damaged there, or has gone.
        """
        assert rows.step in (None, 1) and columns.step in (None, 1)
        _, height, width = self.shape
        y0, y1, _ = rows.indices(height)
        x0, x1, _ = columns.indices(width)
        if y0 >= y1 or x0 >= x1:
            return np.empty((self.shape[0], max(0, y1 - y0), max(0, x1 - x0)), self.dtype)
        values = self.read(slice(y0, y1), slice(x0, x1))
        assert values.shape == (self.shape[0], y1 - y0, x1 - x0)
        return np.ascontiguousarray(values)


def held(image: np.ndarray, *, colour: bool = False) -> OpenImage:
    """An image (C, Y, X) that is in memory, as one of which regions are read."""
    channels, height, width = image.shape
    return OpenImage(
        (channels, height, width),
        image.dtype,
        by_region=False,
        read=lambda rows, columns: image[:, rows, columns],
        colour=colour,
    )
