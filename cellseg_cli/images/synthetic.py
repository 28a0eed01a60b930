"""A rendered plate of fluorescent nuclei whose truth is known to the pixel.

For the demo and for tests: pictures that a model of real nuclei recognises,
made without any file.  Each field depends on the seed, its well, its number
and its size alone, so a plate of fewer wells holds the same fields.  Knows no
network and no store.

How light gets to the pixel: nuclei that overlap add up, as in a widefield
microscope; the optics blur them and leave a halo; the lamp is uneven; the
camera counts electrons (Poisson), adds read noise and an offset.  The numbers
were chosen by eye beside the fluorescence images of Data Science Bowl 2018.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tifffile
from scipy import ndimage

from cellseg_cli import durable
from cellseg_cli.errors import ConfigError, OutputExistsError

#: Height and width of a field in px: a cooled camera binned twice, as in much of DSB 2018.
FIELD_SIZE = (520, 704)

MIN_SIDE_PX = 128

#: Nuclei that the field's edge leaves with fewer pixels are not there at all.
MIN_AREA_PX = 40

#: Largest part of what is seen of a nucleus that one later nucleus may cover, and largest part
#: of the later one that may lie over others.
MAX_COVERED = 0.22

#: Camera: grey values at no light, grey values per electron, read noise in electrons.
OFFSET, GAIN, READ_NOISE = 100.0, 2.0, 3.0

#: Tries per nucleus wanted; a field too full for more simply holds fewer.
_TRIES = 12

_WELL = re.compile(r"([A-P])(0[1-9]|1\d|2[0-4])")  # 384-well plates and smaller


@dataclass(frozen=True)
class Condition:
    """What the nuclei of one well look like.

    Attributes
    ----------
    nuclei_per_mpx
        Nuclei wanted per 10⁶ px.
    radius_px
        Median of the radius of the circle of equal area.
    clustering
        Probability that a nucleus is laid beside an earlier one: over it, against it, or near.
    electrons
        Signal of a nucleus of median brightness.
    blur_px
        Standard deviation of the point spread.
    haze
        Part of the light that ends up around the nuclei, out of focus.
    """

    nuclei_per_mpx: float
    radius_px: float
    clustering: float
    electrons: float
    blur_px: float
    haze: float


#: Sparse; crowded; large; small, dim and slightly out of focus.
CONDITIONS = (
    Condition(200, 13.5, 0.30, 420.0, 1.1, 0.08),
    Condition(520, 12.0, 0.50, 360.0, 1.1, 0.10),
    Condition(110, 20.0, 0.40, 500.0, 1.2, 0.08),
    Condition(300, 11.0, 0.40, 120.0, 1.7, 0.16),
)


@dataclass(frozen=True)
class Plate:
    """What was rendered and where it lies.

    Attributes
    ----------
    images
        Folder of 16-bit TIFFs ``<well>/field<n>.tif``, one channel.
    truth
        Folder of label TIFFs (uint16, 0 = background) of the same names.
    nuclei
        Number of nuclei by field id, in the order of rendering.
    """

    images: Path
    truth: Path
    nuclei: Mapping[str, int]

    @property
    def total(self) -> int:
        """Nuclei on the whole plate."""
        return sum(self.nuclei.values())


@dataclass(frozen=True)
class _Nucleus:
    """Outline and brightness of one nucleus; radii in px, angles in radians."""

    radius_px: float
    elongation: float  # long over short axis
    angle: float
    waves: np.ndarray  # (K, 2): cosine and sine parts of the harmonics 2 … K + 1, of the radius
    dent: tuple[float, float, float]  # depth (of the radius), direction, width
    brightness: float
    nucleoli: np.ndarray  # (N, 4): y, x and size in units of the radius; depth


@dataclass(frozen=True)
class _Stamp:
    """One nucleus on the pixels of its window, which lies inside of the field."""

    window: tuple[slice, slice]
    away: np.ndarray  # (2, h, w) float64: y and x from the centre, in px
    depth: np.ndarray  # (h, w) float64: 0 at the centre, 1 on the outline

    @property
    def inside(self) -> np.ndarray:
        """(h, w) bool: the pixels whose centre is within the outline."""
        inside: np.ndarray = self.depth <= 1
        return inside


def render_plate(
    out: Path,
    *,
    wells: Sequence[str] = ("A01", "A02", "B01", "B02"),
    fields_per_well: int = 2,
    size: tuple[int, int] = FIELD_SIZE,
    seed: int = 0,
    done: Callable[[str], None] = lambda field_id: None,
) -> Plate:
    """Render ``out/plate/<well>/field<n>.tif`` and the truth ``out/truth/<well>/field<n>.tif``.

    Neighbouring wells look different (:data:`CONDITIONS`).

    Parameters
    ----------
    out
        Folder; made where it is missing.
    wells
        Names such as ``A01``, each once.
    fields_per_well
        At least 1.
    size
        (Y, X) in px.
    seed
        At least 0.  Equal seeds give equal bytes with equal versions of numpy and scipy.
    done
        Called with the id of each field that is written.

    Raises
    ------
    ConfigError
        A well, number, size or seed that cannot be, or a disk that cannot be written.
    OutputExistsError
        ``out/plate`` or ``out/truth`` is there already.
    """
    _check(wells, fields_per_well, size, seed)
    images, truth = out / "plate", out / "truth"
    for folder in (images, truth):
        if folder.exists():
            raise OutputExistsError(f"{folder} exists; choose another output, or remove it")
    nuclei = {}
    for well in wells:
        for number in range(1, fields_per_well + 1):
            field_id = f"{well}/field{number}"
            image, labels = render_field(well, number, size=size, seed=seed)
            _write_tiff(images / f"{field_id}.tif", image)
            _write_tiff(truth / f"{field_id}.tif", labels)
            nuclei[field_id] = int(labels.max(initial=0))
            done(field_id)
    return Plate(images, truth, MappingProxyType(nuclei))


def render_field(
    well: str, number: int, *, size: tuple[int, int] = FIELD_SIZE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return one field and its truth.

    Returns
    -------
    image : (Y, X) uint16
    labels : (Y, X) uint16
        0 = background, ids 1 to n without gaps; every id is one 8-connected
        piece.  Where nuclei overlap the pixel belongs to the later, upper one,
        which has the higher id.
    """
    _check([well], number, size, seed)
    row, column = ord(well[0]) - ord("A"), int(well[1:]) - 1
    condition = CONDITIONS[(2 * row + column) % len(CONDITIONS)]
    rng = np.random.default_rng([seed, row, column, number])
    labels, light = _grow(condition, size, rng)
    return _exposed(light, condition, rng), labels


