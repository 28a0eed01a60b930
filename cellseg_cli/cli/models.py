"""`cellseg models`: what comes with the package."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from cellseg_cli.cli.common import AsJson, echo_json


def models(
    name: Annotated[
        str | None, typer.Argument(help="A bundled model or a model file; its card or header.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the bundled models, or show the card of one.

    \b
        cellseg models
        cellseg models nuclei
        cellseg models run/best.safetensors --json
    """
    from cellseg_cli.networks.checkpoint import bundled_models, find_model, read_header

    if name is None:
        headers = [read_header(find_model(each)) for each in bundled_models()]
        if as_json:
            echo_json([dataclasses.asdict(header) for header in headers])
        for header in () if as_json else headers:
            typer.echo(
                f"{header.name}\t{header.kind}, {header.architecture.encoder}\t"
                f"licence {header.licence}\t{header.data}"
            )
        return 0
    path = find_model(name)
    header = read_header(path)
    card = path.with_suffix(".md")
    if card.is_file() and not as_json:
        typer.echo(card.read_text(encoding="utf-8"))
    else:
        echo_json(dataclasses.asdict(header))
    return 0
