"""``cellseg cluster --tune``: what is found, for all and by type, where it goes, who uses it."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellseg_cli.cli.app import run
from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.config import ClusterSettings, RunSettings
from cellseg_cli.evaluation import choice
from cellseg_cli.evaluation.choice import Aim
from cellseg_cli.networks.checkpoint import read_header
from cellseg_cli.pipeline import tune as tuning
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.evaluate import Comparison, evaluate
from cellseg_cli.pipeline.plan import field_fingerprint
from cellseg_cli.pipeline.settings import CellTypes
from cellseg_cli.pipeline.tune import Tuning, tune
from cellseg_cli.store import FieldRow, Store

#: Few values, so that every combination is tried: (2, 1) as a second pass has the neighbours.
FEW = {"foreground": (0.2, 0.6), "seed_level": (0.3, 0.7), "min_area_px": (4, 40)}
SHAPE = (40, 50)
FIELDS = ("b/0", "b/1", "d/0", "d/1", "more")

Message = Callable[..., tuple[int, str, str]]


def draw(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Discs and a spatial embedding of them.

    Cells in b are bright, among others that are no cells and have a seed value of 0.66; those in
    d are dim, with a seed value of 0.45: no threshold suits both.
    """
    rng = np.random.default_rng(sum(map(ord, name)))
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float32)
    labels = np.zeros(SHAPE, np.uint32)
    values = np.zeros((4, *SHAPE), np.float32)
    values[2] = 1.5
    dim = name.startswith("d")
    for number, (y, x) in enumerate(((8, 10), (8, 30), (26, 12), (28, 36)), start=1):
        y, x = y + rng.integers(-2, 3), x + rng.integers(-2, 3)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < 34
        values[0][inside], values[1][inside] = (y - rows)[inside], (x - columns)[inside]
        values[3][inside] = 0.45 if dim else 0.9
        if dim or number < 4:
            labels[inside] = number
        else:
            values[3][inside] = 0.66
    return labels, values.astype(np.float16)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five embedded fields; no network is needed for them."""
    path = tmp_path / "emb.zarr"
    identity = {"model": "12ab"}
    attributes = {"model": {"kind": "spatial", "classes": False}, "embed": identity, "cluster": {}}
    made = Store.create(path, attributes)
    rows = [FieldRow(name, f"{name}.png", 1, 1, *SHAPE, 1, "uint8") for name in FIELDS]
    made.write_fields(rows)
    for row in rows:
        made.write_embedding(row.id, draw(row.id)[1])
        made.mark_done(row.id, "embed", field_fingerprint(row, identity))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Label images of four of the fields, and of one that is not embedded."""
    for name in (*FIELDS[:4], "elsewhere"):
        path = tmp_path / "truth" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, draw(name)[0])
    return tmp_path / "truth"


