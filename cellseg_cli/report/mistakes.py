"""Pictures of what went wrong: truth and prediction, outlined by what became of each instance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellseg_cli.report.pictures import image_rgb, outlines, panel

#: Colour (RGB) of each fate, by its number in :class:`cellseg_cli.evaluation.mistakes.Fate`.
COLOURS = np.array(
    [(70, 220, 90), (255, 60, 60), (80, 150, 255), (255, 70, 255), (255, 220, 40), (190, 190, 190)],
    dtype=np.uint8,
)

TRUTH_TITLE = "truth: green found, yellow IoU < 0.75, red missed, blue split, pink merged"
FOUND_TITLE = "found: green right, yellow IoU < 0.75, red false, blue split, pink merged"


def mistakes_rgb(
    image: np.ndarray | None,
    truth: np.ndarray,
    found: np.ndarray,
    fates: tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray],
) -> np.ndarray:
    """Return truth and prediction side by side, each instance outlined in its colour.

    Parameters
    ----------
    image : (Y, X) or (C, Y, X), optional
        What is below, as :func:`cellseg_cli.report.pictures.image_rgb` takes it; black without.
    truth, found : (Y, X) integer
        Label images with ids 1..T and 1..P.
    fates : (T,) and (P,)
        Fate of each instance, as indices into :data:`COLOURS`.
    """
    ground = np.zeros((*truth.shape, 3), np.uint8) if image is None else image_rgb(image)
    sides = ((TRUTH_TITLE, truth, fates[0]), (FOUND_TITLE, found, fates[1]))
    return panel([(title, _outlined(ground, labels, own)) for title, labels, own in sides])


def _outlined(
    ground: np.ndarray, labels: np.ndarray, fates: Sequence[int] | np.ndarray
) -> np.ndarray:
    picture = ground.copy()
    edge = outlines(labels)
    colours = COLOURS[np.concatenate([[0], np.asarray(fates, dtype=np.intp)])]
    picture[edge] = colours[labels[edge]]
    return picture
