"""The limits the project sets itself: one field of 520×704 px with 300 cells, one core."""

from __future__ import annotations

import fields
import measure
import shapes

#: CPU seconds of each default.
LIMITS = {"seeds, spatial": 0.04, "grid, spatial": 0.15, "grid, contrastive": 0.15}


def compare() -> None:
    """Print the time of each default beside its limit."""
    labels = fields.discs(300, (520, 704))
    print("\n300 cells on 520×704 px      CPU s  limit  peak MB")
    for name, limit in LIMITS.items():
        with measure.process() as process:
            found = process.submit(shapes.outcome, name, labels).result()
        verdict = "kept" if found.cpu_s <= limit else "BROKEN"
        print(
            f"{name:<25} {found.cpu_s:8.4f} {limit:6.2f} {found.extra_bytes / 1e6:8.1f}  {verdict}"
        )
