"""Pictures: plain arrays in, (Y, X, 3) uint8 RGB out, and one writer of PNG.

Every function is deterministic: equal arrays give equal pictures.  Nothing
here knows files other than the PNG it is told to write, or where arrays come
from.  Label ids may be anything; only which pixels share one matters.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cellseg_cli import durable
from cellseg_cli.errors import CellsegError, ConfigError, OutputExistsError

#: Centres this many px apart have the same colour again in a picture of a spatial
#: embedding: several nuclei wide, so that neighbours differ.
CENTRE_PERIOD_PX = 96.0

#: Pixels that the principal axes of a contrastive embedding are computed from, at most.
PCA_SAMPLE = 1 << 18

_GROUND = (24, 24, 28)  # between panels
_INK = (235, 235, 235)


def image_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image as RGB, each channel stretched from its 1st to its 99.8th percentile.

    Parameters
    ----------
    image : (Y, X) or (C, Y, X), any real dtype
        One channel becomes grey, two red and green, of more the first three are shown.
    """
    channels = image[None] if image.ndim == 2 else image[:3]
    stretched = [_stretched(channel, 1.0, 99.8) for channel in channels]
    if len(stretched) == 1:
        stretched *= 3
    if len(stretched) == 2:
        stretched.append(np.zeros_like(stretched[0]))
    return np.stack(stretched, axis=-1)


def embedding_rgb(
    embedding: np.ndarray, kind: str, foreground: np.ndarray | None = None
) -> np.ndarray:
    """Return an embedding as colours: what is close in the embedding has one colour.

    Contrastive: the three principal components of the unit vectors as red,
    green and blue, each stretched from its 1st to its 99th percentile.
    Spatial: the centre that each pixel points at, as three waves over the
    field of period :data:`CENTRE_PERIOD_PX` in directions 60° apart, so that
    an instance whose pixels agree on a centre is one flat patch, and touching
    ones differ; brightness is the foreground.

    Parameters
    ----------
    embedding : (E, Y, X) float16 or float32
        Spatial: the first four are offset y, offset x and bandwidth in px, and the seed in [0, 1].
    kind
        ``contrastive`` or ``spatial``.
    foreground : (Y, X) in [0, 1], optional
        Dims the rest. Without it a spatial embedding takes its seed map, a
        contrastive one is not dimmed.
    """
    assert kind in {"contrastive", "spatial"}, kind
    if kind == "spatial":
        colours = _centre_colours(embedding)
        foreground = np.sqrt(np.clip(embedding[3], 0, 1)) if foreground is None else foreground
    else:
        colours = _principal_colours(embedding)
    if foreground is not None:
        colours = colours * np.asarray(foreground, dtype=np.float32)[..., None]
    return np.rint(colours).astype(np.uint8)


def label_rgb(labels: np.ndarray) -> np.ndarray:
    """Return a label image as colours on black; instances that touch never share one.

    Instances are coloured greedily in ascending order of their ids, diagonal
    neighbours counting as touching; other ids of the same partition in the same
    order give the same picture.

    Parameters
    ----------
    labels : (Y, X), any integer dtype, 0 = background

    Examples
    --------
    >>> left, right = label_rgb(np.array([[4, 9]]))[0]
    >>> bool((left == right).all())
    False
    """
    ids, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + (1 if ids[0] != 0 else 0)  # 0 stays background
    choice = _coloured(_touching(dense), int(dense.max()))
    return palette(int(choice.max()))[choice][dense]


def outlines(labels: np.ndarray) -> np.ndarray:
    """Return (Y, X) bool: pixels of instances with a 4-neighbour of another id or background.

    The field's edge is no outline.
    """
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        a, b = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
        differ = a[1:] != a[:-1]
        b[1:] |= differ
        b[:-1] |= differ
    return edge & (labels != 0)


def overlay(image: np.ndarray, labels: np.ndarray, fill: float = 0.25) -> np.ndarray:
    """Return an image with each instance outlined, and tinted by `fill`, in its colour.

    Parameters
    ----------
    image : (Y, X) or (C, Y, X)
        As :func:`image_rgb` takes it.
    labels : (Y, X) integer, 0 = background
    fill
        Share of the instance's colour within its outline, 0 to 1.
    """
    colours = label_rgb(labels)
    share = np.where(labels != 0, np.float32(fill), np.float32(0))
    share[outlines(labels)] = 1
    blend = image_rgb(image) * (1 - share[..., None]) + colours * share[..., None]
    return np.rint(blend).astype(np.uint8)


