"""The work of the stage ``embed`` on one field: image in, embedding in the store.

A field whose sides are at most one slab of the store (4096 px) is read, embedded and written at
once.  A larger one is measured strip by strip and then embedded slab by slab, each with the
surroundings that its tiles need, so that it is never whole in memory; slabs are independent and
may be done on different threads, processes or machines.  The scale of the pixel values is that
of the whole field in both cases.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellseg_cli.arrays import SHARD_PX, Region, slabs
from cellseg_cli.config import EmbedSettings
from cellseg_cli.engine.tasks import Clock, Produced, Stop, Use
from cellseg_cli.errors import CellsegError, CheckpointError, InputError
from cellseg_cli.images.decode import OpenImage, Planes, load_image, open_image
from cellseg_cli.images.normalise import (
    Normalisation,
    apply,
    check_usable,
    fit_channels,
    measure,
    survey_regions,
)
from cellseg_cli.images.source import Source
from cellseg_cli.store import FieldRow, Store

if TYPE_CHECKING:
    from cellseg_cli.networks.predict import Predictor
    from cellseg_cli.networks.views import View


@dataclass(frozen=True)
class Network:
    """The model of a run, as any process can come by it.

    Attributes
    ----------
    path, fingerprint
        The model file, and what it must be: another process may see another file there.
    settings
        Tiles, batch size and device.
    planes
        What to take of a stack.
    claims
        Whether each process takes an accelerator of its own.
    passes
        At a time on the CPU of each process; None: as many as threads bring fields.
    """

    path: Path
    fingerprint: str
    settings: EmbedSettings
    planes: Planes
    claims: bool = False
    passes: int | None = None

    @property
    def predictor(self) -> Predictor:
        """The network on its device, loaded once in each process."""
        from cellseg_cli.networks.predict import Predictor

        wanted = self.settings.device
        if self.claims:
            from cellseg_cli.networks.devices import claim_device

            wanted = claim_device(wanted)
        predictor = Predictor.resident(
            self.path,
            device=wanted,
            tile_px=self.settings.tile_px,
            halo_px=self.settings.halo_px,
            batch_size=self.settings.batch_size,
            cores=self.passes,
            view=view_of(self.settings),
        )
        if predictor.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{self.path} is another model on {socket.gethostname()} than where the run was "
                "started; give a model file that all machines share"
            )
        return predictor

    @property
    def takes_stains(self) -> bool:
        """Whether three channels that are no colours suit: chosen so, or learned from such."""
        learned = bool(self.predictor.header.training.get("stains"))
        return learned or self.planes.channel is not None

    def use(self) -> Use:
        """What the device of this process has done; nothing where there is no network."""
        try:
            use = self.predictor.use()
        except CellsegError:  # said by the task that needed the network
            return Use()
        return Use(use.busy_s, use.batch_size)

    def whole(self, row: FieldRow, clock: Clock) -> tuple[np.ndarray, Normalisation]:
        """The image of a field, (C, Y, X) float32 as the network takes it, and its scale."""
        header = self.predictor.header
        with clock.on("read"):
            loaded = load_image(Source.of(row), self.planes)
            image = loaded.region(slice(None), slice(None))  # (C, Y, X), dtype as stored
            check_usable(image)
            image = fit_channels(
                image, header.in_channels, colour=loaded.colour, stains=self.takes_stains
            )
            norm = measure(image, header.low_percentile, header.high_percentile)
            return apply(image, norm), norm

    def scale(self, row: FieldRow, clock: Clock) -> Normalisation:
        """The scale of a field that is not read at once; refuses what cannot be used."""
        header = self.predictor.header
        with clock.on("read"), open_image(Source.of(row), self.planes) as image:
            return survey_regions(
                image,
                header.in_channels,
                header.low_percentile,
                header.high_percentile,
                stains=self.takes_stains,
            )

    def slab(
        self, row: FieldRow, norm: Normalisation, slab: Region, clock: Clock, stop: Stop
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Embedding (E, y, x) float16 and classes (3, y, x) uint8 of one slab of a field."""
        with open_image(Source.of(row), self.planes) as image:
            if image.shape[1:] != (row.height, row.width):
                raise InputError(
                    f"the image was {row.height}×{row.width} px when the run began and is "
                    f"{image.shape[1]}×{image.shape[2]} px now; run the same command again"
                )
            read = _reader(image, norm, self.predictor.header.in_channels, clock, stop)
            with clock.on("network"):
                made = self.predictor.embed_region(read, image.shape[1:], slab)
        # reading happened inside
        clock.seconds["network"] -= clock.seconds.get("read", 0.0)
        return made.values, made.classes


