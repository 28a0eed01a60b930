"""`cellseg evaluate`, whole: files in; tables, JSON, messages and exit codes out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellseg_cli.cli.app import run
from cellseg_cli.evaluation.scores import THRESHOLDS, summarise_groups
from cellseg_cli.store import FieldRow, Store

Labels = dict[str, np.ndarray]


def bars(*lengths: int) -> np.ndarray:
    """One instance of each length in a row of its own, ten pixels wide; 0 is none."""
    labels = np.zeros((len(lengths), 10), np.uint16)
    for row, length in enumerate(lengths):
        labels[row, :length] = row + 1
    return labels


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(folder: Path, labels: Labels) -> None:
    for field_id, image in labels.items():
        path = folder / f"{field_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image)


def scored(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run with --json; what it printed, with exit code and stderr."""
    code = run(["evaluate", *arguments, "--json"])
    captured = capsys.readouterr()
    return {**json.loads(captured.out), "exit_code": code, "stderr": captured.err}


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run where nothing can be printed on stdout; the exit code and stderr."""
    code = run(["evaluate", *arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


def test_scores_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """a: 8 of 10 px, a match up to 0.80. b: one of two found, exactly."""
    save(here / "truth", {"a": bars(10), "b": bars(10, 6)})
    save(here / "found", {"a": bars(8), "b": bars(10, 0)})
    result = scored(capsys, "found", "--truth", "truth")
    assert result["exit_code"] == 0
    assert result["stderr"] == ""
    assert result["fields"] == 2
    assert result["thresholds"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    overall = result["overall"]
    assert overall["truth_instances"] == 3
    assert overall["predicted_instances"] == 2
    assert overall["ap"]["0.50"] == pytest.approx((1 + 1 / 2) / 2)
    assert overall["ap"]["0.85"] == pytest.approx((0 + 1 / 2) / 2)
    assert overall["mean_ap"] == pytest.approx((0.7 + 0.5) / 2)
    assert overall["precision"]["0.50"] == 1
    assert overall["recall"]["0.50"] == pytest.approx(0.75)
    assert overall["matched_iou"] == pytest.approx(0.9)
    assert overall["pq"] == pytest.approx((0.8 + 1 / 1.5) / 2)
    pooled = overall["pooled"]
    assert pooled["ap"]["0.50"] == pytest.approx(2 / 3)
    assert pooled["pq"] == pytest.approx(1.8 / 2.5)
    assert (pooled["tp"]["0.50"], pooled["fp"]["0.50"], pooled["fn"]["0.50"]) == (2, 0, 1)
    assert (pooled["tp"]["0.85"], pooled["fp"]["0.85"], pooled["fn"]["0.85"]) == (1, 1, 2)
    assert overall["mistakes"] == {"missed": 1, "false": 0, "split": 0, "merged": 0, "boundary": 0}
    assert result["by_group"] == {}


def test_the_table_in_a_pipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pooled: 2 of 3 up to 0.80, then 1 right, 1 false, 2 missing; (7 × 2/3 + 3 × 1/4) / 10."""
    save(here / "truth", {"P1/a": bars(10), "P2/b": bars(10, 6), "P2/c": bars(0)})
    save(here / "found", {"P1/a": bars(8), "P2/b": bars(10, 0), "P2/c": bars(0)})
    assert run(["evaluate", "found", "--truth", "truth"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [" ".join(line.split()) for line in captured.out.splitlines()]
    tail = "missed false split merged boundary"
    assert rows == [
        f"fields of fields cells found AP50 AP75 mean AP F1 prec recall PQ {tail}",
        "all 3 3 2 0.750 0.750 0.600 0.833 1.000 0.750 0.733 1 0 0 0 0",
        "all, pooled 3 3 2 0.667 0.667 0.542 0.800 1.000 0.667 0.720 1 0 0 0 0",
        "plate P1 1 1 1 1.000 1.000 0.700 1.000 1.000 1.000 0.800 0 0 0 0 0",
        "plate P2 2 2 1 0.500 0.500 0.500 0.667 1.000 0.500 0.667 1 0 0 0 0",
    ]


def test_fields_without_cells_have_no_score(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "truth", {"a": bars(0)})
    save(here / "found", {"a": bars(0)})
    overall = scored(capsys, "found", "--truth", "truth")["overall"]
    assert (overall["fields"], overall["empty_fields"]) == (1, 1)
    assert overall["mean_ap"] is None
    assert overall["pooled"]["f1"]["0.50"] is None
    assert run(["evaluate", "found", "--truth", "truth"]) == 0
    assert "all 1 0 0 - - - - - - - 0 0 0 0 0" in [
        " ".join(line.split()) for line in capsys.readouterr().out.splitlines()
    ]


def test_groups_from_a_table_and_from_the_truth(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 2×5: a is exact, b is nothing but false."""
    (here / "truth.csv").write_text(
        "id,annotation,width,height,cell_type\na,1 4,5,2,cort\nb,1 1 6 1,5,2,astro\n"
    )
    (here / "found.csv").write_text("id,predicted\na,1 4\nb,8 2\n")
    (here / "index.csv").write_text("id,split,dye\na,val,x\nb,val,\n")
    result = scored(
        capsys,
        *("found.csv", "--truth", "truth.csv"),
        *("--groups", "index.csv:split", "--groups", "index.csv:dye"),
    )
    ap = {
        grouping: {group: scores["ap"]["0.50"] for group, scores in groups.items()}
        for grouping, groups in result["by_group"].items()
    }
    assert ap == {"cell_type": {"astro": 0, "cort": 1}, "split": {"val": 0.5}, "dye": {"x": 1}}


def test_a_store_against_its_own_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.create(here / "emb.zarr", {})
    store.write_fields([FieldRow("P/a", "P/a.png", height=2, width=10)])
    store.write_labels("P/a", bars(3, 4).astype(np.uint32))
    store.mark_done("P/a", "cluster", "fingerprint")
    save(here / "truth", {"P/a": bars(3, 4) * 7})
    result = scored(capsys, "emb.zarr", "--truth", "truth")
    assert (result["exit_code"], result["overall"]["mean_ap"]) == (0, 1)


def test_what_a_store_knows_of_plates_is_in_the_table_and_a_grouping(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two plates in one folder: the first folder of the id is not the plate."""
    store = Store.create(here / "emb.zarr", {})
    rows = [
        FieldRow(
            f"run/{plate}/B/02/f001",
            "x.tif",
            height=2,
            width=10,
            plate=plate,
            well="B02",
            field="f001",
            channel_names=("DAPI", "FITC"),
        )
        for plate in ("P1", "P2")
    ]
    store.write_fields(rows)
    for row in rows:
        store.write_labels(row.id, bars(3, 4).astype(np.uint32))
        store.mark_done(row.id, "cluster", "fingerprint")
    save(here / "truth", {row.id: bars(3, 4) for row in rows})
    result = scored(capsys, "emb.zarr", "--truth", "truth", "--per-field", "fields.csv")
    assert {name: list(groups) for name, groups in result["by_group"].items()} == {
        "plate": ["P1", "P2"]
    }
    with (here / "fields.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    shown = [[line[name] for name in ("plate", "well", "field", "channels")] for line in lines]
    assert shown == [[plate, "B02", "f001", "DAPI;FITC"] for plate in ("P1", "P2")]
    assert "t" not in lines[0]


@pytest.mark.parametrize(
    ("missing", "code", "fields", "recall"),
    [("fail", 1, 1, 1.0), ("zero", 1, 3, 1 / 3), ("skip", 0, 1, 1.0)],
)
def test_fields_of_one_side_only(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    code: int,
    fields: int,
    recall: float,
) -> None:
    save(here / "truth", {"a": bars(9), "b": bars(9), "c": bars(9)})
    save(here / "found", {"a": bars(9), "z": bars(9)})
    result = scored(capsys, "found", "--truth", "truth", "--missing", missing)
    became = {
        "fail": "not scored (--missing zero counts them as no cells, skip accepts it)",
        "zero": "scored as no cells",
        "skip": "left out",
    }
    left = "left out" if missing == "skip" else "not scored"
    assert result["stderr"] == (
        f"cellseg: 2 fields (b, c) are in truth, but not in found: {became[missing]}\n"
        f"cellseg: 1 field (z) is in found, but not in truth: {left}\n"
    )
    assert result["exit_code"] == code
    assert result["fields"] == fields
    assert result["overall"]["recall"]["0.50"] == pytest.approx(recall)
    assert result["without_prediction"] == ["b", "c"]
    assert result["without_truth"] == ["z"]


def test_missing_predictions_scored_as_no_cells_are_no_failure(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "truth", {name: bars(9) for name in "abcdefgh"})
    save(here / "found", {"a": bars(9)})
    result = scored(capsys, "found", "--truth", "truth", "--missing", "zero")
    assert result["stderr"] == (
        "cellseg: 7 fields (b, c, d, e, f and 2 more) are in truth, but not in found: "
        "scored as no cells\n"
    )
    assert result["exit_code"] == 0
    assert result["overall"]["pooled"]["fn"]["0.95"] == 7


def test_quiet_leaves_out_what_was_asked_to_be_left_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "truth", {"a": bars(9), "b": bars(9)})
    save(here / "found", {"a": bars(9)})
    result = scored(capsys, "found", "--truth", "truth", "--missing", "skip", "--quiet")
    assert result["stderr"] == ""


def test_a_bad_field_fails_and_the_others_are_scored(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "truth", {"a": bars(9), "b": bars(9, 9), "c": bars(9)})
    save(here / "found", {"a": bars(9), "b": bars(9), "c": bars(9)})
    (here / "found" / "c.npy").write_bytes(b"")
    result = scored(capsys, "found", "--truth", "truth", "--per-field", "fields.csv")
    assert result["exit_code"] == 1
    assert result["fields"] == 1
    assert result["overall"]["mean_ap"] == 1
    size = "the prediction is 1×10 px, the truth is 2×10 px"
    unreadable = "found/c.npy cannot be read as NPY: No data left in file"
    assert result["failed"] == [
        {"field": "b", "reason": size},
        {"field": "c", "reason": unreadable},
    ]
    assert result["stderr"] == f"cellseg: b: {size}\ncellseg: c: {unreadable}\n"
    with (here / "fields.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["mean_ap"], row["error"]) for row in rows] == [
        ("a", "1.0", ""),
        ("b", "", size),
        ("c", "", unreadable),
    ]


def test_a_run_of_failures_did_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "truth", {"a": bars(9, 9)})
    save(here / "found", {"a": bars(9)})
    code, error = complaint(capsys, "found", "--truth", "truth", "--per-field", "fields.csv")
    assert code == 3
    assert error == "cellseg: a: the prediction is 1×10 px, the truth is 2×10 px\n"
    assert (here / "fields.csv").read_text() == (
        'id,error\na,"the prediction is 1×10 px, the truth is 2×10 px"\n'
    )


def test_nothing_in_common(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "truth", {"train/a": bars(9), "train/b": bars(9)})
    save(here / "found", {"a": bars(9)})
    assert complaint(capsys, "found", "--truth", "truth") == (
        3,
        "cellseg: no field is in both: found has 1, such as a; truth has 2, such as train/a; "
        "a field is known by its path below the folder given, without suffix\n",
    )


def test_a_prediction_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "truth", {"a": bars(9)})
    assert complaint(capsys, "found", "--truth", "truth") == (
        3,
        "cellseg: there is no file or folder of annotations at found\n",
    )


def test_groups_without_a_column_are_a_usage_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "truth", {"a": bars(9)})
    assert complaint(capsys, "truth", "--truth", "truth", "--groups", "index.csv") == (
        2,
        "cellseg: groups are given as FILE.csv:COLUMN, got 'index.csv'\n",
    )


