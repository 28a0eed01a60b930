"""Settings: one frozen value per stage.

The dataclasses below are the only place where a default is told.  Help texts
quote them and stores record them.  Fields whose value decides the output are
kept apart from those that only decide how the work is carried out
(:class:`RunSettings`): the first go into fingerprints, the second never do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cellseg_cli.errors import ConfigError


@dataclass(frozen=True)
class EmbedSettings:
    """What `embed` does to a field.

    Attributes
    ----------
    model
        Name of a bundled model or path of a checkpoint.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:I``.
    channel, z, t
        Planes to take of a stack; ``None`` leaves the choice to the image,
        which must then have only one.
    tile_px, halo_px
        Side of a network tile and the part of it that is thrown away at each
        inner border, both in pixels and multiples of the network's stride (16
        for four encoder stages).
    batch_size
        Tiles per pass on an accelerator, 0 for as many as fit; one tile per pass on the CPU.
    include, exclude
        Globs on the path relative to the root.
    pattern
        How file names tell plate, well, field, channel, z and t: the name of a microscope's
        pattern, ``none``, or a regular expression with groups of these names; ``None`` finds it.
    scale
        Working scale, 0.25 to 4 in steps of 0.25: the network sees images so many times as
        large, what it says of them comes back in their own pixels.  Small cells want 1.5 to 2,
        at the square of that in time and memory.  ``None``: the model's own.
    tta
        Test-time augmentation: the mean over turned copies of each tile.  ``flips`` takes four
        times as long as ``none``, ``dihedral`` (with quarter turns) eight times.
    """

    model: str = "nuclei"
    device: str = "auto"
    channel: tuple[int, ...] | None = None
    z: str | None = None
    t: int | None = None
    tile_px: int = 1024
    halo_px: int = 64
    batch_size: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pattern: str | None = None
    scale: float | None = None
    tta: Literal["none", "flips", "dihedral"] = "none"

    # TOML writes the number of a plane without quotes: z = 3 is as good as z = "3".
    __pydantic_config__: ClassVar[dict[str, object]] = {"coerce_numbers_to_str": True}


@dataclass(frozen=True)
class ClusterSettings:
    """How an embedding becomes a label image; ``None`` takes the model's tuned value.

    Attributes
    ----------
    method
        ``auto`` (the default of the embedding's kind), ``seeds``, ``grid``,
        ``linkage`` or ``watershed``.
    merge_distance
        Distance at which `linkage` and `grid` stop merging: cosine distance for
        contrastive embeddings, distance of the predicted centres over their mean
        bandwidth for spatial ones.
    foreground
        Level in [0, 1] from which a pixel belongs to a cell.
    seed_level
        Level in [0, 1] that a pixel needs to start an instance (`seeds`).
    min_area_px
        Smaller instances are dropped.
    size
        Working size of `linkage` and `grid`: ``160x128``, ``half`` or ``full``.
    erosion
        After `linkage`: ``grow`` erodes and grows back, ``origin`` only erodes,
        ``none`` does neither.
    tile_px
        Side of the windows that a field with a longer side is clustered in,
        even. ``None`` clusters fields up to 4096 × 4096 px whole, and larger
        ones in windows of 2048 px.
    overlap_px
        How far a window reaches into the next ones, even: longer cells cost a
        second look.
    """

    method: Literal["auto", "seeds", "grid", "linkage", "watershed"] = "auto"
    merge_distance: float | None = None
    foreground: float | None = None
    seed_level: float | None = None
    min_area_px: int | None = None
    size: Literal["160x128", "half", "full"] | None = None
    erosion: Literal["grow", "origin", "none"] | None = None
    tile_px: int | None = None
    overlap_px: int = 128


@dataclass(frozen=True)
class RunSettings:
    """How the work is carried out; nothing here changes a pixel of the output.

    Attributes
    ----------
    threads
        Fields at a time, in each process where there are several; 0 means one per core, or the
        cores shared among the processes.
    workers
        Processes on this machine; 0 means that the work is done in this one.
    scheduler
        Address (``tcp://host:port``) of a dask scheduler, or the file that it has written, to
        do the work on its workers.
    cluster, cluster_config
        Batch system that dask-jobqueue is to start workers by, and a TOML file with its options.
    memory
        What the run may take on this machine in all, such as ``8GB``; what cannot fit is
        refused before it begins.
    part
        ``"i/n"``, 1 ≤ i ≤ n: this run does every n-th field only.
    retry_failed
        Do only the fields that failed when they were last tried.
    overwrite
        Replace an output that was made with other settings.
    dry_run
        Say what would be done; write nothing.
    device
        Where `cluster` makes the label images of whole fields: ``cpu``, ``auto``, ``cuda`` or
        ``cuda:I``.  The same on all of them; a CPU core needs about 0.01 s for 520×704 px.
    """

    threads: int = 0
    workers: int = 0
    scheduler: str | None = None
    cluster: Literal["slurm", "pbs", "lsf"] | None = None
    cluster_config: Path | None = None
    memory: str | None = None
    part: str | None = None
    retry_failed: bool = False
    overwrite: bool = False
    dry_run: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        named = {"workers": self.workers, "scheduler": self.scheduler, "cluster": self.cluster}
        chosen = [f"--{name}" for name, value in named.items() if value]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} exclude each other: choose one")
        if self.cluster_config is not None and self.cluster is None:
            raise ConfigError("--cluster-config belongs to --cluster slurm, pbs or lsf")
        if self.retry_failed and self.overwrite:
            raise ConfigError(
                "--retry-failed does what failed before, --overwrite does everything anew: "
                "choose one"
            )


@dataclass(frozen=True)
class TrainSettings:
    """How a model is learned.

    Attributes
    ----------
    recipe
        ``spatial``, ``contrastive`` or ``binary`` (contrast of cells and background
        only; a classes head that reads the embedding finds the instances).
    encoder
        Any timm ``features_only`` model.
    levels
        Encoder stages used, from stride 2 on.
    decoder, decoder_channels
        ``unet``, ``refinenet`` or ``upscale``; channels of its finest stage, doubled per
        coarser stage.
    in_channels
        Image channels the network takes; grey images are repeated.
    guides
        What the network is shown besides: ``contrast`` (local, in the image's place),
        ``edges``, ``contours`` (a channel each).
    embedding_dim
        Unit components per pixel (`contrastive` and `binary`).
    classes_head
        Add the background / interior / border head.
    sampler
        Where `contrastive` and `binary` take their pixels: ``uniform``, ``window``,
        ``foreground`` (windows on instances), ``box`` (the boxes of some instances
        with a margin of 4 px) or ``contour`` (within 3 px of their outlines).
    sampled_pixels, window_px, sampled_instances
        Most pixels of a sample of `uniform`, `box` and `contour`; side of a window
        of `window` and `foreground`; instances per crop that `box` and `contour`
        take a sample of each at most.
    temperature, self_pairs
        Of the contrast; whether a pixel counts as a partner of itself.
    instances_per_crop, grid_points
        `spatial`: instances per crop that enter the loss at most, and points
        per side of the window laid over each.
    steps, batch_size, crop_px
        Optimiser steps, crops per step and process, side of a crop in pixels.
    minutes
        Instead of `steps`: as many as this machine does in that many minutes, found by
        measuring the first ones; decoding before, validations, and tuning after them come on
        top.  0: `steps` hold.
    balance
        Crops are drawn from each group of fields (data set and cell type) in
        proportion to its number of fields to this power: 1 as they come, 0 all
        groups alike.
    optimizer
        ``muon`` (orthogonal steps on the inner convolutions) or ``adamw``.
    learning_rate, schedule, weight_decay, ema_decay
        Of AdamW, or of the weights that Muon leaves to it; the rate rising and falling
        once (``one_cycle``) or ``constant``;
        decay of the averaged weights that are kept, 0 for none.
    augment
        ``full`` (rotation, mirroring; gamma, contrast, brightness, blur, noise) or
        ``origin`` (mirroring left to right, contrast, brightness).
    scale_min, scale_max
        Range of the random zoom.
    exact_share
        Share of the crops that are neither zoomed nor turned but by right angles, so that no
        value of theirs is interpolated.
    scales
        Working scales among which the held-out fields decide at the end; of a larger one
        they must gain 0.005 in mean AP.
    validate_every
        Steps between validations; 0 validates at the end only.
    seed
        Of everything random.
    precision
        ``auto`` (bf16 where the device computes it natively), ``bf16`` or ``fp32``.
    low_percentile, high_percentile
        Normalisation of each field.
    init
        Weights to begin with: an encoder that `pretrain` has left, a model, the folder
        of the run of either, or the name of a bundled model.
    fields_share
        Share of the annotated fields that is learned from, drawn by the seed in each
        group of fields alike, at least one of each; a larger share holds a smaller one.
    weights
        One for each data set, in their order: what each is drawn in proportion to.
        Empty: by `balance` alone, which else holds inside a data set.
    pseudo_weight, pseudo_level
        Pseudo-labelled fields are drawn this often for every time that an annotated one
        is; confidence from which an instance of theirs is learned from.
    cache
        Memory of each process for decoded fields; what does not fit is decoded again
        when it is drawn.
    channel, z, t, pattern
        As of :class:`EmbedSettings`; a `pattern` of None takes files as they are, and
        groups those of plates where no file by itself has truth.
    """

    recipe: Literal["spatial", "contrastive", "binary"] = "spatial"
    encoder: str = "resnet18"
    levels: int = 4
    decoder: Literal["unet", "refinenet", "upscale"] = "unet"
    decoder_channels: int = 16
    in_channels: int = 3
    guides: tuple[Literal["contrast", "edges", "contours"], ...] = ()
    embedding_dim: int = 8
    classes_head: bool = True
    sampler: Literal["uniform", "window", "foreground", "box", "contour"] = "window"
    sampled_pixels: int = 2500
    window_px: int = 40
    sampled_instances: int = 8
    temperature: float = 0.2
    self_pairs: bool = False
    instances_per_crop: int = 40
    grid_points: int = 56
    steps: int = 2000
    minutes: float = 0.0
    batch_size: int = 4
    crop_px: int = 256
    balance: float = 0.5
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 1.5e-3
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    augment: Literal["full", "origin"] = "full"
    scale_min: float = 0.65
    scale_max: float = 1.5
    exact_share: float = 0.0
    scales: tuple[float, ...] = (1.0, 1.5)
    validate_every: int = 500
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    devices: int = 1
    low_percentile: float = 1.0
    high_percentile: float = 99.8
    init: str | None = None
    fields_share: float = 1.0
    weights: tuple[float, ...] = ()
    pseudo_weight: float = 0.5
    pseudo_level: float = 0.7
    cache: str = "4GB"
    channel: tuple[int, ...] | None = None
    z: str | None = None
    t: int | None = None
    pattern: str | None = None

    # as of EmbedSettings
    __pydantic_config__: ClassVar[dict[str, object]] = {"coerce_numbers_to_str": True}


@dataclass(frozen=True)
class PretrainSettings:
    """How an encoder is learned from images without annotations.

    Attributes
    ----------
    encoder, levels, in_channels
        As of :class:`TrainSettings`, whose run takes the encoder over.
    steps, batch_size, crop_px
        Optimiser steps, places per step (each in two views), side of a view in pixels.
    scale_min, scale_max
        Range of the random zoom, drawn for each view by itself.
    learning_rate, weight_decay
        Stochastic gradient descent; the rate falls along half a cosine.  DenseCL's 0.3 for 256
        views, in proportion to the views of a step (arXiv 1706.02677), and a little less.
    queue_length
        Keys of earlier batches that a view is told apart from: 32 batches, where DenseCL keeps
        256 of a far larger set; of a few hundred fields a longer queue shows each again and
        again.
    temperature
        Of the contrast.
    momentum
        How slowly the key network follows: what it keeps of itself in a step.  DenseCL's 0.999
        is for a hundred thousand steps and more; in a few hundred it keeps the random start
        (arXiv 1911.05722 finds 0.99 nearly as good).
    dense_weight
        Share of the dense loss; the global one has the rest.  This and the temperature are
        DenseCL's (arXiv 2011.09157).
    seed
        Of everything random.
    precision, device
        As of :class:`TrainSettings`.
    low_percentile, high_percentile
        Normalisation of each field.
    channel, z, t, include, exclude, pattern
        As of :class:`EmbedSettings`.
    """

    encoder: str = "resnet18"
    levels: int = 4
    in_channels: int = 3
    steps: int = 2000
    batch_size: int = 32
    crop_px: int = 128
    scale_min: float = 0.65
    scale_max: float = 1.5
    learning_rate: float = 0.03
    weight_decay: float = 1e-4
    queue_length: int = 1024
    temperature: float = 0.2
    momentum: float = 0.99
    dense_weight: float = 0.5
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    low_percentile: float = 1.0
    high_percentile: float = 99.8
    channel: tuple[int, ...] | None = None
    z: str | None = None
    t: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pattern: str | None = None

    # as of EmbedSettings
    __pydantic_config__: ClassVar[dict[str, object]] = {"coerce_numbers_to_str": True}


#: The table inside ``[cluster]`` that holds a table of settings for each cell type.
BY_TYPE = "by_type"


def field_names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of the settings of `cls`, in order."""
    return tuple(field.name for field in dataclasses.fields(cls))


def parse_part(part: str) -> tuple[int, int]:
    """Return (i, n) of ``"i/n"`` with 1 ≤ i ≤ n.

    >>> parse_part("2/8")
    (2, 8)
    """
    left, slash, right = part.partition("/")
    if not (slash and left.isdecimal() and right.isdecimal()):
        raise ConfigError(f"--part {part!r} is not of the form i/n, such as 1/8")
    index, count = int(left), int(right)
    if not 1 <= index <= count:
        raise ConfigError(
            f"--part {part}: i must lie in 1..n; number array tasks from 1, "
            f"as in sbatch --array=1-{right}"
        )
    return index, count