@pytest.fixture
def types(tmp_path: Path) -> str:
    """A table of types; more has one without truth."""
    text = "id,kind\nb/0,bright\nb/1,bright\nd/0,dim\nd/1,dim\nmore,other\n"
    (tmp_path / "types.csv").write_text(text)
    return f"{tmp_path / 'types.csv'}:kind"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choice.VALUES, ("seeds", "spatial"), FEW)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Message:
    """Run a command line; its exit code, stdout and stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = run([str(one) for one in arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return command


def settings_of(store: Path) -> dict[str, dict[str, Any]]:
    """The settings that each label image was made with, as far as `seeds` goes by them."""
    opened = Store.open(store)
    marks = {row.id: opened.mark(row.id, "cluster") for row in opened.fields()}
    return {name: {k: m["settings"][k] for k in FEW} for name, m in marks.items() if m is not None}


#: Which of the IoU thresholds 0.50:0.05:0.95 each aim averages.
AVERAGED = {"mean_ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}


def mean_aps(
    store: Path,
    truth: Path,
    names: tuple[str, ...],
    settings: Clustering,
    aim: Aim = "mean_ap",
) -> float:
    """What settings reach on some fields, by way of files and `evaluate`."""
    copy = store.parent / "scored.zarr"
    shutil.copytree(store, copy)
    given = {k: v for k, v in asdict(settings).items() if v is not None}
    cluster_store(copy, ClusterSettings(**given), RunSettings(threads=1), lambda event: None)
    result = evaluate(Comparison(copy, truth, missing="skip", threads=1))
    shutil.rmtree(copy)
    aps = [choice.measures(result.fields[name]).ap[AVERAGED[aim]] for name in names]
    return sum(map(np.mean, aps)) / len(names)


BRIGHT = {"foreground": 0.6, "seed_level": 0.7, "min_area_px": 40}
DIM = {"foreground": 0.2, "seed_level": 0.3, "min_area_px": 4}


# ------------------------------------------------------------------ what is found


@pytest.mark.parametrize("aim", sorted(AVERAGED))
@pytest.mark.usefixtures("few")
def test_the_best_of_all_combinations_for_all_and_by_type(
    store: Path, truth: Path, types: str, aim: Aim
) -> None:
    table, tuning = CellTypes(table=types), Tuning(truth, aim=aim)
    tuned = tune(store, tuning, ClusterSettings(), RunSettings(), lambda event: None, table)
    combinations = [
        Clustering("seeds", foreground=f, seed_level=s, min_area_px=a)
        for f in FEW["foreground"]
        for s in FEW["seed_level"]
        for a in FEW["min_area_px"]
    ]
    start = Clustering("seeds", foreground=0.3, seed_level=0.65, min_area_px=16)  # the method's
    tried = [start, *combinations]
    assert tuned.trials == len(tried)
    for found, names in (
        (tuned.overall, FIELDS[:4]),
        (tuned.by_type["bright"], FIELDS[:2]),
        (tuned.by_type["dim"], FIELDS[2:4]),
    ):
        scores = [mean_aps(store, truth, names, settings, aim) for settings in tried]
        assert found.score == pytest.approx(max(scores), abs=1e-12)
        assert found.before == pytest.approx(scores[0], abs=1e-12)
        assert found.fields == len(names)
        assert mean_aps(store, truth, names, found.settings, aim) == pytest.approx(found.score)
    assert set(tuned.by_type) == {"bright", "dim"}
    assert tuned.by_type["bright"].score > tuned.overall.score < tuned.by_type["dim"].score


def test_neither_workers_nor_types_move_the_choice(store: Path, truth: Path, types: str) -> None:
    dry = RunSettings(dry_run=True)
    one = tune(store, Tuning(truth), ClusterSettings(), dry, lambda event: None)
    for workers in (1, 3):
        run = RunSettings(threads=workers, dry_run=True)
        events: list[object] = []
        other = tune(
            store, Tuning(truth), ClusterSettings(), run, events.append, CellTypes(table=types)
        )
        assert other.overall.score >= one.overall.score
        assert other.by_type["dim"].score == other.by_type["bright"].score == 1.0
        if workers == 1:
            first = other
    assert (first.overall, first.by_type) == (other.overall, other.by_type)


@pytest.mark.usefixtures("few")
def test_types_that_the_truth_names(store: Path, tmp_path: Path) -> None:
    rows = ["id,annotation,width,height,cell_type"]
    for name in FIELDS[:4]:
        for number in range(1, 5):
            places = np.flatnonzero(draw(name)[0].ravel() == number)
            runs = " ".join(f"{place + 1} 1" for place in places)
            rows.append(
                f"{name},{runs},{SHAPE[1]},{SHAPE[0]},{'dim' if name[0] == 'd' else 'bright'}"
            )
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    tuned = tune(
        store,
        Tuning(tmp_path / "train.csv"),
        ClusterSettings(),
        RunSettings(),
        lambda event: None,
    )
    for name, expected in (("bright", BRIGHT), ("dim", DIM)):
        chosen = {k: getattr(tuned.by_type[name].settings, k) for k in FEW}
        assert (chosen, tuned.by_type[name].score) == (expected, 1.0)


def test_what_is_given_is_held(store: Path, truth: Path, told: Message) -> None:
    code, out, _ = told("cluster", store, "--tune", truth, "--foreground", "0.31", "-q", "--json")
    tuned = json.loads(out)["tuned"]
    assert (code, tuned["overall"]["settings"]["foreground"]) == (0, 0.31)
    assert {one["foreground"] for one in settings_of(store).values()} == {0.31}
    # and what was tuned with it is kept with it
    code, _, _ = told("cluster", store, "-q")
    assert {one["foreground"] for one in settings_of(store).values()} == {0.31}


def test_the_truth_may_be_a_store(store: Path, tmp_path: Path, told: Message) -> None:
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    assert told("cluster", other, "--foreground", "0.37", "-q")[0] == 0
    result = told("cluster", store, "--tune", other, "--foreground", "0.37", "--json", "-q")
    overall = json.loads(result[1])["tuned"]["overall"]
    assert (overall["fields"], overall["before"], overall["mean_ap"]) == (5, 1.0, 1.0)
    assert settings_of(store) == settings_of(other)


def test_another_method(store: Path, truth: Path, told: Message) -> None:
    code, out, _ = told("cluster", store, "--tune", truth, "--method", "grid", "-q", "--json")
    tuned = json.loads(out)["tuned"]["overall"]
    assert (code, tuned["settings"]["method"], tuned["settings"]["size"]) == (0, "grid", "full")
    expected = Clustering(**tuned["settings"])
    labels = cluster(draw("more")[1], kind="spatial", settings=expected)
    assert told("cluster", store, "--dry-run", "-q", "--json")[1].count('"to_do": 0') == 1
    np.testing.assert_array_equal(Store.open(store).read_labels("more"), labels)


# ----------------------------------------------------------------- what a user sees


@pytest.mark.usefixtures("few")
def test_the_whole_output(store: Path, truth: Path, types: str, told: Message) -> None:
    code, out, err = told("cluster", store, "--tune", truth, "--types", types, "--threads", "1")
    assert code == 0
    table = [line.split() for line in out.splitlines()]
    assert " ".join(table[0]) == (
        "settings for fields before mean AP method foreground seed_level min_area_px"
    )
    assert [row[0] for row in table[1:]] == ["all", "bright", "dim"]
    assert table[2] == ["bright", "2", "0.750", "1.000", "seeds", "0.6", "0.7", "40"]
    assert table[3] == ["dim", "2", "0.000", "1.000", "seeds", "0.2", "0.3", "4"]
    lines = err.splitlines()
    record = max((store / ".cellseg/runs").glob("*-tune-*"))
    assert lines[0] == "tune, pass 1 of 3: 4 fields, 1 thread"
    rest = [line for line in lines if not line.startswith("tune, pass ")]
    assert rest[0].startswith("tune: 4 done, 0 done before, 0 failed in ")
    assert rest[0].endswith(f" s; record: {record}")
    assert rest[1:4] == [
        f"tune: settings written to {store / '.cellseg/tuned.toml'}",
        "cluster: the settings for all are taken for fields of types without settings of their "
        "own (other: 1)",
        "cluster: 5 fields, 1 thread on cpu",
    ]
    content = json.loads(record.read_text())
    assert (content["stage"], content["trials"], content["model_fingerprint"]) == (
        "tune",
        9,
        "12ab",
    )


@pytest.mark.usefixtures("few")
def test_json(store: Path, truth: Path, types: str, told: Message) -> None:
    code, out, err = told(
        *("cluster", store, "--tune", truth, "--types", types, "--json", "-q", "--threads", "1")
    )
    result = json.loads(out)
    tuned = result["tuned"]
    assert (code, err, result["done"]) == (0, "", 5)
    assert tuned.pop("seconds") > 0
    assert tuned["by_type"]["dim"] == {
        "fields": 2,
        "mean_ap": 1.0,
        "before": 0.0,
        "settings": {"method": "seeds", **DIM},
    }
    assert set(tuned) == {"truth", "aim", "trials", "overall", "by_type", "failed", "written"}
    assert (tuned["aim"], tuned["written"]) == ("mean_ap", [str(store / ".cellseg/tuned.toml")])


@pytest.mark.usefixtures("few")
def test_what_it_goes_by_is_told_and_kept(store: Path, truth: Path, told: Message) -> None:
    code, out, _ = told("cluster", store, "--tune", truth, "--aim", "ap50", "--dry-run")
    assert code == 0
    assert " ".join(out.splitlines()[0].split()).startswith("settings for fields before AP@0.5 ")
    code, out, _ = told("cluster", store, "--tune", truth, "--aim", "ap50", "-q", "--json")
    tuned = json.loads(out)["tuned"]
    assert (code, tuned["aim"]) == (0, "ap50")
    assert set(tuned["overall"]) == {"fields", "ap50", "before", "settings"}
    kept = tomllib.loads((store / ".cellseg/tuned.toml").read_text())["tuned"]
    assert kept["ap50"] == tuned["overall"]["ap50"]
    assert "mean_ap" not in kept


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--aim", "ap50"), "--aim says what --tune is to reach: give --tune TRUTH as well"),
        (
            ("--tune", "truth", "--aim", "f1"),
            "--aim f1 is not one of mean_ap, ap50, ap75",
        ),
    ],
)
def test_what_it_cannot_go_by(
    store: Path, told: Message, arguments: tuple[str, ...], reason: str
) -> None:
    assert told("cluster", store, *arguments) == (2, "", f"cellseg: {reason}\n")


def test_a_dry_run_writes_nothing(store: Path, truth: Path, told: Message) -> None:
    before = sorted(store.rglob("*"))
    toml = store.parent / "t.toml"
    code, out, err = told("cluster", store, "--tune", truth, "--save", toml, "--dry-run", "--json")
    result = json.loads(out)
    assert (code, result["dry_run"], result["to_do"]) == (0, True, 5)
    assert result["tuned"]["overall"]["mean_ap"] > result["tuned"]["overall"]["before"]
    assert result["tuned"]["written"] == []
    assert "written to" not in err
    assert sorted(store.rglob("*")) == before
    assert not toml.exists()


# -------------------------------------------------------------- who uses what is found


@pytest.mark.usefixtures("few")
def test_later_runs_find_the_settings(store: Path, truth: Path, types: str, told: Message) -> None:
    assert told("cluster", store, "--tune", truth, "--types", types, "-q")[0] == 0
    found = settings_of(store)
    assert (found["d/0"], found["d/1"]) == (DIM, DIM)
    overall = found["more"]
    # the same types: nothing to do
    result = json.loads(told("cluster", store, "--types", types, "--json", "-q")[1])
    assert (result["done"], result["skipped"]) == (0, 5)
    # one type for all; the fields that have it already stay
    result = json.loads(told("cluster", store, "--cell-type", "dim", "--json", "-q")[1])
    assert result["skipped"] == 2 + (overall == DIM)
    assert set(map(str, settings_of(store).values())) == {str(DIM)}
    # no types: the settings for all
    code, _, err = told("cluster", store, "--threads", "1")
    assert (code, err.splitlines()[0]) == (
        0,
        "cluster: settings that are not given are those tuned on this store, "
        f"{store / '.cellseg/tuned.toml'}",
    )
    assert set(map(str, settings_of(store).values())) == {str(overall)}


@pytest.mark.usefixtures("few")
def test_tuning_again_starts_from_what_was_tuned(
    store: Path, truth: Path, types: str, told: Message
) -> None:
    command = ("cluster", store, "--tune", truth, "--types", types, "--json", "-q")
    first = json.loads(told(*command)[1])["tuned"]
    text = (store / ".cellseg/tuned.toml").read_bytes()
    again = json.loads(told(*command)[1])
    assert (again["done"], again["skipped"]) == (0, 5)
    for name, before in first["by_type"].items():
        after = again["tuned"]["by_type"][name]
        assert after["before"] == after["mean_ap"] == before["mean_ap"]
        assert after["settings"] == before["settings"]
    assert (store / ".cellseg/tuned.toml").read_bytes() == text


@pytest.mark.usefixtures("few")
def test_only_fields_whose_type_changes_are_redone(
    store: Path, truth: Path, types: str, told: Message, tmp_path: Path
) -> None:
    assert told("cluster", store, "--tune", truth, "--types", types, "-q")[0] == 0
    table = tmp_path / "types.csv"
    table.write_text(table.read_text().replace("d/1,dim", "d/1,bright"))
    result = json.loads(told("cluster", store, "--types", types, "--json", "-q")[1])
    assert (result["done"], result["skipped"]) == (1, 4)


@pytest.mark.usefixtures("few")
def test_a_toml_file_takes_the_settings_to_another_store(
    store: Path, truth: Path, types: str, told: Message, tmp_path: Path
) -> None:
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    saved = tmp_path / "kept" / "tuned.toml"
    tuned = ("cluster", store, "--tune", truth, "--types", types, "--save", saved, "-q")
    assert told(*tuned)[0] == 0
    assert saved.read_bytes() == (store / ".cellseg/tuned.toml").read_bytes()
    assert told("cluster", other, "--config", saved, "--types", types, "-q")[0] == 0
    assert settings_of(other) == settings_of(store)
    assert told("cluster", other, "--config", saved, "--cell-type", "dim", "-q")[0] == 0
    assert set(map(str, settings_of(other).values())) == {str(DIM)}
    given = ("--cell-type", "dim", "--set", "min_area_px=7")
    assert told("cluster", other, "--config", saved, *given, "-q")[0] == 0
    assert {one["min_area_px"] for one in settings_of(other).values()} == {7}
    # the same command again replaces its own file
    assert told(*tuned)[0] == 0


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_the_model_takes_the_settings_and_the_scale(
    plate: Path, model: Path, tmp_path: Path, told: Message, scale: float
) -> None:
    """Label images of settings that the search tries are the truth: they are found again."""
    out, mine = tmp_path / "emb.zarr", tmp_path / "mine.safetensors"
    shutil.copy(model, mine)
    embed = ("embed", plate, "--out", out, "--model", mine, "--device", "cpu", "-q")
    assert told(*embed, "--scale", scale)[0] == 0
    assert told("cluster", out, "--foreground", "0.15", "-q")[0] == 0
    told("export", out, "--format", "label-tiff", "--out", tmp_path / "labels", "-q")
    held = ("--set", "seed_level=0.1", "--min-area", "4")
    tuned = told(
        *("cluster", out, "--tune", tmp_path / "labels", *held, "--save", mine, "--json", "-q")
    )
    result = json.loads(tuned[1])["tuned"]
    found = result["overall"]["settings"]
    assert result["written"] == [str(out / ".cellseg/tuned.toml"), str(mine)]
    header = read_header(mine)
    assert header.cluster == found
    assert (found["seed_level"], found["min_area_px"]) == (0.1, 4)
    assert header.scale == scale
    assert header.training["tuned_mean_ap"] == result["overall"]["mean_ap"] == 1.0
    # the store is of this model still, and a new one has its settings
    code, again, _ = told(*embed, "--json")
    assert (code, json.loads(again)["skipped"]) == (0, 6)
    fresh = tmp_path / "fresh.zarr"
    told("embed", plate, "--out", fresh, "--model", mine, "--device", "cpu", "-q")
    assert Store.open(fresh).attributes["cluster"] == found
    assert Store.open(fresh).attributes["embed"].get("scale", 1.0) == scale


# --------------------------------------------------------------- what goes wrong


def test_fields_that_cannot_be_scored_are_listed(
    store: Path, truth: Path, types: str, told: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(truth / "b/1.npy", np.ones((40, 51), np.uint16))
    (truth / "d/1.npy").write_bytes(b"no label image")
    (store / "d/0/embed.done.json").unlink()
    code, out, err = told("cluster", store, "--tune", truth, "--json", "-q")
    result = json.loads(out)
    reasons = {one["field"]: one["reason"] for one in result["tuned"]["failed"]}
    assert code == 1
    assert reasons["b/1"] == "the truth is 40×51 px, the embedding is 40×50 px"
    assert reasons["d/0"] == "not embedded"
    assert reasons["d/1"].startswith(f"{truth / 'd/1.npy'}")
    assert set(reasons) == {"b/1", "d/0", "d/1"}
    assert result["tuned"]["overall"]["fields"] == 1
    assert f"cellseg: b/1: {reasons['b/1']}" in err.splitlines()
    assert [one["field"] for one in result["failed"]] == ["d/0"]
    assert result["done"] == 4

    monkeypatch.setattr(tuning, "WHOLE_FIELD_PX", 100)
    code, _, err = told("cluster", store, "--tune", truth, "--types", types, "-q")
    assert code == 3
    assert (
        "cellseg: b/0: too large to tune on: 40×50 px, at most 100 px; embed and annotate a part "
        "of it"
    ) in err.splitlines()
    assert err.splitlines()[-1] == (
        f"cellseg: none of the fields with truth in {truth} could be scored"
    )


def test_nothing_to_choose_by(store: Path, tmp_path: Path, told: Message) -> None:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "empty/more.npy", np.zeros(SHAPE, np.uint8))
    values = draw("more")[1]
    values[3] = 0
    made = Store.open(store)
    mark = made.done_fingerprint("more", "embed")
    made.write_embedding("more", values)
    made.mark_done("more", "embed", str(mark))
    assert told("cluster", store, "--tune", tmp_path / "empty", "-q") == (
        3,
        "",
        f"cellseg: neither {tmp_path / 'empty'} nor any trial has a cell in these fields: "
        "nothing to choose by\n",
    )
    assert not made.tuned_path.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (
            ["--tune", "{truth}", "--foreground=0.3", "--min-area=9", "--set", "seed_level=0.5"],
            2,
            "nothing is left to tune: foreground, seed_level, min_area_px of seeds are all given; "
            "leave some of them out",
        ),
        (
            ["--tune", "{truth}", "--save", "{tmp}/t.json"],
            2,
            "--save {tmp}/t.json: settings are kept in a .toml file or in the model's .safetensors",
        ),
        (["--save", "t.toml"], 2, "--save keeps what --tune finds: give --tune TRUTH as well"),
        (
            ["--tune", "{truth}", "--save", "{tmp}/notes.toml"],
            2,
            "{tmp}/notes.toml exists and is not of an earlier --tune; choose another file, or "
            "--overwrite",
        ),
        (
            ["--tune", "{truth}", "--save", "{model}"],
            2,
            "{model} is not the model that {store} was made with; only that one takes these "
            "settings: give its file, or a .toml file for --config",
        ),
        (
            ["--tune", "{truth}", "--config", "{tmp}/typed.toml"],
            2,
            "--tune finds the settings of each cell type: leave the tables [cluster.by_type] out "
            "of the file given by --config",
        ),
        (
            ["--tune", "{truth}", "--types", "{types}", "--cell-type", "dim"],
            2,
            "--cell-type says it for all fields, --types for each: choose one",
        ),
        (
            ["--tune", "{truth}", "--cell-type", "hela"],
            2,
            "no annotated field is of the cell type 'hela'; known types: none",
        ),
        (
            ["--cell-type", "hela"],
            2,
            "there are no settings for the cell type 'hela', nor for any other: find them by "
            "cellseg cluster {store} --tune TRUTH, with a truth that has types or with --types",
        ),
        (["--types", "{tmp}"], 2, "groups are given as FILE.csv:COLUMN, got '{tmp}'"),
        (
            ["--tune", "{tmp}/absent"],
            3,
            "there is no file or folder of annotations at {tmp}/absent",
        ),
        (
            ["--tune", "{tmp}/others"],
            3,
            "no field is in both: {store} has 5, such as b/0; {tmp}/others has 1, such as x; a "
            "field is known by its path below the folder given, without suffix",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_changes_nothing(
    store: Path,
    truth: Path,
    types: str,
    model: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    error: str,
    told: Message,
) -> None:
    (tmp_path / "notes.toml").write_text("[cluster]\nmin_area_px = 3\n")
    (tmp_path / "typed.toml").write_text("[cluster.by_type.dim]\nforeground = 0.3\n")
    (tmp_path / "others").mkdir()
    np.save(tmp_path / "others/x.npy", np.ones((3, 3), np.uint8))
    names = {"truth": truth, "tmp": tmp_path, "model": model, "store": store, "types": types}
    before = sorted(store.rglob("*"))
    command = ("cluster", store, *(one.format(**names) for one in arguments), "-q")
    assert told(*command) == (code, "", f"cellseg: {error.format(**names)}\n")
    assert sorted(store.rglob("*")) == before
    assert (tmp_path / "notes.toml").read_text() == "[cluster]\nmin_area_px = 3\n"


def test_a_store_without_fields(tmp_path: Path, truth: Path, told: Message) -> None:
    attributes = {"model": {"kind": "spatial"}, "cluster": {}}
    empty = Store.create(tmp_path / "empty.zarr", attributes).path
    assert told("cluster", empty, "--tune", truth) == (
        2,
        "",
        f"cellseg: {empty} lists no fields: run cellseg embed first\n",
    )
