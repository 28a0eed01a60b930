"""The models that come with the package: their cards, and that their cells follow the image."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from cellseg_cli.clustering import linkage_partition
from cellseg_cli.clustering.resizing import resized_bilinear
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.images.normalise import apply, fit_channels, measure
from cellseg_cli.images.synthetic import render_field
from cellseg_cli.labels import same_partition
from cellseg_cli.networks.checkpoint import WEIGHTS, bundled_models, find_model, read_header
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.pipeline.evaluate import Comparison, evaluate
from cellseg_cli.pipeline.settings import CellTypes


def test_all_models_together_stay_small() -> None:
    assert bundled_models() == ("nuclei", "phase")
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 60e6
    assert all(find_model(name).stat().st_size < 30e6 for name in bundled_models())


@pytest.mark.parametrize("name", bundled_models())
def test_every_model_has_a_card_that_agrees_with_its_header(name: str) -> None:
    header = read_header(find_model(name))
    card = (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    assert header.name == name
    assert header.licence in card
    assert f"{header.training['step']} steps" in card
    assert f"{header.training['validation']['mean_ap']:.3f}" in card
    assert str(header.label_statistics["instances"]) in card.replace(" ", "")


def test_the_nuclei_model_keeps_its_scores_on_real_fluorescence(
    real_data: Path, tmp_path: Path
) -> None:
    """The floor is what the prototypes and a peer trained from scratch reached."""
    data, store = real_data / "dsb2018", tmp_path / "emb.zarr"

    def silent(event: object) -> None:
        del event

    embed(str(data / "val" / "images"), store, EmbedSettings(device="cpu"), RunSettings(), silent)
    cluster_store(store, ClusterSettings(), RunSettings(), silent)
    result = evaluate(
        Comparison(store, data / "val" / "labels", groups=(f"{data / 'index.csv'}:kind",))
    )
    fluorescence = result.by_group["kind"]["fluo"].mean
    assert fluorescence.at("ap", 0.5) >= 0.88
    assert fluorescence.mean_ap >= 0.68


def test_the_phase_model_keeps_its_scores_on_real_neurons(real_data: Path, tmp_path: Path) -> None:
    """Two held-out fields of each cell type, with its thresholds; the floor is far above chance."""
    data, store = real_data / "sartorius", tmp_path / "emb.zarr"
    with (data / "index.csv").open(newline="") as file:
        held_out = [row for row in csv.DictReader(file) if row["split"] == "val"]
    chosen = [
        row["id"]
        for name in ("cort", "shsy5y", "astro")
        for row in [row for row in held_out if row["cell_type"] == name][:2]
    ]
    fields = tmp_path / "fields.lst"
    fields.write_text("".join(f"{data / 'train' / one}.png\n" for one in chosen))

    def silent(event: object) -> None:
        del event

    embedding = EmbedSettings(model="phase", device="cpu")
    embed(str(fields), store, embedding, RunSettings(), silent)
    types = CellTypes(table=f"{data / 'index.csv'}:cell_type")
    cluster_store(store, ClusterSettings(), RunSettings(), silent, types=types)
    result = evaluate(Comparison(store, data / "train.csv", missing="skip"))
    mean = result.by_group["cell_type"]
    assert mean["cort"].mean.mean_ap >= 0.3
    assert mean["shsy5y"].mean.mean_ap >= 0.1
    assert mean["astro"].mean.mean_ap >= 0.07
    assert read_header(find_model("phase")).licence == "CC-BY-NC-4.0"


@pytest.mark.parametrize("merge_distance", [0.05, 0.2, 0.45])
def test_linkage_of_real_embeddings_is_that_of_sklearn(merge_distance: float) -> None:
    """Embeddings that the bundled model gives for a rendered field, 40×52 of its pixels."""
    predictor = Predictor.load("nuclei", device="cpu")
    image = fit_channels(render_field("A01", 1, size=(128, 160))[0][None], 3)
    values = predictor.embed(apply(image, measure(image))).values.astype(np.float32)
    points = resized_bilinear(values, (40, 52)).reshape(len(values), -1).T
    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=merge_distance
    )
    theirs = model.fit_predict(points.astype(np.float64)) + 1
    ours = linkage_partition(points, merge_distance) + 1
    assert len(np.unique(ours)) > 1
    assert same_partition(ours.astype(np.uint32), theirs.astype(np.uint32))