def panel(pictures: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return pictures of one height side by side, each under its title.

    Titles and the gaps around the pictures grow with their height.

    Parameters
    ----------
    pictures
        Titles (ASCII, the only characters that OpenCV draws) and (Y, X, 3) uint8 pictures.
    """
    height = pictures[0][1].shape[0]
    gap = max(4, height // 32)
    columns = [_titled(title, picture, gap) for title, picture in pictures]
    between = np.full((columns[0].shape[0], gap, 3), _GROUND, dtype=np.uint8)
    return np.hstack([between, *(part for column in columns for part in (column, between))])


def stack(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Return panels one above the other; narrower ones are continued with ground."""
    width = max(panel.shape[1] for panel in panels)
    padded = [_padded(panel, panel.shape[0], width) for panel in panels]
    return np.vstack(padded)


def write_png(path: Path, picture: np.ndarray, *, overwrite: bool = False) -> None:
    """Write a (Y, X, 3) uint8 RGB picture; the file appears when it is complete.

    Raises
    ------
    OutputExistsError
        `path` is there and `overwrite` is false.
    ConfigError
        `path` cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; choose another output, or --overwrite")
    encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    try:
        with durable.temporary_path(path.parent) as temporary:
            temporary.write_bytes(encoded.tobytes())
            durable.replace(temporary, path)
    except CellsegError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error


def palette(count: int) -> np.ndarray:
    """Return (count + 1, 3) uint8: black, then colours that are easy to tell apart.

    Hues follow the golden angle, so that any first few are spread out; every
    other colour is paler.
    """
    golden = 0.618033988749895  # of a turn
    colours = [
        colorsys.hsv_to_rgb((0.02 + index * golden) % 1, (0.85, 0.5)[index % 2], 1.0)
        for index in range(count)
    ]
    return np.rint(np.array([(0.0, 0.0, 0.0), *colours]) * 255).astype(np.uint8)


def _stretched(plane: np.ndarray, low_percentile: float, high_percentile: float) -> np.ndarray:
    """Return a plane as uint8, the two percentiles at 0 and 255; a constant one is black."""
    low, high = np.percentile(plane, (low_percentile, high_percentile)).tolist()
    if high <= low:
        return np.zeros(plane.shape, dtype=np.uint8)
    scaled = (plane.astype(np.float32) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _centre_colours(embedding: np.ndarray) -> np.ndarray:
    """Return (Y, X, 3) float32 in 0 … 255: three waves of the centre a pixel points at."""
    height, width = embedding.shape[1:]
    y = np.arange(height, dtype=np.float32)[:, None] + embedding[0].astype(np.float32)
    x = np.arange(width, dtype=np.float32)[None, :] + embedding[1].astype(np.float32)
    turn = 2 * np.pi / CENTRE_PERIOD_PX
    directions = np.deg2rad(np.array([0, 60, 120], dtype=np.float32))
    waves = [np.cos(turn * (y * np.sin(a) + x * np.cos(a))) for a in directions]
    # Never black, which means background.
    return np.stack(waves, axis=-1) * np.float32(105) + np.float32(150)


def _principal_colours(embedding: np.ndarray) -> np.ndarray:
    """Return (Y, X, 3) float32 in 0 … 255: principal components, stretched."""
    flat = embedding.reshape(embedding.shape[0], -1)  # (E, Y·X)
    step = -(-flat.shape[1] // PCA_SAMPLE)
    sample = flat[:, ::step].astype(np.float64)
    mean = sample.mean(axis=1, keepdims=True)
    covariance = (sample - mean) @ (sample - mean).T
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :3]  # columns, largest first
    # An eigenvector's sign is arbitrary: its largest component shall be positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    parts = axes.T.astype(np.float32) @ (flat.astype(np.float32) - mean.astype(np.float32))
    planes = [_stretched(part.reshape(embedding.shape[1:]), 1, 99) for part in parts]
    planes += [np.zeros_like(planes[0])] * (3 - len(planes))
    return np.stack(planes, axis=-1).astype(np.float32)


def _touching(dense: np.ndarray) -> np.ndarray:
    """Return (n, 2) pairs of ids, the smaller first, that are 8-neighbours somewhere."""
    size = int(dense.max()) + 1
    found: list[np.ndarray] = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows, columns = dense.shape[0] - dy, dense.shape[1] - abs(dx)
        one = dense[:rows, max(0, -dx) : max(0, -dx) + columns]
        other = dense[dy:, max(0, dx) : max(0, dx) + columns]
        meet = (one != other) & (one != 0) & (other != 0)
        low, high = np.minimum(one, other)[meet], np.maximum(one, other)[meet]
        found.append(np.unique(low.astype(np.int64) * size + high))
    keys = np.unique(np.concatenate(found))
    return np.stack([keys // size, keys % size], axis=1)


def _coloured(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return the colour, 1 and up, of each id (0 for background) such that no pair shares one.

    Ids start their search at different colours, so that lone instances differ as well.
    """
    lower: list[list[int]] = [[] for _ in range(count + 1)]
    for one, other in pairs.tolist():
        lower[other].append(one)
    choice = np.zeros(count + 1, dtype=np.int64)
    for number in range(1, count + 1):
        taken = {int(choice[one]) for one in lower[number]}
        span = max(8, len(taken) + 1)
        tries = ((number + offset) % span + 1 for offset in range(span))
        choice[number] = next(colour for colour in tries if colour not in taken)
    return choice


def _titled(title: str, picture: np.ndarray, gap: int) -> np.ndarray:
    """Return a picture below its title, on a ground with a gap under it."""
    height, width = picture.shape[:2]
    bar = 3 * gap
    titled = _padded(np.zeros((0, width, 3), dtype=np.uint8), bar + height + gap, width)
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, max(8, int(1.2 * gap)))
    room = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]
    scale *= min(1.0, width / max(room, 1))  # a long title shrinks to the width
    thickness = max(1, gap // 8)
    cv2.putText(
        titled, title, (0, 2 * gap), cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, thickness, cv2.LINE_AA
    )
    titled[bar : bar + height] = picture
    return titled


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture in the upper left corner of a ground of the given size."""
    ground = np.full((height, width, 3), _GROUND, dtype=np.uint8)
    ground[: picture.shape[0], : picture.shape[1]] = picture
    return ground
