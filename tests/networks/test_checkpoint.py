"""Model files come back as they were, and nothing else is loaded."""

from __future__ import annotations

import json
import pickle
import resource
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cellseg_cli.errors import CheckpointError
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import (
    ModelHeader,
    bundled_models,
    find_model,
    fingerprint,
    load_model,
    read_header,
    save_model,
    write_tuned,
)

ARCHITECTURE = Architecture(encoder="resnet10t", decoder_channels=4)
HEADER = ModelHeader(
    name="tiny",
    architecture=ARCHITECTURE,
    cluster={"seed_level": 0.6},
    label_statistics={"median_area_px": 80.0},
    licence="CC0-1.0",
    data="made up",
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Embedder]:
    model = Embedder(ARCHITECTURE).eval()
    path = tmp_path / "tiny.safetensors"
    save_model(path, model, HEADER)
    return path, model


def rewrite_header(path: Path, change: dict[str, object]) -> None:
    """Change our JSON inside the safetensors header, leaving the weights."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + length])
    outer["__metadata__"]["cellseg"] = json.dumps(
        json.loads(outer["__metadata__"]["cellseg"]) | change
    )
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_what_is_saved_comes_back(saved: tuple[Path, Embedder]) -> None:
    path, model = saved
    loaded, header = load_model(path)
    assert header == HEADER
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(image).embedding, model(image).embedding, rtol=0, atol=0)


def test_half_precision_halves_the_file_and_stays_close(saved: tuple[Path, Embedder]) -> None:
    path, model = saved
    half = path.with_name("half.safetensors")
    save_model(half, model, HEADER, half=True)
    assert half.stat().st_size < 0.55 * path.stat().st_size
    image = torch.rand(1, 3, 32, 32)
    close = load_model(half)[0](image).embedding
    torch.testing.assert_close(close, model(image).embedding, rtol=0.02, atol=0.02)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a model, but long enough to hold a length")
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert str(error.value) == f"{path} is not a model file (safetensors): 45 bytes"


def test_a_pickled_checkpoint_is_refused_without_running_it(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (mark,))

    bomb.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is not a model file"):
        load_model(bomb)
    assert not mark.exists()


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="is not a cellseg model: its header does not hold"):
        read_header(path)


def test_another_format_version_is_refused(saved: tuple[Path, Embedder]) -> None:
    path, _ = saved
    rewrite_header(path, {"format_version": 99})
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert str(error.value) == (
        f"{path} is of model format 99, this version reads 1; use the cellseg that wrote it"
    )


def test_a_header_that_asks_for_a_giant_network_is_refused(saved: tuple[Path, Embedder]) -> None:
    path, _ = saved
    rewrite_header(path, {"architecture": {"decoder_channels": 10**9}})
    with pytest.raises(CheckpointError, match=r"decoder_channels=1000000000 is not in 1\.\.256"):
        read_header(path)


def test_weights_that_do_not_fit_are_refused(saved: tuple[Path, Embedder]) -> None:
    path, _ = saved
    rewrite_header(path, {"architecture": {"encoder": "resnet10t", "decoder_channels": 8}})
    with pytest.raises(CheckpointError, match="do not fit its header"):
        load_model(path)


def test_a_truncated_file_is_refused(saved: tuple[Path, Embedder]) -> None:
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="do not fit its header"):
        load_model(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = Embedder(ARCHITECTURE)
    with torch.no_grad():
        model.embedding_head.weight[0] = torch.nan
    path = tmp_path / "nan.safetensors"
    save_model(path, model, HEADER)
    with pytest.raises(CheckpointError, match=r"not finite, such as embedding_head\.weight"):
        load_model(path)


def test_find_model_knows_names_files_and_runs(saved: tuple[Path, Embedder]) -> None:
    path, _ = saved
    assert find_model(path) == path
    (path.parent / "best.safetensors").write_bytes(path.read_bytes())
    assert find_model(path.parent) == path.parent / "best.safetensors"
    with pytest.raises(CheckpointError) as error:
        find_model("no-such-model")
    assert str(error.value) == (
        "no model 'no-such-model': neither a file nor one of the bundled models "
        f"({', '.join(bundled_models()) or 'none'})"
    )


def test_the_fingerprint_is_of_what_decides_an_embedding(saved: tuple[Path, Embedder]) -> None:
    path, model = saved
    before = fingerprint(path)
    assert len(before) == 64
    rewrite_header(path, {"cluster": {"foreground": 0.4}, "name": "other", "licence": "none"})
    assert fingerprint(path) == before
    rewrite_header(path, {"low_percentile": 2.0})
    assert fingerprint(path) != before
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    save_model(path, model, HEADER)
    assert fingerprint(path) != before


def test_tuned_settings_change_nothing_else(saved: tuple[Path, Embedder]) -> None:
    path, model = saved
    path.chmod(0o640)
    before = fingerprint(path)
    tuned = {"method": "seeds", "foreground": 0.4, "by_type": {"größer": {"foreground": 0.2}}}
    write_tuned(path, tuned, {"mean_ap": 0.5})
    loaded, header = load_model(path)
    assert header == replace(HEADER, cluster=tuned, training={"tuned_mean_ap": 0.5})
    # another tuning takes its place, whatever it went by
    write_tuned(path, tuned, {"ap50": 0.8})
    loaded, header = load_model(path)
    assert header == replace(HEADER, cluster=tuned, training={"tuned_ap50": 0.8})
    assert fingerprint(path) == before
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert length % 8 == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"low_percentile": 99.0, "high_percentile": 1.0},
            "percentiles 99 and 1 do not satisfy 0 <= low < high <= 100",
        ),
        (
            {"low_percentile": float("nan")},
            "percentiles nan and 99.8 do not satisfy 0 <= low < high <= 100",
        ),
        ({"cluster": {"foreground": float("inf")}}, "cluster.foreground is inf"),
        (
            {"cluster": {"by_type": {"cort": {"foreground": float("nan")}}}},
            "cluster.by_type.cort.foreground is nan",
        ),
        (
            {"cluster": {"by_type": {"cort": 0.3}}},
            "cluster.by_type is no table with a table for each type",
        ),
    ],
)
def test_numbers_that_nothing_can_be_done_with(
    saved: tuple[Path, Embedder], change: dict[str, object], reason: str
) -> None:
    path, _ = saved
    rewrite_header(path, change)
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert str(error.value) == f"{path} has a damaged header: {reason}"


def test_what_does_not_fit_is_told_in_one_line(saved: tuple[Path, Embedder]) -> None:
    path, _ = saved
    other = {"encoder": "resnet10t", "decoder_channels": 8}
    rewrite_header(path, {"architecture": other})
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert str(error.value).startswith(f"the weights in {path} do not fit its header: 47 tensors ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400


def test_a_small_file_that_names_a_giant_encoder_takes_no_memory(
    saved: tuple[Path, Embedder],
) -> None:
    path, _ = saved
    rewrite_header(path, {"architecture": {"encoder": "resnetv2_152x4_bit", "decoder_channels": 4}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="tensors differ, such as"):
        load_model(path)
    # its weights alone would take 2.7 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
