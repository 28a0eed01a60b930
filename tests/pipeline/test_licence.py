"""Whoever begins to use a model for non-commercial use only is told so, once for each output."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cellseg_cli.cli.app import run
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model

TOLD = (
    "the model restricted is for non-commercial use only (licence CC-BY-NC-4.0); "
    "it learned from: cells of others"
)


@pytest.mark.parametrize("command", ["embed", "segment"])
@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", "CC0-1.0"])
def test_the_licence_is_told_on_first_use(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, licence: str
) -> None:
    torch.manual_seed(0)
    architecture = Architecture("spatial", "test_resnet", 2, 4, 1)
    header = ModelHeader("restricted", architecture, licence=licence, data="cells of others")
    save_model(tmp_path / "m.safetensors", Embedder(architecture), header)
    (tmp_path / "images").mkdir()
    cv2.imwrite(
        str(tmp_path / "images" / "a.png"),
        np.zeros((64, 64), np.uint8) + np.arange(64, dtype=np.uint8),
    )
    arguments = [command, str(tmp_path / "images"), "--model", str(tmp_path / "m.safetensors")]
    arguments += ["--out", str(tmp_path / ("emb.zarr" if command == "embed" else "labels"))]
    assert run([*arguments, "--device", "cpu"]) == 0
    assert (TOLD in capfd.readouterr().err) == (licence == "CC-BY-NC-4.0")
    assert run([*arguments, "--device", "cpu"]) == 0
    assert TOLD not in capfd.readouterr().err
