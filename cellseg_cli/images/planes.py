"""Which planes of a stack make the image: from named axes to (C, Y, X).

Pure arithmetic on axes and shapes; no file is touched here.  Invariant: no plane is dropped
in silence.  Where a file holds more planes than an image has and nothing says which to take,
the error names the axes and the flags that choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from cellseg_cli.errors import ConfigError, InputError, LimitError

#: Most values (pixels times channels) of one image: 8 GiB once normalised to float32, more
#: than a tile pipeline on a 16 GB machine can hold.  Checked before memory is taken.
MAX_PIXELS = 2**31

#: Most z planes of a stack, and most time points: each is read, or at least looked for.
MAX_PLANES = 2**20

_FLAGS = {"Z": "--z max|mid|INT", "T": "--t INT", "C": "--channel I[,J]"}
_NOUNS = {"Z": "z plane", "T": "time point", "C": "channel"}


@dataclass(frozen=True)
class Planes:
    """The user's choice among the planes of a stack.

    Attributes
    ----------
    channel
        Channels to keep, 0-based, in this order; ``None`` keeps all.
    z
        ``"max"`` (maximum over z), ``"mid"`` (plane n // 2) or a 0-based number as text.
    t
        Time point, 0-based.
    """

    channel: tuple[int, ...] | None = None
    z: str | None = None
    t: int | None = None

    def __post_init__(self) -> None:
        if self.z is not None and self.z not in ("max", "mid") and not _is_index(self.z):
            raise ConfigError(f"--z must be max, mid or a number from 0, got '{self.z[:24]}'")
        if self.t is not None and self.t < 0:
            raise ConfigError(f"--t must be a number from 0, got {self.t}")
        if self.channel is not None and (not self.channel or min(self.channel) < 0):
            given = ",".join(map(str, self.channel))
            raise ConfigError(f"--channel must be one or more numbers from 0, got '{given}'")


#: No choice among the planes of an image.
EVERY_PLANE = Planes()


@dataclass(frozen=True)
class Layout:
    """What a file holds, as its header tells.

    Attributes
    ----------
    axes
        One letter per axis: Y, X, Z, T, C, S (samples of one pixel); any other letter is an
        axis the file does not name.
    shape
        Length of each axis.
    dtype
        Of the decoded values.
    alpha
        Whether the last sample is opacity.
    rgb
        Whether the first three samples are red, green and blue, as the file says.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    alpha: bool = False
    rgb: bool = False

    def __str__(self) -> str:
        return f"{self.axes} {','.join(map(str, self.shape))}"

    def size(self, letters: str) -> int:
        """Return the product of the lengths of the axes with one of these letters."""
        return prod(n for axis, n in zip(self.axes, self.shape, strict=True) if axis in letters)

    @property
    def yx(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.size("Y"), self.size("X")


@dataclass(frozen=True)
class Pick:
    """The planes to read.

    Attributes
    ----------
    layout
        The file's, each axis now one of T, Z, C, S, Y, X.
    t
        Index along T.
    z
        Indices along Z; the image is their maximum.
    channels
        Indices into the channels, samples running fastest: ``c * samples + s``.
    drops_opaque
        Whether the last channel is opacity that nobody asked for by number: it is dropped if
        opaque everywhere.
    """

    layout: Layout
    t: int
    z: tuple[int, ...]
    channels: tuple[int, ...]
    drops_opaque: bool

    @property
    def colour(self) -> bool:
        """Whether the image is red, green and blue, with an alpha or without; not any channels."""
        samples = tuple(range(self.layout.size("S")))
        whole = self.channels == samples and (len(samples) == 3 or self.layout.alpha)
        return self.layout.rgb and (whole or self.channels == samples[:3])


def pick(layout: Layout, planes: Planes) -> Pick:
    """Return the planes that ``planes`` chooses from a file of this layout.

    An unnamed axis (pages of a TIFF without metadata) takes the meaning of the first of
    ``z``, ``t``, ``channel`` that is given and that no named axis answers to.

    Raises
    ------
    InputError
        A choice is missing or lies outside the stack; the image has no pixels.
    LimitError
        More than :data:`MAX_PIXELS` values, or than :data:`MAX_PLANES` planes along an axis.
    """
    layout = _named(layout, planes)
    missing = [
        flag
        for axis, given, flag in (
            ("Z", planes.z, _FLAGS["Z"]),
            ("T", planes.t, _FLAGS["T"]),
        )
        if given is None and layout.size(axis) > 1
    ]
    if missing:
        raise InputError(f"is a stack ({layout}); choose with {' and '.join(missing)}")
    if min(layout.shape, default=0) == 0:
        raise InputError(f"has no pixels ({layout})")
    _check_planes(layout)
    there = layout.size("CS")
    check_size(layout, there if planes.channel is None else len(planes.channel))
    return Pick(
        layout,
        _within("T", planes.t or 0, layout.size("T")),
        _z_indices(planes.z, layout.size("Z")),
        _channels(planes.channel, there),
        layout.alpha and layout.size("C") == 1 and planes.channel is None,
    )


def compose(plane: np.ndarray, picked: Pick) -> np.ndarray:
    """Return the picked channels of one plane that was read whole.

    Parameters
    ----------
    plane
        (S, Y, X), all samples of a file without C, Z and T.

    Returns
    -------
    np.ndarray
        (C, Y, X), contiguous, opaque alpha dropped.
    """
    if picked.channels != tuple(range(len(plane))):
        plane = plane[list(picked.channels)]
    return without_opaque(plane, picked)


def without_opaque(image: np.ndarray, picked: Pick) -> np.ndarray:
    """Return (C, Y, X) without its alpha if that is opaque everywhere and was not asked for."""
    if picked.drops_opaque and is_opaque(image[-1]):
        image = image[:-1]
    return np.ascontiguousarray(image)


def is_opaque(alpha: np.ndarray) -> bool:
    """Return whether every value of an alpha channel is the highest that there is."""
    highest = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    return bool((alpha == highest).all())


def _named(layout: Layout, planes: Planes) -> Layout:
    """Give a meaning to the axis that has none, if there is one longer than 1."""
    unnamed = [
        axis
        for axis, size in zip(layout.axes, layout.shape, strict=True)
        if axis not in "TZCSYX" and size > 1
    ]
    if not unnamed:
        return layout
    if len(unnamed) > 1:
        raise InputError(
            f"is a stack ({layout}) with the unknown axes {' and '.join(unnamed)}; "
            f"save it with named axes, e.g. as OME-TIFF"
        )
    given = {"Z": planes.z, "T": planes.t, "C": planes.channel}
    free = [axis for axis in "ZTC" if layout.size("CS" if axis == "C" else axis) == 1]
    role = next((axis for axis in free if given[axis] is not None), None)
    if role is None:
        flags = " or ".join(_FLAGS[axis] for axis in free) or "named axes, e.g. an OME-TIFF"
        raise InputError(
            f"is a stack ({layout}) and does not say what its axis {unnamed[0]} is; "
            f"choose with {flags}"
        )
    # An axis of that name and length 1 would now be there twice; its own name goes.
    axes = layout.axes.replace(role, "_").replace(unnamed[0], role)
    return replace(layout, axes=axes)


def _is_index(text: str) -> bool:
    """Return whether the text is a number that an index can be; int() refuses 4301 digits."""
    return text.isdecimal() and len(text) <= 9


def _z_indices(z: str | None, size: int) -> tuple[int, ...]:
    if z == "max":
        return tuple(range(size))
    if z == "mid":
        return (size // 2,)
    return (_within("Z", int(z or 0), size),)


def _channels(channel: tuple[int, ...] | None, size: int) -> tuple[int, ...]:
    if channel is None:
        return tuple(range(size))
    return tuple(_within("C", index, size) for index in channel)


def _within(axis: str, index: int, size: int) -> int:
    if index < size:
        return index
    flag = _FLAGS[axis].partition(" ")[0]
    noun = _NOUNS[axis]
    there = f"only one {noun}, 0" if size == 1 else f"{size} {noun}s, 0 to {size - 1}"
    raise InputError(f"has {there}; {flag} {index} is not among them")


def _check_planes(layout: Layout) -> None:
    for axis in "TZ":
        if (count := layout.size(axis)) > MAX_PLANES:
            raise LimitError(
                f"has {count} {_NOUNS[axis]}s, the limit (MAX_PLANES) is {MAX_PLANES}; "
                "cut it into several stacks"
            )


def check_size(layout: Layout, channels: int) -> None:
    """Refuse what is too large, be it the result or one plane as it is stored.

    Raises
    ------
    LimitError
        More than :data:`MAX_PIXELS` values.
    """
    height, width = layout.yx
    values = height * width * max(channels, layout.size("S"))
    if values > MAX_PIXELS:
        raise LimitError(
            f"is too large: {height}×{width} px × {max(channels, layout.size('S'))} channels = "
            f"{values} values, the limit (MAX_PIXELS) is {MAX_PIXELS}; cut it into smaller fields"
        )
