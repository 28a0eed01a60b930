"""One pass of a network over tiles of equal shape, and what passes add up to.

What leaves a pass is rounded as it is stored, on the device that computed it: embeddings to
float16, probabilities to 0…255.  So a third of the bytes are copied back, and what is clustered
on the device is what would have been read from a store.

Batch norms are folded into the convolutions before them where it is certain that nothing stands
between: 10 % less time on a CPU core (the bundled model, 520×704 px), and a third of the kernels
that an accelerator has to be told of.

``torch.compile`` is not used.  Kernels that it fuses round elsewhere than PyTorch's own (0.1 % of
the stored numbers differ), so the embedding of a field would depend on whether its run was long
enough to compile for, and a resumed run would mix both.  On one CPU core it saves 23 % of the
time after half a minute of compiling for each shape of window, and needs a C++ compiler.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cellseg_cli.networks import resnet
from cellseg_cli.networks.allocator import keep_freed_memory
from cellseg_cli.networks.architecture import Embedder, Output
from cellseg_cli.networks.beside import ConvolveBeside
from cellseg_cli.networks.devices import computes_bf16
from cellseg_cli.networks.views import View


class Rounded(NamedTuple):
    """What a network says of a batch, as it is stored.

    Attributes
    ----------
    values
        (B, E, H, W) float16.
    classes
        (B, 3, H, W) uint8 probabilities × 255 of background, interior, border, or None.
    """

    values: Tensor
    classes: Tensor | None


class Network:
    """A network on its device, in the precision that is fastest there.

    Parameters
    ----------
    model
        In evaluation mode; a copy is made for the device.
    target
        The device.
    view
        How the network looks at images; by default nothing stands between them and it.
    """

    def __init__(self, model: Embedder, target: torch.device, view: View = View()) -> None:
        if target.type == "cpu":
            keep_freed_memory()
        self.target = target
        self._bf16 = computes_bf16(target)
        network = folded(model)
        if self._bf16:
            _round_convolutions(network)
        self._resizes = view.factor != 1
        if not view.is_plain:
            network = view.through(network, model.architecture.channels)
        self._model = network.to(target).to(memory_format=torch.channels_last)

    @property
    def input_dtype(self) -> torch.dtype:
        """What images may be rounded to before they are copied to the device.

        The first layer of every encoder and decoder is a convolution, which rounds its input to
        bfloat16 where the network computes in it; what is resized before is rounded after.
        """
        return torch.bfloat16 if self._bf16 and not self._resizes else torch.float32

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Rounded:
        """The network's output for images (B, C, H, W) on the device; H, W multiples of stride."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.target.type, torch.bfloat16, enabled=self._bf16):
            output: Output = self._model(images)
        classes = None
        if output.classes is not None:
            shares = torch.softmax(output.classes, dim=1)
            classes = shares.mul(255).round().to(torch.uint8).contiguous()
        return Rounded(output.embedding.half().contiguous(), classes)


def folded(model: nn.Module) -> nn.Module:
    """A copy of a model as passes run it.

    It has no batch norms that follow a convolution directly, and the weights of
    :class:`ConvolveBeside` are added up.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for before, after in _in_sequence(module):
            convolution, norm = getattr(module, before), getattr(module, after)
            known = type(convolution) is nn.Conv2d or isinstance(convolution, ConvolveBeside)
            if known and type(norm) is nn.BatchNorm2d:
                fused = fuse_conv_bn_eval(convolution, norm)
                prepared = fused.prepared() if isinstance(fused, ConvolveBeside) else fused
                setattr(module, before, prepared)
                setattr(module, after, nn.Identity())
    return model


def _round_convolutions(model: nn.Module) -> None:
    """Round weights to bfloat16 once, as autocast would for every pass anew."""
    for module in model.modules():
        if type(module) in {nn.Conv2d, nn.ConvTranspose2d}:
            module.to(torch.bfloat16)


def _in_sequence(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a module's parts of which one takes nothing but what the other gives."""
    if type(module) is nn.Sequential:
        yield from pairwise(name for name, _ in module.named_children())
    elif isinstance(module, resnet.Encoder):
        yield "conv1", "bn1"
    elif isinstance(module, resnet.Block):
        yield from (("conv1", "bn1"), ("conv2", "bn2"))


@dataclass(frozen=True)
class DeviceUse:
    """What a device has done since its network was loaded.

    Attributes
    ----------
    busy_s
        On the CPU the seconds inside passes, added up over threads; on an accelerator the
        seconds during which at least one pass was queued or running.
    passes, tiles, pixels
        Passes of the network, tiles that went through, and pixels of these tiles with their
        halos.
    batch_size
        Tiles of the longest pass so far.
    halvings
        How often passes became shorter because the device had no memory left.
    """

    busy_s: float = 0.0
    passes: int = 0
    tiles: int = 0
    pixels: int = 0
    batch_size: int = 0
    halvings: int = 0


class Meter:
    """Adds up what threads do on one device."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._use = DeviceUse()

    def add(self, busy_s: float, sizes: Sequence[int] = (), px: int = 0) -> None:
        """Add time, and passes that are over: the tiles of each, and the pixels of one tile."""
        with self._lock:
            use = self._use
            self._use = replace(
                use,
                busy_s=use.busy_s + busy_s,
                passes=use.passes + len(sizes),
                tiles=use.tiles + sum(sizes),
                pixels=use.pixels + px * sum(sizes),
                batch_size=max(use.batch_size, *sizes, 0),
            )

    def halved(self) -> None:
        """Count that passes became shorter."""
        with self._lock:
            self._use = replace(self._use, halvings=self._use.halvings + 1)

    @property
    def use(self) -> DeviceUse:
        """What has been added so far."""
        with self._lock:
            return self._use