def _check(wells: Sequence[str], fields: int, size: tuple[int, int], seed: int) -> None:
    """Raise ConfigError with everything that is wrong."""
    odd = [well for well in wells if not _WELL.fullmatch(well)]
    faults = [f"{well!r} is no well, such as A01 to P24" for well in odd]
    if not wells:
        faults.append("no well is named")
    if len(set(wells)) < len(wells):
        faults.append("a well is named twice")
    if fields < 1:
        faults.append(f"got {fields} as a number of fields, needs at least 1")
    if min(size) < MIN_SIDE_PX:
        faults.append(f"got {size[0]}×{size[1]} px, needs at least {MIN_SIDE_PX} on each side")
    if seed < 0:
        faults.append(f"got the seed {seed}, needs at least 0")
    if faults:
        raise ConfigError(f"the plate cannot be rendered: {'; '.join(faults)}")


def _grow(
    condition: Condition, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lay nuclei down one by one; return labels (Y, X) uint16 and their sharp light, float64."""
    labels = np.zeros(size, dtype=np.uint16)
    light = np.zeros(size)
    wanted = max(1, round(condition.nuclei_per_mpx * size[0] * size[1] / 1e6))
    placed: list[tuple[_Nucleus, np.ndarray]] = []
    windows: list[tuple[slice, slice]] = []
    for _ in range(_TRIES * wanted):
        if len(placed) == wanted:
            break
        nucleus = _draw(condition, rng)
        centre = _place(nucleus, placed, condition, size, rng)
        stamp = _stamped(nucleus, centre, size)
        if stamp is None or not _fits(stamp, labels, windows):
            continue
        placed.append((nucleus, centre))
        windows.append(stamp.window)
        labels[stamp.window][stamp.inside] = len(placed)
        light[stamp.window] += _light(nucleus, stamp, rng)
    return labels, light


def _draw(condition: Condition, rng: np.random.Generator) -> _Nucleus:
    """Draw one nucleus; one in forty is in mitosis: smaller, longer and three times as bright."""
    mitotic = rng.random() < 1 / 40
    orders = np.arange(2, 8)
    waves = rng.normal(size=(len(orders), 2)) * (0.075 / orders[:, None] ** 1.1)
    dented = rng.random() < 0.3 and not mitotic
    dent = (rng.uniform(0.15, 0.35) * dented, rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7))
    count = 0 if mitotic else rng.poisson(1.5)
    places = rng.uniform(-0.5, 0.5, size=(count, 2))
    nucleoli = np.column_stack(
        [places, rng.uniform(0.08, 0.16, size=count), rng.uniform(0.1, 0.3, size=count)]
    )
    return _Nucleus(
        radius_px=condition.radius_px * float(rng.lognormal(0, 0.17)) * (0.7 if mitotic else 1),
        elongation=float(rng.uniform(1.9, 2.6) if mitotic else rng.uniform(1.03, 1.75)),
        angle=float(rng.uniform(0, np.pi)),
        waves=waves,
        dent=dent,
        brightness=float(rng.lognormal(0, 0.28)) * (3 if mitotic else 1),
        nucleoli=nucleoli,
    )


def _outline(nucleus: _Nucleus, direction: np.ndarray) -> np.ndarray:
    """Return the radius in px towards each direction (angle from +x towards +y)."""
    turned = direction - nucleus.angle
    stretch = np.sqrt(nucleus.elongation)
    ellipse = nucleus.radius_px / np.hypot(np.cos(turned) / stretch, np.sin(turned) * stretch)
    orders = np.arange(2, 2 + len(nucleus.waves))
    phases = np.multiply.outer(turned, orders)
    waves = np.cos(phases) @ nucleus.waves[:, 0] + np.sin(phases) @ nucleus.waves[:, 1]
    depth, towards, width = nucleus.dent
    away = np.angle(np.exp(1j * (turned - towards)))  # in -π … π
    radius: np.ndarray = ellipse * (1 + waves - depth * np.exp(-0.5 * (away / width) ** 2))
    return radius


def _place(
    nucleus: _Nucleus,
    placed: Sequence[tuple[_Nucleus, np.ndarray]],
    condition: Condition,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a centre (y, x): anywhere, or such that it overlaps, touches or nearly touches an
    earlier nucleus."""
    if placed and rng.random() < condition.clustering:
        neighbour, centre = placed[int(rng.integers(len(placed)))]
        direction = rng.uniform(-np.pi, np.pi)
        reach = _outline(neighbour, np.array(direction)) + _outline(
            nucleus, np.array(direction + np.pi)
        )
        step = float(reach) * rng.uniform(0.8, 1.15)
        beside: np.ndarray = centre + step * np.array([np.sin(direction), np.cos(direction)])
        return beside
    return rng.uniform(0, 1, size=2) * size


def _stamped(nucleus: _Nucleus, centre: np.ndarray, size: tuple[int, int]) -> _Stamp | None:
    """Lay the outline of a nucleus over the pixels; None outside of the field."""
    reach = 2.2 * nucleus.radius_px * np.sqrt(nucleus.elongation)
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, size).astype(int)
    if (low >= high).any():
        return None
    window = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    away = np.mgrid[window] - centre[:, None, None]
    depth = np.hypot(*away) / _outline(nucleus, np.arctan2(*away))
    return _Stamp(window, away, depth)