def test_the_table_of_fields(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "truth", {"P/a": bars(10), "b": bars(0)})
    save(here / "found", {"P/a": bars(8), "b": bars(0)})
    assert run(["evaluate", "found", "--truth", "truth", "--per-field", "out/fields.csv"]) == 0
    with (here / "out" / "fields.csv").open(newline="") as stream:
        a, b = csv.DictReader(stream)
    assert list((here / "out").iterdir()) == [here / "out" / "fields.csv"]
    keys = ["id", "plate", "truth_instances", "predicted_instances", "mean_ap", "pq", "matched_iou"]
    keys += ["missed", "false", "split", "merged", "boundary"]
    for name in ("ap", "precision", "recall", "f1", "tp", "fp", "fn"):
        keys += [f"{name}_{threshold:.2f}" for threshold in THRESHOLDS]
    assert list(a) == [*keys, "error"]
    assert (a["id"], a["plate"], a["mean_ap"], a["pq"]) == ("P/a", "P", "0.7", "0.8")
    assert (a["ap_0.80"], a["tp_0.80"], a["tp_0.85"], a["fn_0.85"]) == ("1.0", "1", "0", "1")
    assert (b["id"], b["plate"], b["mean_ap"], b["ap_0.50"], b["tp_0.50"]) == ("b", "", "", "", "0")


