"""Options that `cellseg train` and `cellseg pretrain` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[
    Path, typer.Option("--out", help="Folder of the run; an unfinished one resumes.")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")]
Encoder = Annotated[str | None, typer.Option("--encoder", help="A timm model, such as resnet18.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of everything random.")]
Licence = Annotated[str, typer.Option("--licence", help="Licence that the written file carries.")]
DataNote = Annotated[
    str, typer.Option("--data-note", help="What was learned from, for the header of the file.")
]
