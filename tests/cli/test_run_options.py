"""The options that say how a stage is carried out: from flags and file to one RunSettings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cellseg_cli.cli.app import run
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.pipeline.events import Summary

FLAGS = "--threads 2 --workers 3 --memory 8GB --part 2/5 --retry-failed --dry-run"
TOLD = RunSettings(
    threads=2,
    workers=3,
    memory="8GB",
    part="2/5",
    retry_failed=True,
    dry_run=True,
)
CALLS = {
    "embed": ("cellseg_cli.pipeline.embed.embed", ["embed", "in", "--out", "o"]),
    "cluster": ("cellseg_cli.pipeline.cluster.cluster_store", ["cluster", "o"]),
    "segment": ("cellseg_cli.pipeline.segment.segment", ["segment", "in", "--out", "o"]),
}


def called(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that the pipeline was called with by a command line."""
    target, command = CALLS[name]
    heard: list[Any] = []

    def stage(*arguments: Any) -> Summary:
        heard.extend(arguments)
        return Summary(name, 1, 0, (), 1.0)

    monkeypatch.setattr(target, stage)
    assert run([*command, *words]) == 0
    return heard


@pytest.mark.parametrize("name", list(CALLS))
def test_every_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = called(name, FLAGS.split(), monkeypatch)
    (told,) = [one for one in heard if isinstance(one, RunSettings)]
    device = "auto" if name == "segment" else "cpu"  # where labels are made
    assert told == RunSettings(**{**vars(TOLD), "device": device})


def test_a_file_and_flags_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[run]\nworkers = 4\nmemory = "3GB"\noverwrite = true\n'
        "[embed]\ntile_px = 512\n[cluster]\nmin_area_px = 7\n"
    )
    words = ["--config", str(file), "--workers", "2", "--pattern", "none", "--batch-size", "0"]
    heard = called("segment", words, monkeypatch)
    assert heard[:2] == ["in", Path("o")]
    settings, told = heard[2:4]
    assert settings.embed == EmbedSettings(tile_px=512, pattern="none")
    assert settings.cluster == ClusterSettings(min_area_px=7)
    assert told == RunSettings(workers=2, memory="3GB", overwrite=True, device="auto")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2", "--scheduler", "tcp://a:1"], "--workers and --scheduler exclude each"),
        (["--scheduler", "s.json", "--cluster", "slurm"], "--scheduler and --cluster exclude each"),
        (["--cluster-config", "c.toml"], "--cluster-config belongs to --cluster slurm, pbs or lsf"),
        (["--cluster", "condor"], "bad settings: cluster='condor': Input should be 'slurm', 'pbs'"),
        (["--part", "0/2"], "--part 0/2: i must lie in 1..n"),
        (["--memory", "lots"], "--memory 'lots' is no size such as 8GB, 512MiB or 16GiB"),
    ],
)
def test_what_is_refused(
    words: list[str],
    message: str,
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image, but enough to plan a run")
    command = ["embed", str(tmp_path), "--out", str(tmp_path / "o.zarr"), "--model", str(model)]
    assert run([*command, *words]) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(f"cellseg: {message}")
    assert not (tmp_path / "o.zarr").exists()


@pytest.mark.parametrize("name", list(CALLS))
def test_retrying_and_overwriting_exclude_each_other(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Together they would take away what is done and do nothing anew."""
    assert run([*CALLS[name][1], "--retry-failed", "--overwrite"]) == 2
    assert capsys.readouterr().err == (
        "cellseg: --retry-failed does what failed before, --overwrite does everything anew: "
        "choose one\n"
    )
