"""InstanSeg (Goldsborough et al. 2024), from scratch: its network, loss and post-processing.

The package has a script for training, but without a limit of time, and with pictures and scores
after every epoch: the loop here is ours, each step that of its `train_epoch`.  Its own: U-Net
with 32 … 256 filters and batch normalisation, two coordinates, two bandwidths and one seed map,
crops of 256 × 256 in batches of 3, flips and quarter turns (its `minimal` augmentation),
percentiles 0.1 and 99.9, Adam at 1e-3, gradients cut at 20, losses in windows of 128 px, and
the post-processing of the model that is deployed (`InstanSeg_Torchscript`), windows of 64 px.
Its losses are Dice and cross-entropy for the first 3 300 steps, then the Lovász hinge and the L1
distance map.  A quarter of an hour of one core has some 300 steps: the first pair is kept for
the part `--hot-start` of the time, by default to the end, since the second one is `a lot slower
to start converging` (its own help).  Also ours: the rate falls along a cosine over the time
(its option for this counts epochs), and images keep their scale (it rescales by the size of a
pixel, which is not known here).
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from instanseg.utils.loss.instanseg_loss import InstanSeg, InstanSeg_Torchscript
from instanseg.utils.models.InstanSeg_UNet import InstanSeg_UNet
from instanseg.utils.tiling import _instanseg_padding
from instanseg.utils.utils import percentile_normalize
from peer_data import Budget, Field, cosine
from peer_scores import Thresholds

BATCH = 3
CROP_PX = 256
RATE = 1e-3
CLIP = 20.0
WIDTHS = (32, 64, 128, 256)


class Replay(torch.nn.Module):
    """Stands in for the network, to run the post-processing alone."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What was said before of this field."""
        return self.answer


@dataclass(frozen=True)
class Trained:
    """A trained InstanSeg with the post-processing of its deployed form."""

    net: torch.nn.Module
    deployed: InstanSeg_Torchscript
    default: Thresholds
    search: Mapping[str, Sequence[Any]]
    of_network: Sequence[str] = ()

    @torch.no_grad()
    def network(self, field: Field, thresholds: Thresholds) -> torch.Tensor:
        """Coordinates, bandwidths and seeds (1, 5, Y', X') of the padded field."""
        image = _normalised(field.image)[None, None].clamp(-2, 3)
        return self.net(_instanseg_padding(image, extra_pad=0)[0])

    @torch.no_grad()
    def instances(self, field: Field, raw: torch.Tensor, thresholds: Thresholds) -> np.ndarray:
        """Pixels in windows around the peaks of the seed map."""
        self.deployed.fcn.answer = raw
        empty = torch.zeros((1, 1, *field.image.shape))
        labels = self.deployed(empty, **thresholds)
        return labels[0, 0].numpy().astype(np.int32)


def train(
    training: Sequence[Field],
    validation: Sequence[Field],
    budget: Budget,
    options: Mapping[str, Any],
) -> tuple[Trained, dict[str, Any]]:
    """Train for the time given; the segmenter, and a record of the training."""
    torch.manual_seed(options["seed"])
    rng = np.random.default_rng(options["seed"])
    rate = options["learning_rate"] or RATE
    method = InstanSeg(
        n_sigma=2, device="cpu", window_size=128, seed_loss_fn="binary_xloss",
        binary_loss_fn_str="dice_loss",
    )  # fmt: skip
    net = InstanSeg_UNet(in_channels=1, out_channels=[[2, 2, 1]], layers=np.array(WIDTHS)[::-1])
    net = method.initialize_pixel_classifier(net, MLP_width=5)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    images = [_normalised(field.image) for field in training]
    truths = [torch.from_numpy(field.truth) for field in training]
    net.train()
    losses: list[float] = []
    hot = True
    while budget.fraction < 1:
        budget.start()
        if hot and budget.fraction >= options["hot_start"]:
            method.update_seed_loss("l1_distance")
            method.update_binary_loss("lovasz_hinge")
            hot = False
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(budget.fraction, 0.01)
        chosen = rng.integers(len(images), size=BATCH)
        pairs = [_crop(images[k], truths[k], rng) for k in chosen]
        batch = torch.stack([image for image, _ in pairs])[:, None]
        loss = method(net(batch), torch.stack([truth for _, truth in pairs])[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        losses.append(float(loss.detach()))
    record = {
        "settings": {
            "batch": BATCH, "crop_px": CROP_PX, "widths": list(WIDTHS), "window_px": 128,
            "learning_rate": f"{rate}, cosine to 1 %", "hot_start": options["hot_start"],
        },
        "steps": len(losses),
        "crops": len(losses) * BATCH,
        "loss": [round(float(part.mean()), 4) for part in np.array_split(losses, 10) if part.size],
        "parameters": sum(part.numel() for part in net.parameters()),
    }  # fmt: skip
    return _deploy(net), record


def _deploy(net: torch.nn.Module) -> Trained:
    """The deployed form, whose network is replaced by one that repeats an answer."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of CUDA, which is not there
        deployed = InstanSeg_Torchscript(net, backbone_dim_in=1)
    deployed.fcn = Replay()
    net.eval()
    names = ("mask_threshold", "seed_threshold", "peak_distance", "overlap_threshold")
    default = {name: getattr(deployed, f"default_{name}") for name in (*names, "window_size")}
    search = {
        "seed_threshold": [0.4, 0.45, 0.5, 0.52, 0.55, 0.6, 0.7, 0.8],
        "mask_threshold": [0.4, 0.47, 0.53, 0.6],
        "peak_distance": [3, 5, 7, 9],
        "overlap_threshold": [0.1, 0.3, 0.5],
        "window_size": [32, 64],
    }
    return Trained(net, deployed, default, search)


def _normalised(image: np.ndarray) -> torch.Tensor:
    """(Y, X) float32, by InstanSeg's percentiles of the whole field."""
    return torch.from_numpy(percentile_normalize(image.copy())[..., 0].copy())


def _crop(
    image: torch.Tensor, truth: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A crop at a random place, flipped and turned; small fields are padded at the far sides."""
    short = [max(0, CROP_PX - size) for size in image.shape]
    if any(short):
        padding = (0, short[1], 0, short[0])
        image = torch.nn.functional.pad(image, padding, value=float(image.min()))
        truth = torch.nn.functional.pad(truth, padding)
    y, x = (int(rng.integers(size - CROP_PX + 1)) for size in image.shape)
    turns, axes = int(rng.integers(4)), [k for k in (0, 1) if rng.random() < 0.5]
    image, truth = (
        torch.rot90(part[y : y + CROP_PX, x : x + CROP_PX], turns).flip(axes)
        for part in (image, truth)
    )
    return image, truth
