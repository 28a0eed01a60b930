"""A trained network over one field of any size, tile by tile.

A field goes through in tiles that overlap by twice the halo; of each tile only
the core is kept, so every pixel comes from exactly one tile.  The halo is
context: input only, thrown away.

Determinism: on the CPU one tile is one pass on one thread, so the embedding of
a field depends neither on the batch size nor on the number of workers nor on
what else runs.  On CUDA tiles are batched, and convolution algorithms may
differ with the batch; ``tests/networks/test_predict.py`` holds the result to
0.1 of the CPU's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.errors import ConfigError, InputError, LimitError
from cellseg_cli.networks.architecture import Embedder, Output
from cellseg_cli.networks.checkpoint import ModelHeader, find_model, fingerprint, load_model
from cellseg_cli.networks.devices import computes_bf16, resolve_device
from cellseg_cli.tiling import Tile, tiles

#: Embeddings are assembled in memory; a field whose embedding would need more
#: than this is refused before any memory is taken.
MAX_EMBEDDING_BYTES = 16 << 30


@dataclass(frozen=True)
class Embedding:
    """What is known of every pixel of one field.

    Attributes
    ----------
    values
        (E, Y, X) float16; the meaning of E stands in the model's header.
    classes
        (3, Y, X) uint8 probabilities × 255 of background, interior, border;
        None for a model without that head.
    """

    values: NDArray[np.float16]
    classes: NDArray[np.uint8] | None


def check_tiling(stride: int, tile_px: int, halo_px: int, batch_size: int) -> None:
    """Raise ConfigError unless tiles and halos are multiples of the stride and leave a core."""
    if tile_px % stride or halo_px % stride or tile_px <= 2 * halo_px or halo_px < 0:
        raise ConfigError(
            f"tile_px={tile_px} and halo_px={halo_px} must be multiples of {stride} "
            "with tile_px > 2 × halo_px ≥ 0"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1")


class Predictor:
    """A network on its device.

    Parameters
    ----------
    model
        In evaluation mode.
    header
        Of that model.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:I``.
    tile_px, halo_px
        Side of a tile and width of its discarded rim, pixels; multiples of the
        network's stride.
    batch_size
        Tiles per pass on CUDA.
    model_fingerprint
        SHA-256 of the model file.
    """

    def __init__(
        self,
        model: Embedder,
        header: ModelHeader,
        *,
        device: str = "auto",
        tile_px: int = 1024,
        halo_px: int = 64,
        batch_size: int = 8,
        model_fingerprint: str = "",
    ) -> None:
        check_tiling(header.architecture.stride, tile_px, halo_px, batch_size)
        self._target = resolve_device(device)
        self._bf16 = computes_bf16(self._target)
        self._model = model.eval().to(self._target).to(memory_format=torch.channels_last)
        self._tile_px, self._halo_px, self._batch_size = tile_px, halo_px, batch_size
        # One pass at a time on an accelerator: two would only share it and its memory.
        self._turn: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if self._target.type == "cpu" else threading.Lock()
        )
        self.header = header
        self.device = str(self._target)
        self.fingerprint = model_fingerprint

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str = "auto",
        tile_px: int = 1024,
        halo_px: int = 64,
        batch_size: int = 8,
    ) -> Predictor:
        """Return the predictor of a bundled model's name or a model file."""
        path = find_model(model)
        network, header = load_model(path)
        return cls(
            network,
            header,
            device=device,
            tile_px=tile_px,
            halo_px=halo_px,
            batch_size=batch_size,
            model_fingerprint=fingerprint(path),
        )

    def embed(self, image: NDArray[np.float32]) -> Embedding:
        """Return the embedding of one normalised field.

        Parameters
        ----------
        image
            (C, Y, X) float32 with C = ``header.in_channels``.

        Raises
        ------
        InputError
            The number of channels differs, or the network's output is not finite.
        LimitError
            The embedding would exceed ``MAX_EMBEDDING_BYTES``.
        """
        channels, height, width = image.shape
        if channels != self.header.in_channels:
            raise InputError(
                f"got {channels} channels, the model {self.header.name} takes "
                f"{self.header.in_channels}; choose with --channel"
            )
        components = len(self.header.channels)
        if (needed := height * width * (2 * components + 3)) > MAX_EMBEDDING_BYTES:
            raise LimitError(
                f"{height}×{width} px need {needed / 2**30:.1f} GiB of embedding, "
                f"the limit is {MAX_EMBEDDING_BYTES >> 30} GiB; cut the field into parts"
            )
        values = np.empty((components, height, width), np.float16)
        has_classes = self.header.architecture.classes_head
        classes = np.empty((3, height, width), np.uint8) if has_classes else None
        plan = tiles((height, width), tile_px=self._tile_px, halo_px=self._halo_px)
        for batch in _batches(plan, 1 if self._target.type == "cpu" else self._batch_size):
            for tile, value, probability in self._pass(image, batch):
                values[(slice(None), *tile.core)] = value
                if classes is not None and probability is not None:
                    classes[(slice(None), *tile.core)] = probability
        if not np.isfinite(values).all():
            raise InputError(
                f"the model {self.header.name} gives values that are not finite for this image"
            )
        return Embedding(values, classes)

    def _pass(
        self, image: NDArray[np.float32], batch: list[Tile]
    ) -> Iterator[tuple[Tile, NDArray[np.float16], NDArray[np.uint8] | None]]:
        stride = self.header.architecture.stride
        crops = [_padded(image[(slice(None), *tile.window)], stride) for tile in batch]
        with self._turn, _single_thread(self._target.type == "cpu"):
            output = self._run(torch.from_numpy(np.stack(crops)))
            values = output.embedding.half().cpu().numpy()
            classes = None if output.classes is None else _as_bytes(output.classes)
        for index, tile in enumerate(batch):
            core = (slice(None), *tile.core_in_window)
            yield tile, values[index][core], None if classes is None else classes[index][core]

    @torch.inference_mode()
    def _run(self, images: Tensor) -> Output:
        images = images.to(self._target, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(self._target.type, torch.bfloat16, enabled=self._bf16):
            output: Output = self._model(images)
        return output


def _as_bytes(logits: Tensor) -> NDArray[np.uint8]:
    probabilities = torch.softmax(logits, dim=1).mul(255).round().to(torch.uint8)
    result: NDArray[np.uint8] = probabilities.cpu().numpy()
    return result


def _padded(crop: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Return `crop` (C, Y, X) continued to multiples of `stride` at the lower and right end.

    Mirrored where the crop is large enough, since a hard edge looks like the
    rim of a cell; else by its edge values.
    """
    _, height, width = crop.shape
    below, right = -height % stride, -width % stride
    if not (below or right):
        return np.ascontiguousarray(crop, np.float32)
    mode = "reflect" if below < height and right < width else "edge"
    padded = np.pad(crop, ((0, 0), (0, below), (0, right)), mode=mode)  # type: ignore[call-overload]
    return np.ascontiguousarray(padded, np.float32)


def _batches(plan: tuple[Tile, ...], size: int) -> Iterator[list[Tile]]:
    """Yield tiles of equal window shape, at most `size` at a time, in the order of the plan."""
    waiting: dict[tuple[int, int], list[Tile]] = {}
    for tile in plan:
        same = waiting.setdefault(tile.shape, [])
        same.append(tile)
        if len(same) == size:
            yield waiting.pop(tile.shape)
    yield from waiting.values()


@contextlib.contextmanager
def _single_thread(wanted: bool) -> Iterator[None]:
    """Compute on the calling thread alone, so that sums run in one order."""
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
