"""The program as a shell sees it: quick help, one line per error, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cellseg_cli import __version__
from cellseg_cli.cli.app import guarded, run
from cellseg_cli.errors import ConfigError, ExitCode, InputError

COMMANDS = ("demo", "train", "embed", "cluster", "evaluate", "export", "models")

HEAVY = ("torch", "dask", "zarr", "skimage", "sklearn", "scipy", "numba", "cv2", "pandas", "timm")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom cellseg_cli.cli.app import run\n"
        f"code = run({arguments!r})\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('LOADED', loaded, code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "LOADED [] 0"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in shown
    assert "cellseg embed ./plates --out emb.zarr\n" in shown


def test_module_and_script_are_the_same_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cellseg_cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"cellseg {__version__}\n"


def test_an_unknown_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["embed", "--no-such-flag"]) == ExitCode.USAGE
    assert "--no-such-flag" in capsys.readouterr().err


def test_an_unknown_setting_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["train", str(tmp_path), "--out", str(tmp_path / "run"), "--set", "stpes=3"])
    captured = capsys.readouterr()
    assert code == ExitCode.USAGE
    assert captured.err.startswith(
        "cellseg: unknown setting stpes; known: augment, balance, batch_size"
    )
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no image"), 3, "cellseg: no image\n"),
        (ConfigError("bad flag"), 2, "cellseg: bad flag\n"),
        (OSError(28, "No space left", "run/m"), 3, "cellseg: run/m: No space left\n"),
        (KeyboardInterrupt(), 130, "cellseg: interrupted; the same command resumes\n"),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as stop:
        guarded(command)()
    assert stop.value.exit_code == code
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(command)()
