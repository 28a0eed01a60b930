"""Which training settings can be worked with: refused together, before any image is read."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from cellseg_cli.config import PretrainSettings, TrainSettings
from cellseg_cli.errors import ConfigError
from cellseg_cli.networks.architecture import MAX_LEVELS
from cellseg_cli.networks.scaled import fits, scale_fault
from cellseg_cli.sizes import parse_size

#: Lowest and highest value of each number that the rest of the code relies on.
_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, inf),
    "minutes": (0, 1e6),
    "batch_size": (1, inf),
    "devices": (1, inf),
    "seed": (0, 2**63 - 1),
    "validate_every": (0, inf),
    "sampled_pixels": (2, inf),
    "window_px": (2, inf),
    "sampled_instances": (1, inf),
    "instances_per_crop": (1, inf),
    "grid_points": (2, inf),
    "temperature": (1e-4, inf),
    "learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "ema_decay": (0, 1),
    "balance": (0, 1),
    "scale_min": (0.01, 100),
    "scale_max": (0.01, 100),
    "exact_share": (0, 1),
    "low_percentile": (0, 100),
    "high_percentile": (0, 100),
    "fields_share": (1e-6, 1),
    "pseudo_weight": (1e-6, 1e6),
    "pseudo_level": (0, 1),
}

#: The same for pretraining.
_PRETRAIN_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, inf),
    "batch_size": (2, inf),  # a place is told apart from others
    "seed": (0, 2**63 - 1),
    "scale_min": (0.01, 100),
    "scale_max": (0.01, 100),
    "learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "queue_length": (1, inf),
    "temperature": (1e-4, inf),
    "momentum": (0, 1),
    "dense_weight": (0, 1),
    "low_percentile": (0, 100),
    "high_percentile": (0, 100),
}


def check_settings(settings: TrainSettings) -> None:
    """Raise ConfigError for numbers out of range (NaN is), all of them in one message."""
    _raise(
        _faults(settings, _RANGES)
        + _scale_faults(settings)
        + _recipe_faults(settings)
        + _data_faults(settings)
    )


def check_pretrain_settings(settings: PretrainSettings) -> None:
    """As :func:`check_settings`, of pretraining."""
    faults = _faults(settings, _PRETRAIN_RANGES)
    if settings.queue_length < settings.batch_size:
        faults.append(
            f"queue_length={settings.queue_length} is below batch_size={settings.batch_size}"
        )
    _raise(faults)


def _faults(
    settings: TrainSettings | PretrainSettings, ranges: Mapping[str, tuple[float, float]]
) -> list[str]:
    """Return what is wrong with the numbers that both kinds of training have."""
    faults = [
        f"{name}={value} is not in {low:g}..{high:g}"
        for name, (low, high) in ranges.items()
        if not low <= (value := getattr(settings, name)) <= high
    ]
    for low_name, high_name in (
        ("scale_min", "scale_max"),
        ("low_percentile", "high_percentile"),
    ):
        low, high = getattr(settings, low_name), getattr(settings, high_name)
        if low > high or (low == high and high_name == "high_percentile"):
            faults.append(f"{low_name}={low} is not below {high_name}={high}")
    # Batch statistics need two pixels at the coarsest stage, even of a single crop.
    # Whether `levels` can be had is the architecture's to say.
    stride = 2 ** min(max(settings.levels, 1), MAX_LEVELS)
    if settings.crop_px < 2 * stride:
        faults.append(
            f"crop_px={settings.crop_px} is not in {2 * stride}..inf for levels={settings.levels}"
        )
    elif settings.crop_px % stride:
        below = settings.crop_px // stride * stride
        faults.append(
            f"crop_px={settings.crop_px} is no multiple of {stride} (levels={settings.levels}); "
            f"choose {below} or {below + stride}"
        )
    return faults


def _scale_faults(settings: TrainSettings) -> list[str]:
    """Return what is wrong with the working scales to choose from."""
    if not settings.scales:
        return ["scales is empty"]
    faults = [fault for scale in settings.scales if (fault := scale_fault(scale))]
    stride = 2 ** min(max(settings.levels, 1), MAX_LEVELS)
    if not faults and not any(fits(stride, scale) for scale in settings.scales):
        faults = [f"none of scales={list(settings.scales)} fits levels={settings.levels}; add 1"]
    return faults


def _recipe_faults(settings: TrainSettings) -> list[str]:
    """Return what a recipe cannot do without."""
    faults = []
    if settings.recipe == "binary" and not settings.classes_head:
        faults.append(
            "recipe=binary finds its instances by the classes head; leave classes_head=true"
        )
    if settings.recipe == "binary" and settings.sampler == "foreground":
        faults.append(
            "sampler=foreground takes no background, of which recipe=binary tells cells apart; "
            "use window, uniform, box or contour"
        )
    return faults


def _data_faults(settings: TrainSettings) -> list[str]:
    """Return what is wrong with the weights of data sets and the memory for fields."""
    faults = [f"weights={one} is not above 0" for one in settings.weights if not 0 < one < inf]
    try:
        parse_size(settings.cache, "cache")
    except ConfigError as error:
        faults.append(str(error))
    return faults


def _raise(faults: list[str]) -> None:
    if faults:
        raise ConfigError("; ".join(faults))