def _light(nucleus: _Nucleus, stamp: _Stamp, rng: np.random.Generator) -> np.ndarray:
    """Return the light of a nucleus on its window (h, w), about 1 where it is of median brightness.

    The nucleus is a flat lens: its thickness falls steeply at the rim only.
    """
    thickness = np.clip(1 - stamp.depth**2, 0, None) ** 0.3
    texture = _chromatin(stamp.depth.shape, nucleus.radius_px, rng)
    y, x = stamp.away / nucleus.radius_px
    for blob_y, blob_x, width, darkness in nucleus.nucleoli:
        texture -= darkness * np.exp(-((y - blob_y) ** 2 + (x - blob_x) ** 2) / (2 * width**2))
    light: np.ndarray = nucleus.brightness * thickness * np.clip(1 + texture, 0.3, None)
    return light


def _chromatin(shape: tuple[int, ...], radius_px: float, rng: np.random.Generator) -> np.ndarray:
    """Return a texture (h, w) around 0: fine grain on coarser clumps."""
    noise = rng.normal(size=(2, *shape))
    texture = np.zeros(shape)
    for grain, scale, strength in zip(noise, (0.09, 0.25), (0.12, 0.08), strict=True):
        smooth = ndimage.gaussian_filter(grain, scale * radius_px, mode="nearest")
        texture += strength * smooth / smooth.std()
    return texture


