"""What can be set about clustering, and what each method takes when it is not set.

A value that is ``None`` means "the default of the method"; :func:`resolve` fills it in.
Settings that a method does not use are ignored by it, so that one set of settings can be tried
on several methods; the table of :class:`Clustering` says which method uses what.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import isfinite

from cellseg_cli.errors import ConfigError

KINDS = ("contrastive", "spatial")
SIZES = ("160x128", "half", "full")
EROSIONS = ("grow", "origin", "none")


@dataclass(frozen=True)
class Clustering:
    """How an embedding becomes a label image.

    Attributes
    ----------
    method : str
        ``auto`` (``seeds`` for spatial embeddings, ``grid`` for contrastive ones), ``seeds``,
        ``linkage``, ``grid`` or ``watershed``.
    merge_distance : float or None
        Clusters merge while they are closer than this.  ``linkage``, and ``grid`` on contrastive
        embeddings: average cosine distance, 0 to 2.  ``grid`` on spatial embeddings: distance of
        the mean predicted centres over the mean bandwidth of the two.
    foreground : float or None
        ``seeds``, and ``grid`` on spatial embeddings without classes: a pixel whose seed value is
        above it is foreground.  With classes (``linkage``, ``grid``, ``watershed``): the
        probability of not being background above which a pixel or cluster is foreground.
        ``grid`` on contrastive embeddings without classes: the cosine distance from the mean
        background code above which a pixel is foreground.
    seed_level : float or None
        ``seeds``: only pixels with at least this seed value start an instance.  ``watershed``, and
        ``grid`` on contrastive embeddings with classes: the interior probability above which a
        pixel belongs to a marker, or is clustered.
    min_area_px : int or None
        Smaller pieces are no instances; in pixels of the field, by every method.
    size : str or None
        ``linkage`` and ``grid``: the size to cluster at; ``160x128`` (width by height, the
        project's origin), ``half`` or ``full``.
    erosion : str or None
        ``linkage`` and ``grid`` on contrastive embeddings: ``grow`` erodes each cluster by one
        pixel, splits it into connected pieces, and grows these back inside the cluster;
        ``origin`` leaves the growing out, as the project's origin did; ``none`` does not erode.
    """

    method: str = "auto"
    merge_distance: float | None = None
    foreground: float | None = None
    seed_level: float | None = None
    min_area_px: int | None = None
    size: str | None = None
    erosion: str | None = None


def default_method(kind: str) -> str:
    """The method that suits a kind of embedding: ``seeds`` or ``grid``.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of embedding {kind!r}; known: {', '.join(KINDS)}")
    return "seeds" if kind == "spatial" else "grid"


#: The full defaults of each method for each kind of embedding that it can cluster.  A tuned model
#: carries its own in its header; these are for models that carry none.
_DEFAULTS: dict[tuple[str, str], Clustering] = {
    ("seeds", "spatial"): Clustering("seeds", 0.0, 0.3, 0.65, 16, "full", "none"),
    ("grid", "spatial"): Clustering("grid", 2.0, 0.3, 0.5, 16, "full", "none"),
    ("grid", "contrastive"): Clustering("grid", 0.45, 0.3, 0.5, 16, "full", "grow"),
    ("linkage", "contrastive"): Clustering("linkage", 0.45, 0.5, 0.5, 16, "160x128", "grow"),
    ("watershed", "spatial"): Clustering("watershed", 0.0, 0.5, 0.6, 16, "full", "none"),
    ("watershed", "contrastive"): Clustering("watershed", 0.0, 0.5, 0.6, 16, "full", "none"),
}

#: Those of ``grid`` where there are class probabilities.
_WITH_CLASSES: dict[tuple[str, str], Clustering] = {
    ("grid", "spatial"): Clustering("grid", 2.0, 0.5, 0.5, 16, "full", "none"),
    ("grid", "contrastive"): Clustering("grid", 0.2, 0.5, 0.6, 16, "full", "grow"),
}


def ignored(method: str, kind: str) -> frozenset[str]:
    """The names of the settings that a method does not look at on embeddings of this kind.

    >>> sorted(ignored("linkage", "contrastive"))
    ['seed_level']
    """
    if method in ("seeds", "watershed"):
        return frozenset({"merge_distance", "size", "erosion"})
    if method == "linkage":
        return frozenset({"seed_level"})
    return frozenset({"seed_level", "erosion"}) if kind == "spatial" else frozenset()


def resolve(settings: Clustering, kind: str, *, with_classes: bool = False) -> Clustering:
    """The settings with every ``None`` replaced by the default of the method for this kind.

    Parameters
    ----------
    settings : Clustering
    kind : str
        ``contrastive`` or ``spatial``.
    with_classes : bool
        Whether there are class probabilities: ``grid`` then has other defaults.

    Raises
    ------
    ConfigError
        If the method or kind is unknown, the method cannot work on the kind, or values are out
        of range; all faults in one message.
    """
    method = default_method(kind) if settings.method == "auto" else settings.method
    known = sorted({name for name, _ in _DEFAULTS})
    if method not in known:
        raise ConfigError(f"unknown clustering method {method!r}; known: auto, {', '.join(known)}")
    if (method, kind) not in _DEFAULTS:
        able = [name for name in known if (name, kind) in _DEFAULTS]
        raise ConfigError(
            f"{method} cannot cluster a {kind} embedding; methods that can: {', '.join(able)}"
        )
    chosen = {
        item.name: value
        for item in fields(Clustering)
        if (value := getattr(settings, item.name)) is not None
    }
    defaults = (with_classes and _WITH_CLASSES.get((method, kind))) or _DEFAULTS[method, kind]
    resolved = replace(defaults, **{**chosen, "method": method})
    _check(resolved)
    return resolved


def _check(settings: Clustering) -> None:
    """Refuse values out of range; all faults are told at once."""
    faults = [
        f"{name} must be from {low} to {high}; got {value}"
        for name, value, low, high in (
            ("merge_distance", settings.merge_distance, 0, 1000),
            ("foreground", settings.foreground, 0, 2),
            ("seed_level", settings.seed_level, 0, 1),
            ("min_area_px", settings.min_area_px, 1, 2**31 - 1),
        )
        if not _lies_within(value, low, high)
    ]
    faults += [
        f"{name} must be one of {', '.join(known)}; got {value!r}"
        for name, value, known in (
            ("size", settings.size, SIZES),
            ("erosion", settings.erosion, EROSIONS),
        )
        if value not in known
    ]
    if faults:
        raise ConfigError("; ".join(faults))


def _lies_within(value: object, low: int, high: int) -> bool:
    """Return whether a value, of whatever type a file may give, is a number in the range."""
    return isinstance(value, (int, float)) and isfinite(value) and low <= value <= high
