"""Which training settings can be worked with: refused together, before any image is read."""

from __future__ import annotations

from math import inf

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError
from cellseg_cli.networks.architecture import MAX_LEVELS

#: Lowest and highest value of each number that the rest of the code relies on.
_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, inf),
    "batch_size": (1, inf),
    "devices": (1, inf),
    "seed": (0, 2**63 - 1),
    "validate_every": (0, inf),
    "sampled_pixels": (2, inf),
    "window_px": (2, inf),
    "instances_per_crop": (1, inf),
    "grid_points": (2, inf),
    "temperature": (1e-4, inf),
    "learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "ema_decay": (0, 1),
    "balance": (0, 1),
    "scale_min": (0.01, 100),
    "scale_max": (0.01, 100),
    "low_percentile": (0, 100),
    "high_percentile": (0, 100),
}


def check_settings(settings: TrainSettings) -> None:
    """Raise ConfigError for numbers out of range (NaN is), all of them in one message."""
    faults = [
        f"{name}={value} is not in {low:g}..{high:g}"
        for name, (low, high) in _RANGES.items()
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
    if settings.crop_px < (least := 2 ** (min(max(settings.levels, 1), MAX_LEVELS) + 1)):
        faults.append(
            f"crop_px={settings.crop_px} is not in {least}..inf for levels={settings.levels}"
        )
    if faults:
        raise ConfigError("; ".join(faults))