def test_a_table_of_fields_that_exists_is_kept(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "truth", {"a": bars(9)})
    (here / "fields.csv").write_text("mine")
    arguments = ["truth", "--truth", "truth", "--per-field", "fields.csv"]
    assert complaint(capsys, *arguments) == (
        2,
        "cellseg: fields.csv exists; choose another file, or --overwrite\n",
    )
    assert (here / "fields.csv").read_text() == "mine"
    assert run(["evaluate", *arguments, "--overwrite"]) == 0
    assert (here / "fields.csv").read_text().startswith("id,")


def test_a_table_of_fields_cannot_replace_a_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "truth", {"a": bars(9)})
    arguments = ["truth", "--truth", "truth", "--per-field", "truth", "--overwrite"]
    assert complaint(capsys, *arguments) == (
        2,
        "cellseg: truth is a folder; give the name of a file\n",
    )


def test_scores_do_not_depend_on_the_number_of_threads(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    save(here / "truth", {str(i): rng.integers(0, 6, (8, 9)) for i in range(12)})
    save(here / "found", {str(i): rng.integers(0, 6, (8, 9)) for i in range(12)})
    one = scored(capsys, "found", "--truth", "truth", "--threads", "1")
    assert scored(capsys, "found", "--truth", "truth", "--threads", "4") == one


def test_real_truth_against_itself_in_two_forms(
    real_data: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight Sartorius fields: the table keeps overlaps, the label images flatten them.

    A label image cannot do better than its flattening allows, which is close to 1.
    """
    source = real_data / "sartorius"
    if not (source / "train.csv").is_file():
        pytest.skip(f"{source} holds no train.csv")
    (here / "found").mkdir()
    for path in sorted((source / "labels").glob("*.tif"))[:8]:
        (here / "found" / path.name).symlink_to(path)
    result = scored(
        capsys, "found", "--truth", str(source / "train.csv"), "--missing", "skip", "-q"
    )
    assert (result["exit_code"], result["fields"]) == (0, 8)
    assert result["overall"]["ap"]["0.50"] > 0.97
    assert result["overall"]["mean_ap"] > 0.9
    assert set(result["by_group"]["cell_type"]) <= {"cort", "astro", "shsy5y"}


def test_groups_of_no_field_and_two_of_one_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "truth", {"a": bars(9)})
    (here / "one.csv").write_text("id,dye\na,x\n")
    (here / "other.csv").write_text("id,dye\na.png,x\n")
    (here / "none.csv").write_text("id,dye\n")
    sides = ["truth", "--truth", "truth", "--groups"]
    assert complaint(capsys, *sides, "other.csv:dye") == (
        3,
        "cellseg: other.csv:dye: no field has a group there; its ids are of other fields "
        "(such as a.png), the fields are such as a\n",
    )
    assert complaint(capsys, *sides, "none.csv:dye") == (
        3,
        "cellseg: none.csv:dye: no field has a group there; its ids are of other fields "
        "(none), the fields are such as a\n",
    )
    assert complaint(capsys, *sides, "one.csv:dye", "--groups", "one.csv:dye") == (
        2,
        "cellseg: two tables of groups have the column dye; rename one of them\n",
    )


def test_groups_are_added_up_once_whatever_the_number_of_fields(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return summarise_groups(*arguments)

    monkeypatch.setattr("cellseg_cli.pipeline.evaluate.summarise_groups", counted)
    save(here / "truth", {f"P/{index}": bars(9) for index in range(12)})
    assert run(["evaluate", "truth", "--truth", "truth", "--per-field", "fields.csv"]) == 0
    assert len(calls) == 2  # by cell type and by plate