def _fits(stamp: _Stamp, labels: np.ndarray, windows: Sequence[tuple[slice, slice]]) -> bool:
    """Whether a nucleus may lie here: large enough, little covered, and all in one piece.

    ``windows`` holds the windows of the nuclei that are there, in the order of their ids.
    """
    below = labels[stamp.window]
    area = np.count_nonzero(stamp.inside)
    if area < MIN_AREA_PX or not _is_one_piece(stamp.inside):
        return False
    covered = below[stamp.inside]
    covered = covered[covered > 0]
    if len(covered) > MAX_COVERED * area:
        return False
    after = labels.copy()
    after[stamp.window][stamp.inside] = 0
    return all(
        _survives(labels[window] == number, after[window] == number)
        for number, window in ((n, windows[n - 1]) for n in np.unique(covered).tolist())
    )


def _survives(whole: np.ndarray, left: np.ndarray) -> bool:
    """Whether enough is left of a nucleus that another was laid over, in one piece."""
    least = max(MIN_AREA_PX, (1 - MAX_COVERED) * int(whole.sum()))
    return int(left.sum()) >= least and _is_one_piece(left)


def _is_one_piece(mask: np.ndarray) -> bool:
    return int(ndimage.label(mask, np.ones((3, 3)))[1]) == 1


def _exposed(light: np.ndarray, condition: Condition, rng: np.random.Generator) -> np.ndarray:
    """Return what the camera makes of the light: (Y, X) uint16."""
    light = light + _debris(light.shape, rng)
    focus = ndimage.gaussian_filter(light, condition.blur_px, mode="nearest")
    halo = ndimage.gaussian_filter(light, 5.0, mode="nearest")
    haze = ndimage.gaussian_filter(light, 25.0, mode="nearest")
    medium = 0.03 + 0.012 * _clouds(light.shape, rng)
    seen = (1 - condition.haze) * focus + condition.haze * (0.5 * halo + haze) + medium
    electrons = condition.electrons * _lamp(light.shape, rng) * np.clip(seen, 0, None)
    counted = rng.poisson(electrons) + rng.normal(0, READ_NOISE, size=light.shape)
    grey = np.rint(OFFSET + GAIN * counted)
    return np.clip(grey, 0, np.iinfo(np.uint16).max).astype(np.uint16)


def _debris(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a few bright specks that are no nuclei: single px before the optics blur them."""
    specks = np.zeros(shape)
    count = rng.poisson(1e-5 * shape[0] * shape[1])
    where = rng.integers(0, shape, size=(count, 2))
    specks[where[:, 0], where[:, 1]] = rng.uniform(1, 6, size=count)
    return specks


def _clouds(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return smooth unevenness of the medium, mean 0 and standard deviation about 1."""
    coarse = ndimage.gaussian_filter(rng.normal(size=(12, 12)), 1.0, mode="wrap")
    factors = (shape[0] / coarse.shape[0], shape[1] / coarse.shape[1])
    clouds: np.ndarray = ndimage.zoom(coarse, factors, order=3, mode="nearest")
    return (clouds - clouds.mean()) / clouds.std()


def _lamp(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return the illumination: 1 at a point near the middle, 0.6 to 0.75 in the far corners."""
    middle = rng.uniform(0.35, 0.65, size=2)
    y, x = np.ogrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j]  # both ends included
    fall = rng.uniform(0.5, 0.8)
    lamp: np.ndarray = 1 - fall * ((y - middle[0]) ** 2 + (x - middle[1]) ** 2)
    return np.clip(lamp, 0.2, None)


def _write_tiff(path: Path, plane: np.ndarray) -> None:
    """Write one plane whole or not at all; no date or program in it, so that bytes repeat."""
    options = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    try:
        with durable.temporary_path(path.parent) as temporary:
            tifffile.imwrite(temporary, plane, software=False, **options)
            durable.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
