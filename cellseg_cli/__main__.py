"""Entry point of `cellseg` and `python -m cellseg_cli`."""

from __future__ import annotations

from cellseg_cli.cli.app import main

if __name__ == "__main__":
    main()
