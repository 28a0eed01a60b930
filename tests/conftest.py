"""What every test may lean on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images with truth; tests that need it are skipped without it."""
    root = Path(os.environ.get("CELLSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "dsb2018" / "index.csv").is_file():
        pytest.skip(f"real images are not on this machine: {root} (set CELLSEG_DATA)")
    return root