def view_of(settings: EmbedSettings) -> View:
    """How a network is to look at tiles."""
    from cellseg_cli.networks.views import View

    return View(settings.scale, settings.tta)


def _reader(
    image: OpenImage, norm: Normalisation, channels: int, clock: Clock, stop: Stop
) -> Callable[[slice, slice], np.ndarray]:
    def read(rows: slice, columns: slice) -> np.ndarray:
        stop.check()
        with clock.on("read"):
            values = image.region(rows, columns)
            return apply(fit_channels(values, channels, colour=image.colour), norm)

    return read


def slabs_of(row: FieldRow) -> tuple[Region, ...]:
    """The slabs that a field is embedded in; none for a field that is embedded at once."""
    assert row.height is not None and row.width is not None
    if max(row.height, row.width) <= SHARD_PX:
        return ()
    return tuple(slabs((row.height, row.width)))


@dataclass(frozen=True)
class EmbedWork:
    """What ``embed`` does to a field."""

    store: Store
    network: Network

    def parts(self, row: FieldRow) -> int:
        """The number of slabs of a large field."""
        return len(slabs_of(row))

    def whole(self, row: FieldRow, mark: str, stop: Stop) -> Produced:
        """Read → normalise → network → write → mark."""
        clock = Clock()
        image, norm = self.network.whole(row, clock)
        stop.check()
        with clock.on("network"):
            made = self.network.predictor.embed(image)
        stop.check()
        with clock.on("write"):
            self.store.write_embedding(row.id, made.values, made.classes)
            self._mark(row, mark, norm)
        written = made.values.nbytes + (0 if made.classes is None else made.classes.nbytes)
        return Produced(
            row.pixels,
            seconds=clock.seconds,
            bytes_read=row.size_bytes or 0,
            bytes_written=written,
        )

    def begin(self, row: FieldRow, mark: str, stop: Stop) -> Normalisation:
        """Measure a large field and make its arrays."""
        del mark
        norm = self.network.scale(row, Clock())
        stop.check()
        self.store.embedding_writer(row.id, self._shape(row), classes=self._classes)
        return norm

    def part(self, row: FieldRow, begun: Normalisation, index: int, stop: Stop) -> Produced:
        """Embed and write one slab."""
        clock, slab = Clock(), slabs_of(row)[index]
        made = [one for one in self.network.slab(row, begun, slab, clock, stop) if one is not None]
        with clock.on("write"):
            writer = self.store.embedding_part_writer(
                row.id, self._shape(row), classes=self._classes
            )
            writer.write(slab, *made)
        pixels = made[0][0].size
        written = sum(one.nbytes for one in made)
        return Produced(pixels, seconds=clock.seconds, bytes_written=written)

    def finish(self, row: FieldRow, mark: str, begun: Normalisation, stop: Stop) -> Produced:
        """Bring a large field to the disk and mark it."""
        stop.check()
        clock = Clock()
        with clock.on("write"):
            self.store.sync_embedding(row.id)
            self._mark(row, mark, begun)
        return Produced(0, seconds=clock.seconds, bytes_read=row.size_bytes or 0)

    def is_done(self, row: FieldRow, mark: str) -> bool:
        """Whether an earlier attempt has marked the field."""
        return self.store.done_fingerprint(row.id, "embed") == mark

    def discard(self, field_id: str) -> None:
        """Take the embedding away, and what was made of it."""
        self.store.clear(field_id, "embed")

    def check_place(self) -> None:
        """Raise StoreError where this process does not see the store."""
        self.store.check_seen()

    def use(self) -> Use:
        """Of this process's network."""
        return self.network.use()

    @property
    def _classes(self) -> bool:
        return self.network.predictor.header.architecture.classes_head

    def _shape(self, row: FieldRow) -> tuple[int, int, int]:
        assert row.height is not None and row.width is not None
        return len(self.network.predictor.header.channels), row.height, row.width

    def _mark(self, row: FieldRow, mark: str, norm: Normalisation) -> None:
        device = self.network.predictor.device
        self.store.mark_done(
            row.id, "embed", mark, {"normalisation": asdict(norm), "device": device}
        )
