"""The folder of a run: which run it holds, and when another one may take its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import OutputExistsError
from cellseg_cli.networks.initial import find_initial, initial_fingerprint
from cellseg_cli.training.data import Examples
from cellseg_cli.training.state import State, read_settings

#: What resumes.
STATE = "state.safetensors"
#: Names of the models of a run.
BEST, LAST = MODELS = ("best.safetensors", "last.safetensors")
#: The curves.
METRICS = "metrics.csv"


#: Raised whenever crops come to be drawn otherwise: a run that was begun before does not go on.
DRAWS = 2


def identity_of(settings: TrainSettings, examples: Examples, held: Examples) -> dict[str, Any]:
    """Return what makes a run this run: settings, and the content of every field.

    Where and in which precision it is computed does not, nor the rhythm of validation; where
    `minutes` are given, the number of steps is found and not asked for.
    """
    content = dataclasses.asdict(settings)
    for name in ("device", "devices", "validate_every", "precision", "cache"):
        content.pop(name)
    if settings.minutes:
        content.pop("steps")
    if settings.init is not None:  # what is in the file counts, not where it lies
        content["init"] = initial_fingerprint(find_initial(settings.init))
    content |= {name: list(one) for name, one in content.items() if isinstance(one, tuple)}
    content["draws"] = DRAWS
    content["fields"] = examples.identities()
    content["held_out"] = held.identities()
    return content


def refuse_another_run(out: Path, state: State[Any, Any], results: Sequence[str] = MODELS) -> None:
    """Raise OutputExistsError where `out` holds a run that is not `state`'s, or its `results`."""
    kept = out / STATE
    if kept.exists():
        there, wanted = read_settings(kept), state.settings
        if there != wanted:
            keys = sorted(k for k in there.keys() | wanted if there.get(k) != wanted.get(k))
            raise OutputExistsError(
                f"{out} holds a run with other settings ({', '.join(keys)}); "
                "use another --out, or --overwrite to start anew"
            )
    elif there_are := [name for name in results if (out / name).exists()]:
        raise OutputExistsError(
            f"{out} holds {' and '.join(there_are)} without the state of their run; "
            "use another --out, or --overwrite to replace them"
        )


def prepare(out: Path, *, overwrite: bool, results: Sequence[str] = MODELS) -> None:
    """Make the folder `out` ready: new, resumable, or emptied of the older run."""
    if (out / STATE).exists() and not overwrite:
        return
    for name in (STATE, *results, METRICS):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
